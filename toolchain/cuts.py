"""Where a model can be cut in two, and what each place costs: bytes on the way up, work on either side.

A place is a prefix of the nodes in their order; what it makes and the rest needs is its boundary. So
residual blocks and attention can be cut, too, with several tensors at the boundary where that is smaller.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import onnx
import zstandard
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from inference_core.engine import Engine
from inference_core.tensors import Tensors
from toolchain.progress import track
from toolchain.split import cut

KEPT = 4  # places at most
LEAST_TAIL = 0.01  # of the multiply-adds, for a tail worth asking the cloud for
_SAMPLES = 16  # on which compressed bytes are measured
_RUNS = 7  # of each half, whose median is taken
_ZSTD_LEVEL = 3
_SAVING = 0.9  # of the bytes of the best earlier place; a later one that saves less is not worth its work


@dataclass(frozen=True)
class Place:
    """A cut: what crosses it, and the share of the model's multiply-adds before it, 0 to 1.

    `shapes` are those of one sample.
    """

    name: str
    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    head_share: float

    @property
    def elements(self) -> int:
        """Numbers that one sample sends up."""
        return sum(int(np.prod(shape)) for shape in self.shapes)


@dataclass(frozen=True)
class Surveyed:
    """A place and what was measured of it: bytes of one sample at the boundary, milliseconds of the halves.

    `raw` is the size in FP32, `stored` as uint8, `compressed` as uint8 behind zstd, the mean over real
    samples. Milliseconds are medians of one sample in FP32 on one thread.
    """

    place: Place
    raw: int
    stored: int
    compressed: int
    head_ms: float
    tail_ms: float


def find_places(model: bytes, sample: NDArray[Any], *, all_sizes: bool = False) -> list[Place]:
    """Every place at which `model`, simplified and with one input, can be cut, from input to output.

    All that crosses a place is FP32 with the batch axis first. `sample` `[1, ...]` is any input.
    With `all_sizes` also those that send more bytes, as uint8, than the input tensor has.
    """
    loaded = onnx.load_from_string(model)
    seen = _see(loaded, sample)
    work = np.array([_multiply_adds(node, seen) for node in loaded.graph.node], np.float64)
    total = max(1.0, work.sum())
    found: dict[tuple[str, ...], Place] = {}
    for end, tensors in enumerate(_boundaries(loaded), start=1):
        shapes = [shape for tensor in tensors if (shape := seen.boundary(tensor)) is not None]
        if not tensors or len(shapes) < len(tensors):
            continue
        share = float(work[:end].sum() / total)
        name = f"cut{100 * share:.0f}"
        place = Place(name, tensors, tuple(shapes), share)
        if all_sizes or place.elements <= sample.nbytes:
            found[tensors] = place
    return _renamed(found.values())


def survey(model: bytes, places: Sequence[Place], samples: NDArray[Any]) -> list[Surveyed]:
    """`places` of `model`, measured on `samples` `[n, ...]`."""
    compressed = _compressed(model, places, samples[:_SAMPLES])
    result = []
    for place in track(places, "measuring the cuts"):
        head, tail, _ = cut(model, place.tensors)
        head_ms, features = _time(head, {Engine(model, name="model").inputs[0].name: samples[:1]})
        tail_ms, _ = _time(tail, features)
        result.append(
            Surveyed(place, 4 * place.elements, place.elements, compressed[place.tensors], head_ms, tail_ms)
        )
    return result


def best(surveyed: Sequence[Surveyed], count: int = KEPT) -> list[Surveyed]:
    """At most `count` of the places that no other beats in both bytes and work of the head.

    Bytes are the compressed ones and work is counted, not timed, so that the same samples choose the
    same places. Spread evenly over the logarithm of the bytes.
    """
    front: list[Surveyed] = []
    for one in sorted(surveyed, key=lambda one: (one.place.head_share, one.compressed)):
        if one.place.head_share <= 1 - LEAST_TAIL and (
            not front or one.compressed < _SAVING * front[-1].compressed
        ):
            front.append(one)
    if len(front) <= count:
        return front
    sizes = np.log([one.compressed for one in front])
    wanted = np.linspace(sizes[0], sizes[-1], count)
    return [front[at] for at in sorted({int(np.abs(sizes - want).argmin()) for want in wanted})]


def compressed_bytes(samples: NDArray[Any]) -> int:
    """Mean bytes of a sample of `samples` `[n, ...]` behind zstd: what escalating the tensor could send."""
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    few = samples[:_SAMPLES]
    return round(sum(len(compressor.compress(sample.tobytes())) for sample in few) / len(few))


def _boundaries(model: ModelProto) -> Iterator[tuple[str, ...]]:
    """For every prefix of the nodes: the tensors that it makes from the input and the rest needs."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    (value,) = [value for value in graph.input if value.name not in weights]
    last_use: dict[str, int] = {}
    for at, node in enumerate(graph.node):
        last_use.update(dict.fromkeys(node.input, at))
    output = graph.output[0].name
    live = {value.name: 0}
    for at, node in enumerate(graph.node):
        if live.keys() & set(node.input):
            live.update({name: at for name in node.output if name})
        live = {name: since for name, since in live.items() if last_use.get(name, -1) > at}
        crossing = tuple(sorted(live, key=lambda name: (live[name], name)))
        yield () if value.name in live or output in live else crossing


