"""The outbox, what fills it and what empties it, as the settings have it."""

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import Executor

from prometheus_client import CollectorRegistry

from edge_node.disclosure import Disclosure
from edge_node.fleet_client import FleetClient, Uplink
from edge_node.forwarder import Forwarder
from edge_node.keeper import Keeper
from edge_node.link import Link
from edge_node.model_slot import ModelSlots
from edge_node.outbox import Outbox
from edge_node.outbox_metrics import OutboxMetrics
from edge_node.runner import Runner
from edge_node.settings import Settings

_MESSAGE_OVERHEAD = 64 << 10
_log = logging.getLogger(__name__)


def most_bytes(settings: Settings) -> int:
    """The largest message that can ever go up: one over a whole day's allowance would hold up all others."""
    most = settings.max_body_bytes + _MESSAGE_OVERHEAD
    return min(most, settings.max_escalation_bytes_per_day or most)


class Learning:
    """What a node does for the cloud to learn from it: nothing where the settings name no outbox."""

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        """Without an outbox there are no metrics of it in `registry`, and no `keeper`."""
        self._settings = settings
        self._forwarder: Forwarder | None = None
        self._outbox: Outbox | None = None
        self.keeper: Keeper | None = None
        if settings.outbox is None:
            return
        self._metrics = OutboxMetrics(registry)
        self._outbox = Outbox(
            settings.outbox,
            self._metrics,
            synchronous=settings.outbox_synchronous,
            max_bytes=settings.outbox_max_bytes,
            max_age_s=settings.outbox_max_age_h * 3600,
        )
        self.keeper = Keeper(self._outbox, privacy=settings.privacy, audit_rate=settings.confident_audit_rate)

    def forward(
        self, clouds: Uplink, link: Link, slots: ModelSlots, runner: Runner, decoders: Executor
    ) -> None:
        """From `start` on, forward what is kept to these clouds."""
        settings = self._settings
        if self._outbox is None:
            return
        disclosure = Disclosure(
            slots, runner, decoders, privacy=settings.privacy, max_pixels=settings.max_pixels
        )
        client = FleetClient(clouds, settings.node_id, most_bytes(settings))
        self._forwarder = Forwarder(
            self._outbox, disclosure, client, link, self._metrics, share=settings.outbox_share
        )

    def start(self) -> None:
        """Write to the disk from now on."""
        if self._outbox is not None:
            self._outbox.start()

    def ready(self, models: Iterable[str]) -> None:
        """These are served: show their series, and forward."""
        if self._outbox is not None:
            for model in models:
                self._metrics.add_model(model)
        if self._forwarder is not None:
            self._forwarder.start()

    async def stop_forwarding(self) -> None:
        """Forward no more: while the connections are still there."""
        if self._forwarder is not None:
            await self._forwarder.close()

    async def close(self, timeout_s: float) -> None:
        """Write what was handed over and close the database, within `timeout_s` seconds."""
        outbox = self._outbox
        if outbox is not None and not await asyncio.to_thread(outbox.close, timeout_s):
            _log.error("the outbox was not closed within %.1f s: the disk does not answer", timeout_s)
