"""A complete bundle made small: real ONNX files, golden outputs and a manifest, in about 20 ms.

The model names the strongest colour of an 8x8 RGB image. With `r`, `g`, `b` the means of the channels in
[0, 1], the logits are `gain * (r, g, b) + bias`. The edge has no bias and the full model favours blue by 5,
so one colour decides what happens (defaults: gain 20, threshold 0.8, temperature 1):

    constant           pixel             edge says             full says
    SURE               (255, 0, 0)       red, confidence 1.00  red
    UNSURE             (130, 128, 128)   red, 0.37             blue: escalating changes the answer
    UNSURE_AND_RIGHT   (128, 128, 130)   blue, 0.37            blue: escalating confirms it
    SURE_BUT_WRONG     (179, 128, 128)   red, 0.96             blue: what the threshold lets through

Both cuts send uint8 in steps of 1/255 and are exact for plain colours: `pixels` (192 bytes, just behind the
input) and `means` (3 bytes, behind the pooling). An early exit at one of them says what the edge says.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from inference_core.engine import Engine
from inference_core.trust import sha256

Color = tuple[int, int, int]
Parts = list[onnx.NodeProto | onnx.TensorProto]
Value = tuple[str, type[np.generic], tuple[int, ...]]

SURE: Color = (255, 0, 0)
UNSURE: Color = (130, 128, 128)
UNSURE_AND_RIGHT: Color = (128, 128, 130)
SURE_BUT_WRONG: Color = (179, 128, 128)

LABELS = ("red", "green", "blue")
SIDE = 8
CUTS = ("pixels", "means")
GOLDEN = "golden.npz"
EXIT = "edge-exit.onnx"
FULL_BIAS = (0.0, 0.0, 5.0)

_STEP = 1 / 255
_PIXELS: tuple[int, ...] = (3, SIDE, SIDE)
_MEANS: tuple[int, ...] = (3,)
_INPUT: Value = ("input", np.float32, _PIXELS)
_LOGITS: Value = ("logits", np.float32, (len(LABELS),))
_FEATURES: dict[str, Value] = {
    "pixels": ("features", np.uint8, _PIXELS),
    "means": ("features", np.uint8, _MEANS),
}


def picture(color: Color, form: str = "PNG", size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """An image of one colour, encoded as `form` (PNG, JPEG or WEBP; the last two are nearly exact)."""
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, form)
    return out.getvalue()


def pixels(*colors: Color) -> NDArray[np.float32]:
    """What preprocessing makes of images of these colours: float32 `[n, 3, 8, 8]`."""
    rows = np.asarray(colors, np.float32).reshape(-1, 3, 1, 1) * np.float32(_STEP)
    return np.ascontiguousarray(np.broadcast_to(rows, (len(colors), *_PIXELS)))


def write_bundle(
    folder: Path,
    *,
    model: str = "colors",
    version: str = "1",
    gain: float = 20.0,
    edge_bias: Sequence[float] = (0.0, 0.0, 0.0),
    full_bias: Sequence[float] = FULL_BIAS,
    temperature: float = 1.0,
    threshold: float = 0.8,
    scorer: str = "max_probability",
    cuts: Sequence[str] = CUTS,
    exit_at: str | None = None,
    preprocess: bool = True,
    edge_work: int = 0,
    full_work: int = 0,
) -> Path:
    """Write a valid bundle into `folder`, which is made when missing, and return it. Deterministic.

    `exit_at` names the cut whose head, with an early exit, is what the edge serves. `preprocess=False`
    makes a bundle that takes tensors only. `edge_work` slows the edge's models, `full_work` the full model
    and its tails, by so many products of two 256x256 matrices for each run, a millisecond or less each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    edge_end = _classify("means", gain, edge_bias, edge_work)
    full_end = _classify("means", gain, full_bias, full_work)
    files = {
        "edge-fp32.onnx": model_bytes([*_pool("input"), *edge_end]),
        "edge-int8.onnx": model_bytes([*_quantize("input"), *_dequantize("p"), *_pool("p"), *edge_end]),
        "full.onnx": model_bytes([*_pool("input"), *full_end]),
    }
    for cut in cuts:
        files[f"head-{cut}.onnx"] = model_bytes(_head(cut), outputs=[_FEATURES[cut]])
        files[f"tail-{cut}.onnx"] = model_bytes([*_behind(cut), *full_end], inputs=_FEATURES[cut])
    if exit_at is not None:
        parts = [*_head(exit_at), *_behind(exit_at), *edge_end]
        files[EXIT] = model_bytes(parts, outputs=[_LOGITS, _FEATURES[exit_at]])
    files[GOLDEN] = golden_bytes(files, cuts)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    variants = [
        {"name": "fp32", "precision": "fp32", **file_entry("edge-fp32.onnx", files), "accuracy": 0.9},
        {"name": "int8", "precision": "int8", **file_entry("edge-int8.onnx", files), "latency_ms": 0.02},
    ]
    if exit_at is not None:
        variants.append({"name": "exit", "precision": "fp32", **file_entry(EXIT, files), "cut": exit_at})
    manifest = {
        "format": 1,
        "model": model,
        "version": version,
        "task": "classification",
        "input": {"name": "input", "datatype": "FP32", "shape": _PIXELS},
        "output": {"name": "logits", "datatype": "FP32", "shape": [len(LABELS)]},
        "preprocess": {"color": "rgb", "height": SIDE, "width": SIDE} if preprocess else None,
        "labels": LABELS,
        "edge": "exit" if exit_at else "int8",
        "variants": variants,
        "full": {"name": "full", "precision": "fp32", **file_entry("full.onnx", files), "accuracy": 1.0},
        "cuts": [
            {
                "name": cut,
                "head": file_entry(f"head-{cut}.onnx", files),
                "tail": file_entry(f"tail-{cut}.onnx", files),
                "boundary": [
                    {
                        "name": "features",
                        "datatype": "UINT8",
                        "shape": _PIXELS if cut == "pixels" else _MEANS,
                    }
                ],
                "agreement": 1.0,
            }
            for cut in cuts
        ],
        "calibration": {
            "scorer": scorer,
            "temperature": temperature,
            "threshold": threshold,
            "samples": 100,
            "curve": [
                {"threshold": 0.0, "escalated": 0.0, "accuracy": 0.9},
                {"threshold": 1.0, "escalated": 1.0, "accuracy": 1.0},
            ],
        },
        "golden": {**file_entry(GOLDEN, files), "tolerance": 0.01, "feature_steps": 1},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return folder


@contextmanager
def edited(folder: Path) -> Iterator[dict[str, Any]]:
    """The manifest in `folder` as plain JSON values, written back on leaving the block."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put `data` in the place of the bundle's file `name` and let the manifest vouch for it."""
    (folder / name).write_bytes(data)
    with edited(folder) as content:
        holders = [*content["variants"], content["full"], content["golden"]]
        holders += [cut[end] for cut in content["cuts"] for end in ("head", "tail")]
        for holder in holders:
            if holder["file"] == name:
                holder.update(file_entry(name, {name: data}))


def change_exit(folder: Path, change: Callable[[onnx.GraphProto], object]) -> None:
    """Change the graph of the bundle's early exit; its golden outputs and the manifest follow."""
    model = onnx.load_model_from_string((folder / EXIT).read_bytes())
    change(model.graph)
    replace_file(folder, EXIT, model.SerializeToString())
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.onnx"))}  # heads before tails
    replace_file(folder, GOLDEN, golden_bytes(files))


def file_entry(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The manifest's entry for file `name` with the content `files[name]`."""
    return {"file": name, "sha256": sha256(files[name]), "bytes": len(files[name])}


def golden_bytes(files: Mapping[str, bytes], cuts: Sequence[str] = CUTS) -> bytes:
    """`golden.npz` for these ONNX files: seeded inputs and what ONNX Runtime makes of them."""
    given = np.random.default_rng(7).random((4, *_PIXELS), dtype=np.float32)
    arrays: dict[str, NDArray[Any]] = {"input": given}
    for name, data in files.items():
        inputs = {"input": given}
        if name.startswith("tail-"):
            head = name.replace("tail-", "head-")
            inputs = {"features": arrays[f"{head}:features"]}
        for output, value in Engine(data, name=name).run(inputs).items():
            arrays[f"{name}:{output}"] = value
    return npz_bytes(arrays)


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """`arrays` as the bytes of an npz archive."""
    out = io.BytesIO()
    np.savez(out, allow_pickle=True, **dict(arrays))
    return out.getvalue()


def model_bytes(
    parts: Parts,
    inputs: Value = _INPUT,
    outputs: Sequence[Value] = (_LOGITS,),
) -> bytes:
    """An ONNX file of these nodes and initializers, with one input, batch axis free."""
    nodes = [part for part in parts if isinstance(part, onnx.NodeProto)]
    constants = {part.name: part for part in parts if isinstance(part, onnx.TensorProto)}
    given, made = [_value(*inputs)], [_value(*output) for output in outputs]
    graph = helper.make_graph(nodes, "tiny", given, made, initializer=list(constants.values()))
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="tandem-tests")
    return bytes(model.SerializeToString(deterministic=True))


def pool_and_classify(gain: float = 20.0, bias: Sequence[float] = FULL_BIAS) -> Parts:
    """The nodes of the whole classifier, from `input` to `logits`."""
    return [*_pool("input"), *_classify("means", gain, bias, 0)]


def constant(name: str, value: object, dtype: type[np.generic] = np.float32) -> onnx.TensorProto:
    """An initializer called `name`."""
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def _value(name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, ["n", *shape])


def _head(cut: str) -> Parts:
    return _quantize("input") if cut == "pixels" else [*_pool("input", "exact"), *_quantize("exact")]


def _behind(cut: str) -> Parts:
    return [*_dequantize("p"), *_pool("p")] if cut == "pixels" else _dequantize("means")


def _pool(source: str, target: str = "means") -> Parts:
    return [
        helper.make_node("GlobalAveragePool", [source], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], [target]),
    ]


