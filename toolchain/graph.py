"""The user's model: read, checked, simplified, and brought to the one shape that the other stages take.

That is one input `[batch, ...]`, one output of logits `[batch, classes]`, a batch axis of any size, and
opset 13 or later.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, version_converter

from inference_core import trust
from inference_core.errors import BundleError, InvalidInput, ModelError
from inference_core.manifest import TensorInfo
from inference_core.qualify import qualify
from toolchain.batch import freeze_reshapes, open_batch
from toolchain.nodes import all_names, constants, drop_unused, free_name, name_nodes, rename, used_names
from toolchain.trial import Trial, trial_rows

OLDEST_OPSET = 11
MAX_MODEL_BYTES = (1 << 31) - 1  # of a protobuf message
_DOMAINS = "ai.onnx, ai.onnx.ml and com.microsoft"
_QDQ_OPSET = 13  # from which QuantizeLinear knows channels
_MODERN_OPSET = 17
_DATATYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.INT64: "INT64",
    TensorProto.INT32: "INT32",
    TensorProto.UINT8: "UINT8",
}


@dataclass(frozen=True)
class Graph:
    """A model that was checked: `data` is its ONNX file, `notes` say what was changed, one line each.

    `parameters` counts the elements of its weights.
    """

    data: bytes
    input: TensorInfo
    output: TensorInfo
    opset: int
    nodes: int
    parameters: int
    notes: tuple[str, ...]


def read_model(path: Path) -> bytes:
    """The bytes of the ONNX file `path`. Raises `InvalidInput` when there is none or it is too large."""
    if not path.is_file():
        raise InvalidInput(f"{path}: {'a folder, not an ONNX file' if path.is_dir() else 'no such file'}")
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise InvalidInput(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_MODEL_BYTES}")
    return path.read_bytes()


def check(model: bytes, name: str, shape: tuple[int, ...] | None = None) -> Graph:
    """`model`, the bytes of any exporter's ONNX file, as the other stages take it.

    `shape` fills open axes of the input behind the batch axis. A Softmax at the end is taken off, since
    calibration wants logits. Raises `ModelError`, one line that begins with `name`, for what cannot be
    taken: external data, operators of unknown domains, no opset or one before `OLDEST_OPSET`, several
    inputs or outputs, no batch axis or two, weights that are not finite, and for a model that does not
    run within the limits of `qualify`, or not row by row.
    """
    try:
        return _checked(model, name, shape)
    except (ModelError, BundleError) as error:
        text = " ".join(str(error).split())
        raise ModelError(text if text.startswith(f"{name}:") else f"{name}: {text}") from error


def _checked(model: bytes, name: str, shape: tuple[int, ...] | None) -> Graph:
    loaded = _parse(model, name)
    opset = _check_opset(loaded)
    _check_weights(loaded.graph)
    notes: list[str] = []
    info = _check_input(loaded.graph, shape, notes)
    _check_output(loaded.graph)
    fixed = open_batch(loaded.graph)
    trial = Trial(name, info, fixed)
    answers = trial.first(model)  # before anything of it is computed in this process
    try:
        if fixed:
            notes.append(f"batch axis of size {fixed} opened")
        if opset < _QDQ_OPSET:
            loaded = _upgrade(loaded, opset, notes)
        drop_unused(loaded.graph)
        before = len(loaded.graph.node)
        loaded = onnx.load_from_string(fold(loaded.SerializeToString()))
        stripped = _strip_softmax(loaded.graph, notes)
        frozen = freeze_reshapes(
            loaded, lambda data, rows: qualify(data, {info.name: trial_rows(info, rows)}, name=name).outputs
        )
        if frozen:
            notes.append(f"{frozen} computed shapes written as constants")
        data = fold(loaded.SerializeToString())
        output = trial.last(data, answers, stripped=stripped)
    except ModelError as error:
        if not fixed:
            raise
        raise ModelError(
            f"the batch axis has a fixed size of {fixed} that the graph depends on; export it with an open "
            f"one ({str(error).removeprefix(f'{name}: ')})"
        ) from error
    return _described(data, info, output, before, notes)


def align(graph: Graph, other: Graph) -> Graph:
    """`graph` with its tensors named as those of `other`, for which it stands in.

    Raises `ModelError` when it takes or gives something else.
    """
    for mine, theirs, what in ((graph.input, other.input, "takes"), (graph.output, other.output, "gives")):
        if (mine.datatype, mine.shape) != (theirs.datatype, theirs.shape):
            raise ModelError(
                f"the edge model {what} {mine.datatype} {list(mine.shape)}, the full model "
                f"{theirs.datatype} {list(theirs.shape)}"
            )
    names = {graph.input.name: other.input.name, graph.output.name: other.output.name}
    loaded = onnx.load_from_string(graph.data)
    taken = all_names(loaded.graph) - names.keys()
    names |= {name: free_name(f"{name}.inner", taken) for name in taken & set(names.values())}
    rename(loaded.graph, names)
    return replace(graph, data=loaded.SerializeToString(), input=other.input, output=other.output)


def fold(model: bytes) -> bytes:
    """`model` with constants folded, batch normalisation folded into weights, and every shape inferred.

    Every node gets a name of its own, by which it can be left out of quantization.
    """
    loaded = onnx.load_from_string(model)
    with quiet():
        try:
            slimmed = onnxslim.slim(loaded)
            inferred = onnx.shape_inference.infer_shapes(slimmed, strict_mode=True)
        except Exception as error:
            raise ModelError(f"the model cannot be simplified: {_first_line(error)}") from error
    name_nodes(inferred.graph)
    result: bytes = inferred.SerializeToString()
    return result


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries print their steps, and log advice that is already followed here."""
    root: Any = logging.getLogger()
    level, handlers, disabled = root.level, list(root.handlers), root.manager.disable
    logging.disable(logging.WARNING)  # which no set-up of logging inside undoes
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        root.handlers[:] = handlers


