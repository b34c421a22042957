"""What the management port does to the node: the switch of escalation, and the reload."""

import asyncio
import http.client
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from edge_node.allowance import Allowance, Budgets
from edge_node.metrics import Metrics
from edge_node.model_slot import LoadedModel, ModelSlots, load_models
from edge_node.operation import add_actions
from edge_node.reload import Reload
from edge_node.settings import Settings
from inference_core.management import Management
from inference_core.vitals import Vitals
from tests.bundles import write_bundle

pytestmark = pytest.mark.anyio


async def test_the_switch_and_the_reload(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    folder = write_bundle(tmp_path / "colors")

    async def load(_: object) -> list[LoadedModel]:
        given: dict[str, Any] = {"bundles": (folder,)}
        return load_models(Settings(**given))

    reload = Reload(ModelSlots(), load, Metrics(registry), Vitals(registry))
    await reload.start()
    allowance = Allowance(Budgets())
    management = Management(registry, "127.0.0.1", 0, "")
    add_actions(management, reload, allowance)
    management.start()

    async def ask(method: str, path: str, body: object = None) -> tuple[int, Any]:
        def once() -> tuple[int, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", management.port, timeout=10)
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())

        return await asyncio.to_thread(once)

    try:
        assert await ask("GET", "/admin/escalation") == (200, {"enabled": True})
        assert await ask("PUT", "/admin/escalation", {"enabled": False}) == (200, {"enabled": False})
        assert allowance.enabled is False
        for wrong in ({}, {"enabled": 1}, {"enabled": True, "more": 1}):
            assert (await ask("PUT", "/admin/escalation", wrong))[0] == 400
        assert allowance.enabled is False
        status, told = await ask("POST", "/admin/reload")
        assert (status, told["result"], told["models"][0]["name"]) == (200, "ok", "colors")
    finally:
        management.stop()
