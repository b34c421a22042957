"""How many files and sockets this process may have open, and what that leaves for connections."""

import contextlib
import logging
import resource
import sys

_OWN = 256  # what a service has open itself, with connections that are being turned away
_ANYWHERE = 10_240  # OPEN_MAX of macOS, which refuses more although its hard limit is none
_SERVERS = 2  # HTTP and gRPC, each with as many connections
_log = logging.getLogger(__name__)


def connections_within(wanted: int, setting: str) -> int:
    """How many connections each server may have: `wanted`, or fewer where the process may not open so many.

    Raises the soft limit of open files (`ulimit -n`) as far as needed and allowed; where that is not enough,
    a warning names `setting` and what it is taken as.
    """
    needed = _OWN + _SERVERS * wanted
    soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in _limits())
    for most in (needed, min(needed, _ANYWHERE)):  # the second where a system takes less than it tells
        if soft < most and soft < hard:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, hard), _limits()[1]))
                soft = min(most, hard)
    if soft >= needed:
        return wanted
    room = max(1, (soft - _OWN) // _SERVERS)
    _log.warning(
        "%s: %d connections of HTTP and as many of gRPC need %d open files, this process may have %d "
        "(ulimit -n): it is taken as %d",
        setting, wanted, needed, soft, room,
    )  # fmt: skip
    return room


def _limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)
