"""Which model files may be run in this process: those that have been run well in one of their own."""

import os
from collections.abc import Sequence

from inference_core.bundle import Bundle, File
from inference_core.errors import BundleError, ModelError
from inference_core.qualify import Limits, qualify_all
from inference_core.workers import Workers


class Qualification:
    """Remembers, for the life of the process, the digests of the files that have passed."""

    def __init__(self, limits: Limits | None) -> None:
        """`limits` are those of each bundle's process; None lets every file pass, without a run."""
        self._limits = limits
        self._passed: set[str] = set()

    def check(self, wanted: Sequence[tuple[Bundle, Sequence[File]]]) -> None:
        """Run these files of these bundles once, each bundle's in a process of its own beside the others.

        Raises `BundleError`, which names the first file that does not pass and what is wrong with it.
        """
        if self._limits is None:
            return
        with Workers(os.cpu_count() or 1, "qualify") as pool:
            for passed in pool.map(self._check, wanted):
                self._passed |= passed

    def _check(self, wanted: tuple[Bundle, Sequence[File]]) -> set[str]:
        bundle, files = wanted
        new = {file.sha256: file for file in files if file.sha256 not in self._passed}
        if not new:
            return set()
        trials = [bundle.trial(file) for file in new.values()]
        try:
            qualify_all(trials, self._limits)
        except ModelError as error:
            reason = str(error)
            # What the engine refuses of an input names the input, not the file.
            named = any(reason.startswith(trial.name) for trial in trials)
            raise BundleError(reason if named else f"{bundle.folder}: {reason}") from error
        return set(new)
