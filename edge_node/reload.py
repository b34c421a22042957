"""The hot swap: the bundles are loaded again, checked in full, and then served, by one attribute.

A request that has begun ends on the model that it took; an engine goes when the last request lets go of it.
"""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from edge_node.metrics import Metrics
from edge_node.model_slot import LoadedModel, ModelSlots
from inference_core.errors import BundleError, NotReady, TandemError
from inference_core.vitals import Vitals

Load = Callable[[Sequence[LoadedModel]], Awaitable[list[LoadedModel]]]
_log = logging.getLogger(__name__)


class Reload:
    """Swaps what the slots serve for what the bundles' folders hold now; one swap at a time."""

    def __init__(
        self,
        slots: ModelSlots,
        load: Load,
        metrics: Metrics,
        vitals: Vitals,
        on_swap: Callable[[Collection[str]], object] = lambda _: None,
    ) -> None:
        """`load` gives all models, those among its argument that are still the same as they are. It raises
        `BundleError`, and then nothing changes. `on_swap` is told the digests that are served from now on."""
        self._slots = slots
        self._load = load
        self._metrics = metrics
        self._vitals = vitals
        self._on_swap = on_swap
        self._under_way = False
        self._asked: asyncio.Task[None] | None = None

    async def start(self) -> list[str]:
        """The first load; the names of what is served from then on. Raises `BundleError`."""
        self._swap([], await self._load([]))
        # What is there now stays: the collector need not look through it again in the middle of a request.
        gc.collect()
        gc.freeze()
        return [model.name for model in self._slots.all()]

    async def run(self) -> dict[str, Any]:
        """Reload; what is served then, and whether anything is new.

        Raises `BundleError` where a bundle is refused: what served goes on serving. Raises `NotReady` while
        another reload is under way, and before and after the node serves.
        """
        if self._under_way or not self._slots.ready:
            raise NotReady("a reload is under way, or the node is starting or stopping")
        self._under_way = True
        before = self._slots.all()
        try:
            models = await self._load(before)
            if not self._slots.ready:
                raise NotReady("the node is stopping")
            swapped = self._swap(before, models)
        except BundleError as error:
            self._vitals.model_swaps.labels("refused").inc()
            _log.error("reload refused, what serves goes on serving: %s", error)
            raise
        finally:
            self._under_way = False
        result = "ok" if swapped else "unchanged"
        self._vitals.model_swaps.labels(result).inc()
        served = [f"{model.name} version {model.manifest.version}" for model in models]
        _log.info("reloaded, %s: %s", ", ".join(swapped) or "nothing is new", ", ".join(served))
        return {
            "result": result,
            "models": [
                {"name": model.name, "version": model.manifest.version, "digest": model.digest}
                for model in models
            ],
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

    def _swap(self, before: Sequence[LoadedModel], models: list[LoadedModel]) -> list[str]:
        """Serve `models`; what has changed, in words."""
        stay = {id(model) for model in models} & {id(model) for model in before}
        old = [model for model in before if id(model) not in stay]
        new = [model for model in models if id(model) not in stay]
        self._slots.load(models)
        self._on_swap({model.digest for model in models})
        for model in old:
            self._metrics.remove_model(model)
        for model in new:
            self._metrics.add_model(model)
            self._vitals.add_model(model.name)
        gone = {model.name for model in old} - {model.name for model in new}
        return [f"new {model.name} {model.digest[:12]}" for model in new] + [
            f"without {n}" for n in sorted(gone)
        ]
