"""Loads the bundles of the settings beside the event loop, at the start and again at every reload."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor

from cloud_service.metrics import Metrics
from cloud_service.models import Served, load_models
from cloud_service.settings import Settings
from inference_core.qualification import Qualification
from inference_core.qualify import Limits
from inference_core.watchdog import Watchdog
from inference_core.workers import Workers


class Loader:
    """One thread that loads; what it has qualified once it need not qualify again."""

    def __init__(self, settings: Settings, metrics: Metrics, runs: Executor, watchdog: Watchdog) -> None:
        """`runs` is where the models will run."""
        self._settings = settings
        self._metrics = metrics
        self._runs = runs
        self._watchdog = watchdog
        limits = Limits(settings.qualify_memory_mb << 20, settings.qualify_s)
        self._qualification = Qualification(limits if settings.qualify_s else None)
        self._thread = Workers(1, "load")

    async def load(self, loaded: Sequence[Served] = ()) -> list[Served]:
        """All models; see `load_models`, which raises `BundleError`."""
        work = self._thread.submit(
            load_models,
            self._settings,
            self._metrics,
            self._runs,
            time.monotonic,
            qualification=self._qualification,
            watchdog=self._watchdog,
            loaded=loaded,
        )
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Load no more; a load under way is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
