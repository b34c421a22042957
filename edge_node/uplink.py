"""The way up as the settings have it: the clouds, what guards each, and what may be sent at all."""

import logging
import random
import time

from edge_node.allowance import Allowance, Budgets
from edge_node.breaker import Breaker, Rules, State
from edge_node.cloud import Attempt
from edge_node.cloud_client import CloudClient
from edge_node.cloud_tls import CloudTls
from edge_node.clouds import Clouds
from edge_node.hedging import Hedging
from edge_node.link_metrics import LinkMetrics
from edge_node.settings import Settings
from edge_node.throttle import Throttle

_MESSAGE_OVERHEAD = 64 << 10
_log = logging.getLogger(__name__)


def allow(settings: Settings, metrics: LinkMetrics) -> Allowance:
    """What the node may send up, and its metrics."""
    budgets = Budgets(
        settings.min_escalation_interval_ms / 1000,
        settings.max_escalations_per_s,
        settings.max_escalation_bytes_per_s,
        settings.max_escalation_bytes_per_day,
    )
    allowance = Allowance(budgets, enabled=settings.escalate)
    metrics.add_allowance(allowance, time.monotonic)
    return allowance


def connect(
    settings: Settings, allowance: Allowance, metrics: LinkMetrics, tls: CloudTls | None = None
) -> Clouds | None:
    """The way to the clouds, or None where the settings name none; plain without `tls`."""
    if not settings.cloud:
        _log.info("no cloud: EDGE_CLOUD is empty")
        return None
    clients = [_client(peer, settings, allowance, metrics, tls) for peer in settings.cloud]
    return Clouds(clients, allowance, Hedging() if settings.hedge else None)


def _client(
    peer: str, settings: Settings, allowance: Allowance, metrics: LinkMetrics, tls: CloudTls | None
) -> CloudClient:
    breaker = breaker_of(peer, settings, metrics)
    metrics.add_peer(peer, lambda: breaker.level)
    attempts = {kind: metrics.attempts.labels(peer, kind) for kind in Attempt}

    def admit(kind: Attempt, nbytes: int) -> None:
        allowance.take(time.monotonic(), kind, nbytes)
        attempts[kind].inc()

    return CloudClient(
        peer,
        breaker,
        connect_timeout_s=settings.connect_timeout_ms / 1000,
        patience_s=settings.deadline_ms / 1000,
        max_message_bytes=settings.max_body_bytes + _MESSAGE_OVERHEAD,
        on_connection=lambda connected: metrics.connected.labels(peer).set(connected),
        on_late=metrics.late.labels(peer).inc,
        on_throttled=metrics.throttled.labels(peer).inc,
        admit=admit,
        throttle=Throttle(random.random),
        tls=tls,
    )


def breaker_of(peer: str, settings: Settings, metrics: LinkMetrics) -> Breaker:
    """The breaker of one cloud, with its metrics; the log says when it opens, and when it closes."""
    before = State.CLOSED

    def changed(state: State) -> None:
        nonlocal before
        metrics.breaker_changed(peer, state)
        # Trials are not news: a cloud that stays silent swings between open and half open.
        opened, before = before is State.CLOSED, state
        if opened:
            _log.warning("the cloud at %s fails or is silent; leaving it alone for a while", peer)
        elif state is State.CLOSED:
            _log.info("the cloud at %s answers again", peer)

    slow_s = settings.breaker_slow_ms / 1000 if settings.breaker_slow_ms else float("inf")
    return Breaker(
        Rules(settings.breaker_failures, settings.breaker_window, settings.breaker_share, slow_s=slow_s),
        settings.breaker_open_ms / 1000,
        jitter=lambda: random.uniform(0.8, 1.2),  # noqa: S311 - spreads retries, guards nothing
        on_change=changed,
        usual_s=settings.deadline_ms / 1000 / 2,
    )
