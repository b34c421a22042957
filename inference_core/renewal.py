"""Credentials that are taken again when their files change, and that tell of their age."""

import logging
import time
from collections.abc import Callable

from inference_core.certificate import Credentials, Files, Validity, read
from inference_core.watch import INTERVAL_S, Watch

_log = logging.getLogger(__name__)


class Ageing:
    """Says once that a certificate is near its end, and once that it has ended."""

    def __init__(self, validity: Validity | None) -> None:
        self._validity = validity
        self._said = 0

    def look(self, now: float) -> str:
        """What is to be said at `now`, seconds since 1970; mostly nothing."""
        if self._validity is None:
            return ""
        ended = self._validity.ends <= now
        stage = 2 if ended else 1 if self._validity.is_near_its_end(now) else 0
        if stage <= self._said:
            return ""
        self._said = stage
        hours = abs(self._validity.ends - now) / 3600
        return f"ended {hours:.1f} hours ago" if ended else f"ends in {hours:.1f} hours"


class Renewal:
    """Files of credentials, and who uses what is in them."""

    def __init__(
        self,
        what: str,
        files: Files,
        use: Callable[[Credentials], object],
        *,
        clock: Callable[[], float] = time.time,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Reads the files and hands on what they hold: now, and from `start` on after each change. What
        cannot be used then is logged, and changes nothing. `what` they are is for the log.

        Raises `ValueError` that names the file which cannot be used.
        """
        self._what = what
        self._files = files
        self._clock = clock
        self._user = use
        self._ageing: dict[str, Ageing] = {}
        self._watch = Watch(what, files.paths, lambda: read(files), self._use, self._look, interval_s)
        self._use(read(files))

    def start(self) -> None:
        """Look at the files from now on."""
        self._look()
        self._watch.start()

    async def close(self) -> None:
        """Look at the files no more."""
        await self._watch.close()

    def _use(self, credentials: Credentials) -> None:
        self._user(credentials)
        self._ageing = {
            str(self._files.certificate): Ageing(credentials.own),
            str(self._files.authority): Ageing(credentials.others),
        }

    def _look(self) -> None:
        now = self._clock()
        for path, ageing in self._ageing.items():
            if said := ageing.look(now):
                _log.warning("%s: %s %s; put a renewed one in its place", self._what, path, said)