def _parse(model: bytes, name: str) -> ModelProto:
    try:
        trust.check_model_file(name, model)
    except BundleError as error:
        if "not an ONNX file" in str(error):
            raise
        raise ModelError(f"{error}; export it as one file, with operators of {_DOMAINS} alone") from error
    try:
        loaded = onnx.load_from_string(model)
        if any(_is_standard(entry.domain) for entry in loaded.opset_import):
            onnx.checker.check_model(loaded)
    except Exception as error:
        raise ModelError(f"not a valid ONNX model: {_first_line(error)}") from error
    return loaded


def _is_standard(domain: str) -> bool:
    return domain in ("", "ai.onnx")


def _check_opset(model: ModelProto) -> int:
    found = [entry.version for entry in model.opset_import if _is_standard(entry.domain)]
    advice = f"export it with opset {_QDQ_OPSET} or later"
    if not found:
        raise ModelError(f"names no opset of the standard operators; {advice}")
    if found[0] < OLDEST_OPSET:
        raise ModelError(f"opset {found[0]} is older than {OLDEST_OPSET}; {advice}")
    return int(found[0])


def _check_weights(graph: GraphProto) -> None:
    """No NaN anywhere. An infinity among zeros only is a mask, or a bound of Clip, but no weight."""
    for name, values in constants(graph):
        finite = np.isfinite(values)
        if np.isnan(values).any() or not (finite.all() or (values[finite] == 0).all()):
            raise ModelError(f"weight {name!r} holds a NaN or an infinity; train or export it again")


def _check_input(graph: GraphProto, shape: tuple[int, ...] | None, notes: list[str]) -> TensorInfo:
    """The one input; its open axes behind the first are set to `shape` in place."""
    weights = {tensor.name for tensor in graph.initializer}  # which old exporters call inputs, too
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"takes {len(inputs)} inputs ({names}), not 1; export it with one")
    (value,) = inputs
    kind = value.type.tensor_type
    if kind.elem_type not in _DATATYPES:
        given = TensorProto.DataType.Name(kind.elem_type)
        known = ", ".join(_DATATYPES.values())
        raise ModelError(f"input {value.name!r} is {given}, not one of {known}; cast it inside the graph")
    axes = list(kind.shape.dim)
    if not kind.HasField("shape") or len(axes) < 2:
        raise ModelError(
            f"input {value.name!r} is {_shown(value)}, so there is no batch axis before others; export it "
            "with one"
        )
    if shape is not None:
        if len(shape) != len(axes) - 1 or any(
            axis.dim_value not in (0, size) for axis, size in zip(axes[1:], shape, strict=True)
        ):
            raise ModelError(
                f"input {value.name!r} is {_shown(value)}, which does not fit --input-shape {shape}"
            )
        for axis, size in zip(axes[1:], shape, strict=True):
            if axis.dim_value != size:
                notes.append(f"axis {axis.dim_param or '?'!r} of the input set to {size}")
            axis.dim_value = size
    open_axes = [at for at, axis in enumerate(axes) if at and axis.dim_value < 1]
    if open_axes:
        raise ModelError(
            f"input {value.name!r} is {_shown(value)}: more axes than the batch axis, the first, are open; "
            "export it with fixed ones, or give --input-shape"
        )
    sizes = tuple(axis.dim_value for axis in axes[1:])
    return TensorInfo(name=value.name, datatype=_DATATYPES[kind.elem_type], shape=sizes)


def _shown(value: ValueInfoProto) -> str:
    axes = [str(axis.dim_value or axis.dim_param or "?") for axis in value.type.tensor_type.shape.dim]
    return f"[{', '.join(axes)}]"


def _check_output(graph: GraphProto) -> None:
    if len(graph.output) != 1:
        names = ", ".join(value.name for value in graph.output)
        raise ModelError(f"gives {len(graph.output)} outputs ({names}), not 1; export the logits alone")


def _strip_softmax(graph: GraphProto, notes: list[str]) -> bool:
    """Takes off a Softmax over the classes that ends the folded `graph`; returns whether there was one."""
    last = next((node for node in graph.node if graph.output[0].name in node.output), None)
    if last is None or last.op_type != "Softmax":
        return False
    logits, axes = last.input[0], [attribute.i for attribute in last.attribute if attribute.name == "axis"]
    others = [node for node in graph.node if node is not last]
    made = any(logits in node.output for node in others)
    if axes not in ([], [-1], [1]) or not made or logits in used_names(others):
        return False
    graph.node.remove(last)
    del graph.value_info[:]
    rename(graph, {logits: graph.output[0].name})
    notes.append("Softmax at the end taken off: calibration works on logits")
    return True


def _upgrade(model: ModelProto, opset: int, notes: list[str]) -> ModelProto:
    try:
        upgraded = version_converter.convert_version(model, _MODERN_OPSET)
    except Exception as error:
        raise ModelError(
            f"opset {opset} cannot be raised to {_MODERN_OPSET}, export it with that: {_first_line(error)}"
        ) from error
    notes.append(f"opset {opset} raised to {_MODERN_OPSET}")
    return upgraded


def _described(data: bytes, info: TensorInfo, output: TensorInfo, before: int, notes: list[str]) -> Graph:
    loaded = onnx.load_from_string(data)
    nodes = len(loaded.graph.node)
    if nodes != before:
        notes.append(f"{before} nodes simplified to {nodes}")
    opset = next(entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx"))
    parameters = sum(int(np.prod(tensor.dims)) for tensor in loaded.graph.initializer)
    return Graph(data, info, output, opset, nodes, parameters, tuple(notes))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
