"""One ONNX Runtime session: loaded from bytes that are already trusted, warmed up, run, made anew.

An engine whose runs fail or are ended again and again gets a new session, in the background. Its callers are
told each time; what ONNX Runtime blames on the data is theirs alone, and counts for nothing.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from inference_core.errors import InvalidInput, ModelError, NotReady, TandemError
from inference_core.tensors import DATATYPES, Tensors
from inference_core.watchdog import Event, Run, Watchdog

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
_QUIET = 4  # ONNX Runtime's own log: what ends the process only; ours says the rest
RESTART_AFTER = 3  # runs in a row that failed or were ended
_RESTART_EVERY_S = 10.0  # at most; a new session that fails as well does not help
# What ONNX Runtime says of itself before it says what is wrong.
_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+?:\d+ (?:[^()]*\([^()]*\) )?")
_CAUSE = re.compile(r".*Status Message: ", re.DOTALL)
_log = logging.getLogger(__name__)


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
        model_name: str = "",
        watchdog: Watchdog | None = None,
        source: Callable[[], bytes] | None = None,
    ) -> None:
        """Load `model`, the bytes of an ONNX file.

        `threads` is the number of threads one run may use; `providers` are ONNX Runtime's execution
        providers in order of preference, of which those present are used. `watchdog` ends runs that take too
        long and counts them under `model_name`; `source` gives the bytes once more when a new session is
        needed, and without it there never is one. Raises `ModelError` when no provider is present or ONNX
        Runtime refuses the model.
        """
        present = [p for p in providers if p in ort.get_available_providers()]
        if not present:
            raise ModelError(
                f"{name}: none of the providers {list(providers)} is present, "
                f"only {ort.get_available_providers()}"
            )
        self.name = name
        self.model = model_name or name
        self.providers = tuple(present)
        self.usual_s = 0.0
        self._threads = threads
        self._watchdog = watchdog or Watchdog(math.inf)
        self._source = source
        self._failures = 0
        self._restarting = threading.Lock()
        self._not_before = 0.0
        try:
            self._session = self._open(model)
            self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
            self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
            self._wanted = {spec.name: spec for spec in self.inputs}
            self._names = [spec.name for spec in self.outputs]
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{name}: ONNX Runtime cannot load it: {_said(error)}") from error

    def _open(self, model: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        # ONNX Runtime would tell by the bytes and take its own format too, which `trust` has not checked.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # Spinning threads would take the core that the service answers on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return ort.InferenceSession(model, options, providers=list(self.providers))

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """Outputs by name for `inputs` by name.

        Raises what `check` and `compute` raise.
        """
        self.check(inputs)
        return self.compute(inputs)

    def compute(self, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """`run` for inputs that have been checked already.

        Raises `InvalidInput` when the model cannot take these values, `ModelError` when the run fails or is
        ended by the watchdog, and `NotReady` while a new session is being made.
        """
        if self.restarting:
            raise NotReady(f"model {self.model!r} is being restarted")
        run = self._watchdog.begin(self)
        try:
            values = self._session.run(self._names, inputs, run.options)
        except Exception as error:
            raise self._failed(error, run) from error
        finally:
            self._watchdog.end(run)
        self._failures = 0
        return dict(zip(self._names, values, strict=True))

    @property
    def restarting(self) -> bool:
        """Whether a new session is being made."""
        return self._restarting.locked()

    def stuck(self) -> None:
        """A run of this engine cannot be ended: the next ones get a session of their own."""
        self._restart()

    def _failed(self, error: Exception, run: Run) -> TandemError:
        """What the caller is told of a run that ended in `error`."""
        if isinstance(error, InvalidArgument):
            return InvalidInput(
                f"model {self.model!r} cannot take these values: {_CAUSE.sub('', _said(error))}"
            )
        self._failures += 1
        if self._failures >= RESTART_AFTER:
            self._restart()
        if run.told:
            return ModelError(f"{self.name}: the run was ended after {run.told - run.since:.1f} s")
        return ModelError(f"{self.name}: the run failed: {_said(error)}")

    def _restart(self) -> None:
        """Make a new session in the background; not while one is being made, and not too often."""
        if self._source is None or time.monotonic() < self._not_before:
            return
        if self._restarting.acquire(blocking=False):
            thread = threading.Thread(target=self._renew, args=(self._source,), name="restart", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no threads are left: the next failure tries again
                self._restarting.release()
                _log.error("%s of %s cannot be restarted: %s", self.name, self.model, error)

    def _renew(self, source: Callable[[], bytes]) -> None:
        _log.error("%s of %s fails or hangs; restarting its engine", self.name, self.model)
        try:
            self._session = self._open(source())
        except Exception as error:  # noqa: BLE001 - whatever it is, the old session stays
            _log.error("%s of %s cannot be loaded again, going on as it is: %s", self.name, self.model, error)
        else:
            self._failures = 0
            self._watchdog.tell(Event.RESTARTED, self.model)
            _log.info("%s of %s: the engine is back", self.name, self.model)
        finally:
            self._not_before = time.monotonic() + _RESTART_EVERY_S
            self._restarting.release()

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
        self.usual_s = max(seconds)
        return sorted(seconds)


def _said(error: Exception) -> str:
    """What ONNX Runtime says is wrong, on one line and without the names of its own functions."""
    return " ".join(_NOISE.sub("", str(error)).split())


def _spec(node: ort.NodeArg) -> TensorSpec:
    datatype = _ORT_DATATYPES.get(node.type)
    if datatype is None:
        raise ModelError(f"tensor {node.name!r} has type {node.type}, which is not served")
    shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in node.shape)
    return TensorSpec(node.name, datatype, shape)