def _quantize(source: str) -> Parts:
    nodes = [helper.make_node("QuantizeLinear", [source, "step", "zero"], ["features"])]
    return [*nodes, constant("step", _STEP), constant("zero", 0, np.uint8)]


def _dequantize(target: str) -> Parts:
    nodes = [helper.make_node("DequantizeLinear", ["features", "step", "zero"], [target])]
    return [*nodes, constant("step", _STEP), constant("zero", 0, np.uint8)]


def _classify(source: str, gain: float, bias: Sequence[float], work: int) -> Parts:
    parts: Parts = [constant("weights", np.eye(len(LABELS)) * gain), constant("bias", bias)]
    if not work:
        return [helper.make_node("Gemm", [source, "weights", "bias"], ["logits"]), *parts]
    # Products of zeros that start from the input and end in the logits, so that none can be left out.
    matrix = ("matrix", np.float32, (256,))
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["matrix", "zeros"], ["product"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "work",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            _value(*matrix),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), _value("product", *matrix[1:])],
    )
    return [
        *parts,
        constant("zeros", np.zeros((256, 256))),
        constant("turns", work, np.int64),
        constant("yes", True, np.bool_),
        helper.make_node("Gemm", [source, "weights", "bias"], ["plain"]),
        helper.make_node("ReduceMean", ["plain"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zeros"], ["start"]),
        helper.make_node("Loop", ["turns", "yes", "start"], ["end"], body=body),
        helper.make_node("ReduceMean", ["end"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["plain", "nothing"], ["logits"]),
    ]
