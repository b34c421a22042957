"""How late the event loop comes to what is due: everything it answers is late by as much."""

import asyncio
import time
from collections.abc import Callable

_INTERVAL_S = 0.05
_HALF_LIFE_S = 0.5  # the largest lag of the last second or so speaks for the next request


class LoopLag:
    """Measures one event loop from `start` to `stop`; `recent_s` may be read from any thread."""

    def __init__(self, on_lag: Callable[[float], object] | None = None) -> None:
        """`on_lag` is told each measurement, in seconds, some twenty a second."""
        self._on_lag = on_lag
        self._recent_s = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def recent_s(self) -> float:
        """The largest lag of late, in seconds: it fades by half in half a second. While the loop is stuck,
        since when it is."""
        return max(self._recent_s, time.monotonic() - self._due) if self._timer is not None else 0.0

    def start(self) -> None:
        """Measure the running loop from now on."""
        self._due = time.monotonic() + _INTERVAL_S
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._woken)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _woken(self) -> None:
        lag_s = max(0.0, time.monotonic() - self._due)
        self._recent_s = max(lag_s, self._recent_s * 0.5 ** ((_INTERVAL_S + lag_s) / _HALF_LIFE_S))
        if self._on_lag is not None:
            self._on_lag(lag_s)
        self.start()
