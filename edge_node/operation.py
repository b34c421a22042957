"""What whoever operates the node may do, as actions of the management port."""

from collections.abc import Mapping
from typing import Any

from edge_node.allowance import Allowance
from edge_node.reload import Reload
from inference_core.management import Management, Refused


def add_actions(management: Management, reload: Reload, allowance: Allowance) -> None:
    """Reload the bundles; show the switch of escalation, and turn it."""

    async def reload_now(_: Mapping[str, Any]) -> Mapping[str, Any]:
        return await reload.run()

    async def show(_: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"enabled": allowance.enabled}

    async def turn(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        enabled = wanted.get("enabled")
        if not isinstance(enabled, bool) or len(wanted) != 1:
            raise Refused(400, 'the body must be {"enabled": true} or {"enabled": false}')
        allowance.enabled = enabled
        return {"enabled": enabled}

    management.add("POST", "/admin/reload", reload_now)
    management.add("GET", "/admin/escalation", show)
    management.add("PUT", "/admin/escalation", turn)
