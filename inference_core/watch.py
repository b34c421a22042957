"""Files that are taken again when they change, while what they held before goes on serving."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

INTERVAL_S = 0.5
Signature = tuple[tuple[int, int, int], ...]
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Settling:
    """Whether a set of files is to be read: after a change, and once two looks in a row saw the same.

    So a file that is being written, or the second of a pair that follows the first, is waited for.
    """

    def __init__(self, read: Signature) -> None:
        """`read` is the files' signature when they were last read."""
        self._read = read
        self._seen = read

    def look(self, signature: Signature) -> bool:
        """Whether to read now; it counts as read then."""
        settled, self._seen = signature == self._seen, signature
        if not settled or signature == self._read:
            return False
        self._read = signature
        return True


class Watch(Generic[_T]):
    """Looks at files twice a second and hands on what is read from them; lives on one event loop."""

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[], _T],
        use: Callable[[_T], object],
        on_look: Callable[[], object] = lambda: None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`read` may take its time, in a thread; `use` gets what it returns, on the loop. Where one of them
        raises `ValueError`, that is logged once, with `what` the files are, and nothing changes. `on_look` is
        called at each look."""
        self._what = what
        self._paths = tuple(paths)
        self._read = read
        self._use = use
        self._on_look = on_look
        self._interval_s = interval_s
        self._settling = Settling(signature(self._paths))
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._run(), name=f"watch {self._what}")

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self._look()
            except Exception:  # noqa: BLE001 - a look that fails must not be the last one
                _log.exception("%s could not be looked at", self._what)

    async def _look(self) -> None:
        self._on_look()
        if not self._settling.look(await asyncio.to_thread(signature, self._paths)):
            return
        try:
            self._use(await asyncio.to_thread(self._read))
        except ValueError as error:
            _log.error("%s changed and cannot be used, what was there before stays: %s", self._what, error)
        else:
            _log.info("%s changed and is in use: %s", self._what, ", ".join(map(str, self._paths)))


def signature(paths: Sequence[Path]) -> Signature:
    """What tells one state of the files from another: time, size and number of each, zeros while missing."""
    return tuple(_one(path) for path in paths)


def _one(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_size, found.st_ino
