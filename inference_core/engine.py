"""One ONNX Runtime session: loaded from bytes that are already trusted, warmed up, run."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from inference_core.errors import InvalidInput, ModelError
from inference_core.tensors import DATATYPES, Tensors

_ORT_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
_QUIET = 3  # ONNX Runtime's own log: errors only; ours says the rest


@dataclass(frozen=True)
class TensorSpec:
    """Name, OIP datatype and shape of one input or output; -1 stands for a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this `shape` is one of these."""
        return len(shape) == len(self.shape) and all(
            want in (-1, have) for want, have in zip(self.shape, shape, strict=True)
        )

    def check(self, array: NDArray[np.generic]) -> None:
        """Raise `InvalidInput` unless `array` has this dtype, fits this shape and is finite."""
        if array.dtype != DATATYPES[self.datatype]:
            raise InvalidInput(f"input {self.name!r}: datatype must be {self.datatype}, got {array.dtype}")
        if not self.fits(array.shape):
            raise InvalidInput(
                f"input {self.name!r}: shape must be {list(self.shape)}, got {list(array.shape)}"
            )
        if array.dtype.kind == "f" and not _finite(array):
            raise InvalidInput(f"input {self.name!r}: holds a NaN or an infinity")


def _finite(array: NDArray[Any]) -> bool:
    """Whether no value is a NaN or an infinity: the sum of squares tells, unless it is itself too large."""
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


class Engine:
    """A loaded model. `run` may be called from several threads at once."""

    def __init__(
        self,
        model: bytes,
        *,
        name: str,
        threads: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """Load `model`, the bytes of an ONNX file.

        `threads` is the number of threads one run may use; `providers` are ONNX Runtime's execution
        providers in order of preference, of which those present are used. Raises `ModelError` when
        none is present or ONNX Runtime refuses the model.
        """
        present = [p for p in providers if p in ort.get_available_providers()]
        if not present:
            raise ModelError(
                f"{name}: none of the providers {list(providers)} is present, "
                f"only {ort.get_available_providers()}"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        # ONNX Runtime would tell by the bytes and take its own format too, which `trust` has not checked.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # Spinning threads would take the core that the service answers on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(model, options, providers=present)
            self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
            self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
            self._wanted = {spec.name: spec for spec in self.inputs}
            self._names = [spec.name for spec in self.outputs]
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{name}: ONNX Runtime cannot load it: {error}") from error
        self.name = name
        self.providers = tuple(present)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """Outputs by name for `inputs` by name.

        Raises what `check` raises, and `ModelError` when the run itself fails.
        """
        self.check(inputs)
        return self.compute(inputs)

    def compute(self, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """`run` for inputs that have been checked already."""
        try:
            values = self._session.run(self._names, inputs)
        except Exception as error:
            raise ModelError(f"{self.name}: the run failed: {error}") from error
        return dict(zip(self._names, values, strict=True))

    def check(self, inputs: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise `InvalidInput` for an input that is missing, unknown or does not fit its spec."""
        for name in inputs:
            if name not in self._wanted:
                raise InvalidInput(f"unknown input {name!r}; model {self.name!r} takes {list(self._wanted)}")
        for name, spec in self._wanted.items():
            if name not in inputs:
                raise InvalidInput(f"input {name!r} is missing")
            spec.check(inputs[name])

    def warm_up(self, inputs: Mapping[str, NDArray[np.generic]], runs: int = 5) -> float:
        """Run `inputs` a few times; the slowest run after the first, in seconds."""
        return self.time_runs(inputs, runs)[-1]

    def time_runs(self, inputs: Mapping[str, NDArray[np.generic]], runs: int = 5) -> list[float]:
        """The seconds of some runs of `inputs`, fastest first; one before them is not counted."""
        self.run(inputs)
        seconds = []
        for _ in range(max(1, runs)):
            start = time.perf_counter()
            self.run(inputs)
            seconds.append(time.perf_counter() - start)
        return sorted(seconds)


def _spec(node: ort.NodeArg) -> TensorSpec:
    datatype = _ORT_DATATYPES.get(node.type)
    if datatype is None:
        raise ModelError(f"tensor {node.name!r} has type {node.type}, which is not served")
    shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in node.shape)
    return TensorSpec(node.name, datatype, shape)
