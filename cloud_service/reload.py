"""The hot swap: the bundles are loaded again, checked in full, and then served, by one attribute.

A call that has begun ends on the model that it took, also one that waits for its run; an engine goes when the
last call lets go of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cloud_service.metrics import Metrics
from cloud_service.models import Models, Served
from inference_core.errors import BundleError, NotReady, TandemError
from inference_core.vitals import Vitals

Load = Callable[[Sequence[Served]], Awaitable[list[Served]]]
_log = logging.getLogger(__name__)


class Reload:
    """Swaps what is served for what the bundles' folders hold now; one swap at a time."""

    def __init__(self, models: Models, load: Load, metrics: Metrics, vitals: Vitals) -> None:
        """`load` gives all models, those among its argument that are still the same as they are. It raises
        `BundleError`, and then nothing changes."""
        self._models = models
        self._load = load
        self._metrics = metrics
        self._vitals = vitals
        self._under_way = False
        self._asked: asyncio.Task[None] | None = None

    async def start(self) -> list[str]:
        """The first load; the names of what is served from then on. Raises `BundleError`."""
        self._swap([], await self._load([]))
        return [served.name for served in self._models.all()]

    async def run(self) -> dict[str, Any]:
        """Reload; what is served then, and whether anything is new.

        Raises `BundleError` where a bundle is refused: what served goes on serving. Raises `NotReady` while
        another reload is under way, and before and after the service serves.
        """
        if self._under_way or not self._models.ready:
            raise NotReady("a reload is under way, or the service is starting or stopping")
        self._under_way = True
        before = self._models.all()
        try:
            served = await self._load(before)
            if not self._models.ready:
                raise NotReady("the service is stopping")
            swapped = self._swap(before, served)
        except BundleError as error:
            self._vitals.model_swaps.labels("refused").inc()
            _log.error("reload refused, what serves goes on serving: %s", error)
            raise
        finally:
            self._under_way = False
        result = "ok" if swapped else "unchanged"
        self._vitals.model_swaps.labels(result).inc()
        names = dict.fromkeys(f"{one.engine.model} version {one.version}" for one in served)
        _log.info("reloaded, %s: %s", ", ".join(swapped) or "nothing is new", ", ".join(names))
        return {
            "result": result,
            "models": [{"name": one.name, "version": one.version, "digest": one.digest} for one in served],
        }

    def ask(self) -> None:
        """Reload in the background; the log says what came of it."""
        self._asked = asyncio.get_running_loop().create_task(self._run_asked(), name="reload")

    async def _run_asked(self) -> None:
        try:
            await self.run()
        except BundleError:
            return  # has been logged
        except TandemError as error:
            _log.warning("not reloaded: %s", error)

    def _swap(self, before: Sequence[Served], served: list[Served]) -> list[str]:
        """Serve `served`; what has changed, in words."""
        stay = {id(one) for one in served} & {id(one) for one in before}
        old = [one for one in before if id(one) not in stay]
        new = [one for one in served if id(one) not in stay]
        self._models.load(served)
        names = {one.name for one in new}
        for one in old:
            one.batcher.retire()
            if one.precision:
                self._metrics.remove_model(
                    one.name, one.version, one.precision, one.digest, gone=one.name not in names
                )
        for one in new:
            self._vitals.add_model(one.engine.model)
        gone = {one.name for one in old} - names
        return [f"new {one.name} {one.digest[:12]}" for one in new] + [f"without {n}" for n in sorted(gone)]
