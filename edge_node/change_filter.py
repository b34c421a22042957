"""Windows of sensors that hardly change: kept only where they differ from the last one that was kept."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class ChangeFilter:
    """Remembers one window per model, the baseline: the last that was kept, whichever device it came from."""

    def __init__(self) -> None:
        self._baselines: dict[str, NDArray[Any]] = {}

    def passes(self, model: str, window: NDArray[Any], threshold: float) -> bool:
        """Whether max |window - baseline| is over `threshold`, in the units of the window. A first one is,
        and so is one of another shape."""
        baseline = self._baselines.get(model)
        if baseline is None or baseline.shape != window.shape:
            return True
        # As floats: differences of unsigned numbers would wrap around.
        change = np.subtract(window, baseline, dtype=np.float64)
        return bool(np.abs(change).max(initial=0.0) > threshold)

    def kept(self, model: str, window: NDArray[Any]) -> None:
        """This window is the baseline from now on."""
        self._baselines[model] = window.copy()
