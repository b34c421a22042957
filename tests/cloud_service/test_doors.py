"""What stands in front of the servers, and the files behind it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cloud_service import doors
from cloud_service.nodes import read_revoked
from cloud_service.settings import Settings
from inference_core.errors import Forbidden

pytestmark = pytest.mark.anyio
EDGE = ["spiffe://tandem/edge/edge-7"]


def nobody(_: Any) -> None:
    """Nobody wants to know."""


def is_refused(made: doors.Doors) -> bool:
    try:
        made.nodes.admit(EDGE)
    except Forbidden:
        return True
    return False


async def test_a_node_revoked_while_the_list_is_read_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "revoked"
    path.write_text("# none yet")

    def read_and_change(given: Path) -> frozenset[str]:
        found = read_revoked(given)
        path.write_text("edge-7")
        return found

    monkeypatch.setattr(doors, "read_revoked", read_and_change)
    given: dict[str, Any] = {"revoked_nodes": path}
    made = doors.Doors(Settings(**given), nobody, nobody)
    assert made.nodes.admit(EDGE) == "edge-7"
    made.start()
    async with asyncio.timeout(10):
        while not is_refused(made):  # noqa: ASYNC110 - a file that is looked at, not an event
            await asyncio.sleep(0.05)
    await made.close()
