"""Running models over many samples: what they answer, how alike they answer, how long they take."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_core.engine import Engine
from inference_core.errors import ModelError
from inference_core.tensors import Tensors
from toolchain.progress import track

Logits = NDArray[np.float32]
Classes = NDArray[np.int64]

CPU = ("CPUExecutionProvider",)
_CHUNK_ELEMENTS = 1 << 19  # of the inputs, about, in one run
_CHUNK = 100  # samples in one run at most
_WARM_UP = 2  # turns that are not counted
_ROUNDS = 30
_BURST = 10  # counted calls of each model in a turn, at most
_BURST_S = 0.1  # no further one is begun after this
_TIMING_S = 20.0  # no further round is started after this


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: median and 99th percentile."""

    p50: float
    p99: float


def run(engine: Engine, inputs: Mapping[str, NDArray[Any]], what: str = "running a model") -> Tensors:
    """All outputs of `engine` for `inputs`, arrays of n rows each, taken a chunk at a time."""
    rows = len(next(iter(inputs.values())))
    elements = sum(array[:1].size for array in inputs.values())
    step = max(1, min(_CHUNK, _CHUNK_ELEMENTS // max(1, elements)))
    chunks = [
        engine.run({name: array[at : at + step] for name, array in inputs.items()})
        for at in track(range(0, rows, step), what)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def run_model(model: bytes, samples: NDArray[Any], threads: int = 1) -> NDArray[Any]:
    """The one output of `model`, the bytes of an ONNX file with one input, for `samples`.

    Raises `ModelError` when there are more inputs or outputs than one.
    """
    engine = Engine(model, name="model", threads=threads)
    if len(engine.inputs) != 1 or len(engine.outputs) != 1:
        raise ModelError(
            f"the model has {len(engine.inputs)} inputs and {len(engine.outputs)} outputs, not 1"
        )
    return run(engine, {engine.inputs[0].name: samples})[engine.outputs[0].name]


def accuracy(logits: Logits, classes: Classes) -> float:
    """The share of rows of `logits` `[n, classes]` whose largest entry is at `classes` `[n]`."""
    return float((logits.argmax(axis=1) == classes).mean())


def agreement(logits: Logits, others: Logits) -> float:
    """The share of rows on which both `[n, classes]` name the same class."""
    return accuracy(logits, others.argmax(axis=1))


def likeness(logits: Logits, others: Logits) -> tuple[float, float]:
    """How alike both `[n, classes]` are, for choosing the largest: agreement, then how near in the mean."""
    return agreement(logits, others), -float(np.abs(logits - others).mean())


def latencies(calls: Mapping[str, Callable[[], object]]) -> dict[str, Latency]:
    """How long each call takes.

    They take turns in bursts: so all meet the same load, and each finds its weights in the cache, as in a
    service that runs one model over and over. The first call of a burst only brings them there.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.monotonic() + _TIMING_S
    for turn in track(range(_WARM_UP + _ROUNDS), "timing"):
        for name, call in calls.items():
            call()
            burst = time.monotonic() + _BURST_S
            for _ in range(_BURST):
                if time.monotonic() > burst:
                    break
                start = time.perf_counter()
                call()
                if turn >= _WARM_UP:
                    times[name].append(time.perf_counter() - start)
        if turn > 2 * _WARM_UP and time.monotonic() > deadline:
            break
    return {name: _latency(values) for name, values in times.items()}


def _latency(seconds: list[float]) -> Latency:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return Latency(round(float(p50), 4), round(float(p99), 4))
