"""Loading beside the loop: what qualifies, what does not, and that nobody waits for a load at the end."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_node.loader import Loader
from edge_node.settings import Settings
from inference_core.errors import BundleError
from inference_core.watchdog import Watchdog
from tests import wedges
from tests.bundles import replace_file, write_bundle

pytestmark = pytest.mark.anyio


def loader(folder: Path, **changes: Any) -> Loader:
    return Loader(Settings(**{"bundles": (folder,), **changes}), Watchdog(10.0))


async def test_models_come_and_those_that_are_the_same_stay(tmp_path: Path) -> None:
    loads = loader(write_bundle(tmp_path / "colors"))
    (model,) = await loads.load()
    assert model.name == "colors"
    assert await loads.load([model]) == [model]
    loads.close()


async def test_a_thread_that_is_given_up_ends_the_load_and_not_the_loader(tmp_path: Path) -> None:
    folder, told = tmp_path / "colors", list[Callable[[int], object]]()
    folder.mkdir()
    os.mkfifo(folder / "manifest.json")  # reading it takes for ever

    class Silent(Watchdog):
        def on_stuck(self, tell: Callable[[int], object]) -> None:
            told.append(tell)

    changes: dict[str, Any] = {"bundles": (folder,)}
    loads = Loader(Settings(**changes), Silent(10.0))
    load = asyncio.create_task(loads.load())
    await asyncio.sleep(0.2)
    (stuck,) = [thread.ident for thread in threading.enumerate() if thread.name == "load"]
    for tell in told:
        tell(stuck or 0)
    with pytest.raises(BundleError, match="is not waited for"):
        await asyncio.wait_for(load, 1.0)
    with (folder / "manifest.json").open("w"):  # lets the thread go
        pass
    (folder / "manifest.json").unlink()
    write_bundle(folder)
    assert [model.name for model in await loads.load()] == ["colors"]
    loads.close()


async def test_what_never_ends_is_refused_within_its_time_and_a_close_does_not_wait(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "colors")
    replace_file(folder, "edge-int8.onnx", wedges.looping(over=-1.0))
    loads = loader(folder, qualify_s=1)
    with pytest.raises(BundleError, match="took over 1 seconds"):
        await loads.load()
    again = asyncio.create_task(loads.load())
    await asyncio.sleep(0.05)
    started = time.monotonic()
    loads.close()
    again.cancel()
    await asyncio.wait({again})
    assert time.monotonic() - started < 0.5
