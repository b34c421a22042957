"""Real sessions on tiny models: what they take, what they refuse, and several threads at once."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from inference_core.engine import RESTART_AFTER, Engine, TensorSpec
from inference_core.errors import InvalidInput, ModelError
from inference_core.tensors import DATATYPES
from tests.bundles import SURE, UNSURE, constant, model_bytes, pixels, pool_and_classify

CLASSIFIER = model_bytes(pool_and_classify())
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(CLASSIFIER, name="tiny")


def identity(kind: int, shape: Sequence[int | str | None] = ("n", 2)) -> bytes:
    return graph([helper.make_node("Identity", ["x"], ["y"])], kind, shape)


def graph(
    nodes: list[onnx.NodeProto], kind: int, shape: Sequence[int | str | None], constants: Sequence[Any] = ()
) -> bytes:
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", kind, None)
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], initializer=constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return bytes(made.SerializeToString())


def images(rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(rows).random((rows, 3, 8, 8), dtype=np.float32)


# ---- what it tells


def test_inputs_and_outputs_are_described(engine: Engine) -> None:
    assert engine.inputs == (TensorSpec("input", "FP32", (-1, 3, 8, 8)),)
    assert engine.outputs == (TensorSpec("logits", "FP32", (-1, 3)),)
    assert engine.name == "tiny"
    assert engine.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(("shape", "seen"), [((), ()), ((2, 3), (2, 3)), (("n", None, 4), (-1, -1, 4))])
def test_free_dimensions_are_minus_one(shape: tuple[Any, ...], seen: tuple[int, ...]) -> None:
    assert Engine(identity(TensorProto.FLOAT, shape), name="i").inputs[0].shape == seen


@pytest.mark.parametrize("datatype", ONNX_TYPES)
def test_every_datatype_goes_through(datatype: str) -> None:
    engine = Engine(identity(ONNX_TYPES[datatype]), name="i")
    assert engine.inputs[0].datatype == engine.outputs[0].datatype == datatype
    given = np.array([[0, 1], [1, 0]]).astype(DATATYPES[datatype])
    out = engine.run({"x": given})["y"]
    assert out.dtype == given.dtype
    np.testing.assert_array_equal(out, given)


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.BFLOAT16])
def test_types_that_are_not_served_are_named(kind: int) -> None:
    with pytest.raises(ModelError, match=r"tensor 'x' has type tensor\((string|bfloat16)\)"):
        Engine(identity(kind), name="i")


# ---- what it gives


def test_answers_are_the_formula(engine: Engine) -> None:
    given = images(5)
    expected = given.mean(axis=(2, 3)) * 20 + np.array([0, 0, 5])
    np.testing.assert_allclose(engine.run({"input": given})["logits"], expected, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_a_batch_gives_what_its_rows_give(engine: Engine, rows: int) -> None:
    given = images(rows)
    together = engine.run({"input": given})["logits"]
    assert together.shape == (rows, 3)
    alone = [engine.run({"input": given[at : at + 1]})["logits"][0] for at in range(rows)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_an_empty_batch_gives_no_rows(engine: Engine) -> None:
    assert engine.run({"input": images(0)})["logits"].shape == (0, 3)


def test_memory_layout_does_not_matter(engine: Engine) -> None:
    given = images(2)
    expected = engine.run({"input": given})["logits"]
    frozen = given.copy()
    frozen.setflags(write=False)
    reversed_twice = given[:, :, ::-1].copy()[:, :, ::-1]
    for same in (np.asfortranarray(given), frozen, reversed_twice):
        np.testing.assert_array_equal(engine.run({"input": same})["logits"], expected)


def test_more_threads_give_the_same() -> None:
    given = {"input": images(3)}
    expected = Engine(CLASSIFIER, name="one", threads=1).run(given)["logits"]
    np.testing.assert_allclose(Engine(CLASSIFIER, name="two", threads=2).run(given)["logits"], expected)


def test_one_engine_serves_many_threads(engine: Engine) -> None:
    batches = [images(1 + at % 4) + np.float32(at) for at in range(200)]
    expected = [engine.run({"input": batch})["logits"] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda batch: engine.run({"input": batch})["logits"], batches))
    for have, want in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(have, want)


def test_a_refusal_in_one_thread_leaves_the_others_alone(engine: Engine) -> None:
    good, bad = images(2), images(2)[:, :2]

    def ask(at: int) -> str:
        try:
            return str(engine.run({"input": bad if at % 2 else good})["logits"].shape)
        except InvalidInput:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(100))) == ["(2, 3)", "refused"] * 50


def test_warm_up_gives_the_slowest_run_in_seconds(engine: Engine) -> None:
    assert 0 < engine.warm_up({"input": pixels(SURE, UNSURE)}) < 5
    assert engine.warm_up({"input": pixels(SURE)}, runs=0) > 0
    with pytest.raises(InvalidInput):
        engine.warm_up({})


# ---- what it refuses


def test_inputs_go_by_their_names(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="'input' is missing"):
        engine.run({})
    with pytest.raises(InvalidInput, match=r"unknown input 'extra'; model 'tiny' takes \['input'\]"):
        engine.run({"input": images(1), "extra": images(1)})
    with pytest.raises(InvalidInput, match="unknown input 'Input'"):
        engine.run({"Input": images(1)})


@pytest.mark.parametrize(
    "shape", [(), (3, 8, 8), (1, 3, 8), (1, 3, 8, 9), (1, 8, 8, 3), (1, 1, 3, 8, 8), (0, 3, 8, 0), (192,)]
)
def test_shapes_must_fit(engine: Engine, shape: tuple[int, ...]) -> None:
    rule = re.escape(f"'input': shape must be [-1, 3, 8, 8], got {list(shape)}")
    with pytest.raises(InvalidInput, match=rule):
        engine.run({"input": np.zeros(shape, np.float32)})


def test_a_fixed_batch_is_kept_to() -> None:
    engine = Engine(identity(TensorProto.FLOAT, (1, 2)), name="i")
    assert engine.run({"x": np.zeros((1, 2), np.float32)})["y"].shape == (1, 2)
    with pytest.raises(InvalidInput, match="shape"):
        engine.run({"x": np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize("dtype", ["f8", "f2", ">f4", "u1", "i8", "?", "O", "U3", "c8"])
def test_dtypes_must_fit(engine: Engine, dtype: str) -> None:
    with pytest.raises(InvalidInput, match="'input': datatype must be FP32"):
        engine.run({"input": np.zeros((1, 3, 8, 8), dtype)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("kind", "dtype"), [("FP16", "f2"), ("FP32", "f4"), ("FP64", "f8")])
def test_inputs_must_be_finite(bad: float, kind: str, dtype: str) -> None:
    engine = Engine(identity(ONNX_TYPES[kind]), name="i")
    with pytest.raises(InvalidInput, match="'x': holds a NaN or an infinity"):
        engine.run({"x": np.array([[0, 1], [bad, 0]], dtype)})


def test_values_that_a_model_cannot_take_are_the_callers_fault() -> None:
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    data = graph(nodes, TensorProto.INT64, ["n"], [constant("table", [1, 2, 3], np.int64)])
    engine = Engine(data, name="gather")
    assert engine.run({"x": np.array([2, 0])})["y"].tolist() == [3, 1]
    for _ in range(2 * RESTART_AFTER):
        with pytest.raises(InvalidInput) as refused:
            engine.run({"x": np.array([3])})
        assert str(refused.value) == (
            "model 'gather' cannot take these values: "
            "indices element out of data bounds, idx=3 must be within the inclusive range [-3,2]"
        )
    assert engine.run({"x": np.array([1])})["y"].tolist() == [2]


def test_a_failing_run_is_a_model_error_and_says_why_in_plain_words() -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    data = graph(nodes, TensorProto.INT64, ["n"], [constant("shape", [2, 2], np.int64)])
    engine = Engine(data, name="reshape")
    with pytest.raises(ModelError, match=r"^reshape: the run failed: .*requested shape:\{2,2\}$") as failed:
        engine.run({"x": np.array([3])})
    assert "onnxruntime" not in str(failed.value)
    assert engine.run({"x": np.array([1, 2, 3, 4])})["y"].tolist() == [[1, 2], [3, 4]]


# ---- what it does not load


@pytest.mark.parametrize("data", [b"", b"\0", b"junk", b"\xff" * 1000, b"\x89PNG\r\n\x1a\n", b"{}"])
def test_junk_is_not_loaded(data: bytes) -> None:
    with pytest.raises(ModelError, match="bad: ONNX Runtime cannot load it"):
        Engine(data, name="bad")


@pytest.mark.parametrize("length", range(1, len(CLASSIFIER), 5))
def test_a_truncated_model_is_not_loaded(length: int) -> None:
    with pytest.raises(ModelError, match="bad: ONNX Runtime cannot load it"):
        Engine(CLASSIFIER[:length], name="bad")


def test_a_model_of_unknown_operators_is_not_loaded() -> None:
    data = graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], TensorProto.FLOAT, ["n"])
    with pytest.raises(ModelError, match="NoSuchOperator"):
        Engine(data, name="bad")


def test_ort_format_is_not_loaded_in_the_place_of_onnx(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(CLASSIFIER, options)
    data = (tmp_path / "m.ort").read_bytes()
    assert data[4:8] == b"ORTM"
    assert ort.InferenceSession(data).get_inputs()[0].name == "input"
    with pytest.raises(ModelError, match="cannot load it"):
        Engine(data, name="bad")


def test_unknown_providers() -> None:
    with pytest.raises(ModelError, match=r"tiny: none of the providers \['NoSuchProvider'\] is present"):
        Engine(CLASSIFIER, name="tiny", providers=("NoSuchProvider",))
    with pytest.raises(ModelError, match=r"none of the providers \[\]"):
        Engine(CLASSIFIER, name="tiny", providers=())


def test_the_first_provider_that_is_present_is_used() -> None:
    engine = Engine(CLASSIFIER, name="tiny", providers=("NoSuchProvider", "CPUExecutionProvider"))
    assert engine.providers == ("CPUExecutionProvider",)
    assert engine.run({"input": images(1)})["logits"].shape == (1, 3)


@pytest.mark.parametrize("package", ["inference_core.engine", "toolchain.quantize", "edge_node.joint"])
def test_onnx_runtime_is_told_not_to_report_before_it_is_loaded(package: str) -> None:
    program = f"""
import ctypes, importlib.abc, sys
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(getenv(b"ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
import {package}
"""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout) == (0, "b'1'\n"), run.stderr
