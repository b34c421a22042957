"""The metrics of the way up: the clouds, their breakers, what is asked of them, and the link to them."""

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from edge_node.allowance import Allowance
from edge_node.breaker import State
from edge_node.cloud import Attempt
from edge_node.link import Estimate

_KNOWN = 1.0  # spread of a rate, as a share of it, from which it is not known


class LinkMetrics:
    """The counters and gauges of one node's way to its clouds, each `peer` one of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.breaker = Gauge(
            "tandem_breaker_state", "0 closed, 1 half open, 2 open.", ["peer"], registry=registry
        )
        self.breaker_transitions = Counter(
            "tandem_breaker_transitions", "Changes of the breaker's state.", ["peer", "to"], registry=registry
        )
        self.patience = Gauge(
            "tandem_breaker_patience_seconds",
            "Requests that cannot wait longer than this are not sent; 0 for none, infinite for all.",
            ["peer"], registry=registry,
        )  # fmt: skip
        self.attempts = Counter(
            "tandem_cloud_attempts", "Messages sent to a cloud: first, retry, hedge, trial, probe or sample.",
            ["peer", "kind"], registry=registry,
        )  # fmt: skip
        self.throttled = Counter(
            "tandem_cloud_throttled", "Requests not sent, because the cloud has been turning many down.",
            ["peer"], registry=registry,
        )  # fmt: skip
        self.late = Counter(
            "tandem_cloud_late_answers", "Answers of the cloud that came after their deadline.",
            ["peer"], registry=registry,
        )  # fmt: skip
        self.connected = Gauge(
            "tandem_cloud_connected", "1 while there is a connection.", ["peer"], registry=registry
        )
        self.enabled = Gauge(
            "tandem_escalation_enabled", "0 while escalation is switched off.", registry=registry
        )
        self.day_bytes = Gauge(
            "tandem_escalation_day_bytes", "Bytes sent up in the last 24 hours, for the budget of a day.",
            registry=registry,
        )  # fmt: skip
        self.link_round_trip = Gauge(
            "tandem_link_round_trip_seconds", "Round trip to the cloud, estimated.", registry=registry
        )
        self.link_bandwidth = Gauge(
            "tandem_link_bandwidth_bytes_per_second",
            "Rate of the link to the cloud, estimated; NaN where messages were too small to tell.",
            ["direction"], registry=registry,
        )  # fmt: skip
        self.link_age = Gauge(
            "tandem_link_estimate_age_seconds", "Since anything was heard from the cloud; infinite before.",
            registry=registry,
        )  # fmt: skip

    def add_link(self, heard: Callable[[], float], clock: Callable[[], float]) -> None:
        """Show the age of what is known of the link: since `heard()`, by `clock`."""
        self.link_age.set_function(lambda: clock() - heard())

    def estimated(self, link: Estimate) -> None:
        """Show what the link to the cloud is like now."""
        self.link_round_trip.set(link.round_trip)
        for way, rate, spread in (("up", link.up, link.up_spread), ("down", link.down, link.down_spread)):
            self.link_bandwidth.labels(way).set(rate if spread < _KNOWN else math.nan)

    def add_allowance(self, allowance: Allowance, clock: Callable[[], float]) -> None:
        """Show what may be sent up, and what was, by `clock`."""
        self.enabled.set_function(lambda: allowance.enabled)
        self.day_bytes.set_function(lambda: allowance.day_bytes(clock()))

    def add_peer(self, peer: str, patience_s: Callable[[], float]) -> None:
        """Show a cloud that is not connected yet, its breaker closed; requests that cannot wait longer than
        `patience_s()` are not sent to it."""
        self.connected.labels(peer).set(0)
        self.late.labels(peer)
        self.throttled.labels(peer)
        for kind in Attempt:
            self.attempts.labels(peer, kind)
        self.patience.labels(peer).set_function(patience_s)
        self.breaker.labels(peer).set(State.CLOSED)
        for state in State:
            self.breaker_transitions.labels(peer, state.name.lower())

    def breaker_changed(self, peer: str, state: State) -> None:
        """Show and count a change of the breaker's state."""
        self.breaker.labels(peer).set(state)
        self.breaker_transitions.labels(peer, state.name.lower()).inc()
