"""What links are like: named profiles and traces, with where their figures come from.

Rates are bytes per second, times seconds. A trace is one `Conditions` for each second.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Conditions:
    """A link at one moment.

    `round_trip_s` is shared evenly between the directions. `jitter_s` is the mean of what is added to a
    direction's half, evenly from none to twice that. Stalls hold a direction up for `stall_s` seconds,
    `stalls_per_s` times in a second of sending on average, as a packet does that was lost and is sent again.
    While `out`, nothing moves.
    """

    round_trip_s: float
    up: float
    down: float
    jitter_s: float = 0.0
    stalls_per_s: float = 0.0
    stall_s: float = 0.0
    out: bool = False

    def __post_init__(self) -> None:
        for name in ("up", "down"):
            if not 0 < getattr(self, name) <= _FASTEST:
                raise ValueError(
                    f"{name}: bytes per second from 1 to {_FASTEST:g}, got {getattr(self, name)}"
                )
        for name in ("round_trip_s", "jitter_s", "stalls_per_s", "stall_s"):
            if not 0 <= getattr(self, name) <= _LONGEST:
                raise ValueError(f"{name}: from 0 to {_LONGEST:g}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Profile:
    """A kind of link: its conditions second by second, repeated, and the source of its figures."""

    name: str
    trace: tuple[Conditions, ...]
    source: str

    @property
    def steady(self) -> bool:
        """Whether it stays as it is."""
        return len(set(self.trace)) == 1


_FASTEST, _LONGEST = 1e12, 1e4
_MBIT = 1e6 / 8
PERFECT = Conditions(0.0, _FASTEST, _FASTEST)

LAN = Conditions(0.001, 1000 * _MBIT, 1000 * _MBIT)
WIFI = Conditions(0.004, 15 * _MBIT, 30 * _MBIT, jitter_s=0.0005)
FIVE_G = Conditions(0.02, 30 * _MBIT, 200 * _MBIT, jitter_s=0.001)
FOUR_G = Conditions(0.07, 12 * _MBIT, 12 * _MBIT, jitter_s=0.002, stalls_per_s=0.2, stall_s=0.05)
THREE_G = Conditions(0.15, 0.75 * _MBIT, 1.6 * _MBIT, jitter_s=0.005, stalls_per_s=0.1, stall_s=0.2)
SATELLITE = Conditions(0.6, 3 * _MBIT, 25 * _MBIT, jitter_s=0.005, stalls_per_s=0.02, stall_s=0.2)


def _out(conditions: Conditions) -> Conditions:
    return replace(conditions, out=True)


def _profile(name: str, source: str, *parts: tuple[int, Conditions]) -> Profile:
    return Profile(name, tuple(item for seconds, item in parts for _ in range(seconds)), source)


_YARD_TO_TUNNEL = (
    (7, WIFI), (7, FOUR_G), (9, THREE_G), (4, _out(THREE_G)), (8, FOUR_G), (5, WIFI),
)  # fmt: skip
_CELLS = (
    (5, FIVE_G), (3, FOUR_G), (3, _out(FOUR_G)), (6, THREE_G), (5, FOUR_G), (6, FIVE_G), (2, _out(FIVE_G)),
    (5, THREE_G), (5, FIVE_G),
)  # fmt: skip
_KNOWN = (
    _profile("lan", "Gigabit Ethernet (IEEE 802.3ab), a few switches: 1 ms", (1, LAN)),
    _profile("wifi", "Chrome DevTools' former preset: 30/15 Mbit/s; round trip rounded up", (1, WIFI)),
    _profile("5g", "round numbers of a non-standalone network: 20 ms, 200/30 Mbit/s", (1, FIVE_G)),
    _profile("4g", "WebPageTest's preset LTE: 70 ms, 12/12 Mbit/s; stalls are ours", (1, FOUR_G)),
    _profile(
        "3g", "Lighthouse's default, WebPageTest's Mobile 3G Fast: 150 ms, 1.6/0.75 Mbit/s; stalls are ours",
        (1, THREE_G),
    ),
    _profile("satellite", "a geostationary orbit (RFC 2488): 600 ms; 25/3 Mbit/s", (1, SATELLITE)),
    _profile("flapping", "4g, gone for 1 s in every 6: ours", (5, FOUR_G), (1, _out(FOUR_G))),
    _profile("drive", "wifi, 4g, 3g, a tunnel, 4g, wifi: ours", *_YARD_TO_TUNNEL),
    _profile("commute", "cells that change, two tunnels: ours", *_CELLS),
)  # fmt: skip
PROFILES = {profile.name: profile for profile in _KNOWN}
