"""What of a kept sample goes up: the input where that may leave the node, else the features at a cut."""

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edge_node.model_slot import LoadedModel, ModelSlots
from edge_node.policy import Privacy, Route, may_leave
from edge_node.preferences import Upload
from edge_node.runner import Runner
from edge_node.sample_store import Form, Sample
from inference_core.errors import InvalidInput, ModelNotFound
from inference_core.preprocess import open_image
from inference_core.priority import Priority
from inference_core.tensors import Tensors, from_bytes

_RUN_S = 10.0  # that a run for this may wait behind those for devices


@dataclass(frozen=True, slots=True)
class Disclosed:
    """An encoded image, or tensors: those of the features at `cut`, without one the input."""

    image: bytes | None = None
    tensors: Tensors | None = None
    cut: str | None = None

    @property
    def bytes(self) -> int:
        """What it takes on the wire, about."""
        tensors = self.tensors or {}
        return len(self.image or b"") + sum(array.nbytes for array in tensors.values())


class Disclosure:
    """Makes what goes up, by the privacy of the node."""

    def __init__(
        self, slots: ModelSlots, runner: Runner, decoders: Executor, *, privacy: Privacy, max_pixels: int
    ) -> None:
        """`runner` makes features when no device waits; `decoders` decodes the images for that."""
        self._slots = slots
        self._runner = runner
        self._decoders = decoders
        self._privacy = privacy
        self._max_pixels = max_pixels

    async def of(self, sample: Sample) -> Disclosed | None:
        """What goes up of this sample; None where nothing may, or while its model is not served here from the
        same bundle. Raises `TandemError` where it cannot be made."""
        model = self._model(sample)
        if model is None or model.defaults.upload is Upload.NEVER:
            return None
        if may_leave(self._privacy, Route.INPUT):
            if sample.form is Form.IMAGE:
                return Disclosed(image=sample.payload)
            return Disclosed(tensors={model.manifest.input.name: _tensor(model, sample)})
        if may_leave(self._privacy, Route.FEATURES) and model.cuts:
            cut = model.defaults.cut or model.cuts[0]
            return Disclosed(tensors=await self._features(model, cut, sample), cut=cut)
        return None

    def _model(self, sample: Sample) -> LoadedModel | None:
        try:
            model = self._slots.get(sample.model)
        except ModelNotFound:
            return None
        return model if model.digest == sample.digest else None

    async def _features(self, model: LoadedModel, cut: str, sample: Sample) -> Tensors:
        if sample.form is Form.IMAGE:
            tensor = await asyncio.get_running_loop().run_in_executor(
                self._decoders, self._decoded, model, sample.payload
            )
        else:
            tensor = _tensor(model, sample)
        head = model.heads.get(cut)
        run = await self._runner.run(
            head or model.edge,
            {model.manifest.input.name: tensor},
            deadline=time.monotonic() + _RUN_S,
            priority=Priority.BACKGROUND,
        )
        # At the cut where the edge model exits there is no head: it gives the features itself.
        return run.outputs if head else model.read(run.outputs).features

    def _decoded(self, model: LoadedModel, image: bytes) -> NDArray[Any]:
        rules = model.manifest.preprocess
        if rules is None:
            raise InvalidInput(f"model {model.name!r} takes tensors, not images")
        return rules.convert(open_image(image, self._max_pixels))


def _tensor(model: LoadedModel, sample: Sample) -> NDArray[Any]:
    spec = model.manifest.input
    return from_bytes(spec.name, spec.datatype, (1, *spec.shape), sample.payload)
