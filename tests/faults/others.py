"""What else the machine was doing: beside other programs, rows about time say little."""

import os
import resource
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE, _WAITING = 3, 4  # of the first line of /proc/stat, where guests are counted twice, last
_COUNTED = 8


class Others:
    """Compares what all processors did with what this process and its children did; from its making on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy, self._own = _busy_s(), _own_s()

    @property
    def cores(self) -> float:
        """How many processors others kept busy, on average; children count once they have ended."""
        others_s = _busy_s() - self._busy - (_own_s() - self._own)
        return max(0.0, others_s) / (time.monotonic() - self._began)


def _busy_s() -> float:
    ticks = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]))[:_COUNTED]
    return (sum(ticks) - ticks[_IDLE] - ticks[_WAITING]) / _TICKS


def _own_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