@dataclass(frozen=True)
class _Seen:
    """The shapes of a model's tensors by name: those of the weights, and in runs of two rows and of three."""

    weights: dict[str, tuple[int, ...]]
    two: dict[str, tuple[int, ...]]
    three: dict[str, tuple[int, ...]]
    real: frozenset[str]

    def boundary(self, name: str) -> tuple[int, ...] | None:
        """The shape of one sample of `name`, if it is FP32 and its first axis is the batch."""
        two, three = self.two.get(name, ()), self.three.get(name, ())
        fits = name in self.real and len(two) > 1 and (two[0], three[0]) == (2, 3) and two[1:] == three[1:]
        return two[1:] if fits else None

    def elements(self, name: str) -> float:
        """Numbers of one sample in `name`, wherever its batch axis is; none in what all samples share."""
        return float(np.prod(self.three[name]) - np.prod(self.two[name])) if name in self.two else 0.0

    def last_axis(self, name: str) -> int:
        """The size of the last axis of `name`."""
        return (self.two.get(name) or self.weights.get(name) or (1,))[-1]


def _see(model: ModelProto, sample: NDArray[Any]) -> _Seen:
    """Shapes as they are in a run, not as they are inferred."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    output = model.graph.output[0].name
    inner = _inner(model)
    asked.graph.output.extend(value for name, value in inner.items() if name != output)
    engine = Engine(asked.SerializeToString(), name="model")
    name = engine.inputs[0].name
    runs = []
    for rows in (2, 3):
        fed = np.repeat(sample, rows, axis=0)
        runs.append({**engine.run({name: fed}), name: fed})
    two, three = ({key: array.shape for key, array in run.items()} for run in runs)
    real = frozenset(key for key, array in runs[0].items() if array.dtype == np.float32)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return _Seen(weights, two, three, real)


def _inner(model: ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """What nodes make and an engine can give, as outputs by their names."""
    made = {name for node in model.graph.node for name in node.output}
    known = {TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8}
    return {
        value.name: value
        for value in model.graph.value_info
        if value.name in made and value.type.tensor_type.elem_type in known
    }


def _multiply_adds(node: NodeProto, seen: _Seen) -> float:
    """Multiply-adds of `node` for one sample; those of cheap operators count as none."""
    made, taken = seen.elements(node.output[0]), seen.elements(node.input[0]) if node.input else 0.0
    weights = [seen.weights.get(name, ()) for name in node.input[1:3]]
    if node.op_type == "Conv" and weights[0]:
        return made * float(np.prod(weights[0][1:]))
    if node.op_type == "ConvTranspose" and weights[0]:
        return taken * float(np.prod(weights[0][1:]))
    if node.op_type in ("MatMul", "Gemm"):
        return made * seen.last_axis(node.input[0])
    if node.op_type in ("LSTM", "GRU", "RNN") and all(weights):
        steps = taken / weights[0][-1]
        return steps * float(sum(np.prod(shape) for shape in weights))
    return 0.0


def _renamed(places: Iterable[Place]) -> list[Place]:
    """`places` in their order, with names that differ: those with the same share get a number."""
    times: Counter[str] = Counter()
    result = []
    for place in sorted(places, key=lambda place: place.head_share):
        times[place.name] += 1
        again = times[place.name]
        result.append(replace(place, name=f"{place.name}-{again}") if again > 1 else place)
    return result


def _compressed(model: bytes, places: Sequence[Place], samples: NDArray[Any]) -> dict[tuple[str, ...], int]:
    """Mean bytes of a sample at each place, as uint8 with its own range, behind zstd."""
    loaded = onnx.load_from_string(model)
    inner = _inner(loaded)
    wanted = sorted({tensor for place in places for tensor in place.tensors})
    loaded.graph.output.extend(inner[name] for name in wanted)
    engine = Engine(loaded.SerializeToString(), name="model")
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    totals = dict.fromkeys((place.tensors for place in places), 0)
    for sample in track(samples, "compressing features"):
        seen = engine.run({engine.inputs[0].name: sample[None]})
        stored = {name: _as_bytes(seen[name]) for name in wanted}
        for tensors in totals:
            totals[tensors] += len(compressor.compress(b"".join(stored[name] for name in tensors)))
    return {tensors: round(total / len(samples)) for tensors, total in totals.items()}


def _as_bytes(values: NDArray[Any]) -> bytes:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    return bytes(np.rint((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8).tobytes())


def _time(model: bytes, inputs: Tensors) -> tuple[float, Tensors]:
    """Median milliseconds of one run, and its outputs."""
    engine = Engine(model, name="half")
    outputs = engine.run(inputs)
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        engine.run(inputs)
        times.append(time.perf_counter() - start)
    return round(median(times) * 1000, 4), outputs
