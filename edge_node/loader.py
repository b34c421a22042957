"""Loads the bundles of the settings beside the event loop, at the start and again at every reload."""

import asyncio
from collections.abc import Sequence

from edge_node.model_slot import LoadedModel, load_models
from edge_node.settings import Settings
from inference_core.errors import BundleError, ModelError
from inference_core.qualification import Qualification
from inference_core.qualify import Limits
from inference_core.watchdog import Watchdog
from inference_core.workers import Workers


class Loader:
    """One thread that loads; what it has qualified once it need not qualify again."""

    def __init__(self, settings: Settings, watchdog: Watchdog) -> None:
        self._settings = settings
        self._watchdog = watchdog
        limits = Limits(settings.qualify_memory_mb << 20, settings.qualify_s)
        self._qualification = Qualification(limits if settings.qualify_s else None)
        self._thread = Workers(1, "load")
        watchdog.on_stuck(self._thread.give_up)  # or else there would be no more loads

    async def load(self, loaded: Sequence[LoadedModel] = ()) -> list[LoadedModel]:
        """All models; see `load_models`, which raises `BundleError`."""
        work = self._thread.submit(
            load_models,
            self._settings,
            qualification=self._qualification,
            watchdog=self._watchdog,
            loaded=loaded,
        )
        try:
            return await asyncio.wrap_future(work)
        except ModelError as error:  # of a thread that was given up
            raise BundleError(f"the bundles cannot be loaded: {error}") from error

    def close(self) -> None:
        """Load no more; a load under way is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
