"""First runs in a process of their own: what they answer, and how the limits end them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from inference_core.engine import Engine
from inference_core.errors import ModelError
from inference_core.qualify import Limits, _reached, qualify
from tests.toolchain import networks

ROWS = networks.inputs(2)


def endless() -> bytes:
    """A Loop of 2^62 turns: `input` `[batch, 4]` to `logits`."""
    takes = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
    ]
    gives = [
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
    ]
    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Mul", ["v", "half"], ["more"])]
    body = helper.make_graph(nodes, "body", takes, gives)
    weights = [
        numpy_helper.from_array(np.array(1 << 62, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
    ]
    loop = helper.make_node("Loop", ["turns", "yes", "input"], ["logits"], body=body)
    return networks.finish([loop], weights, [4], [4])


def large(elements: int) -> bytes:
    """The sum of a constant of so many zeros, computed when it runs, plus `input` `[batch, 4]`."""
    size = numpy_helper.from_array(np.array([elements], np.int64), "size")
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Mul", ["shape", "many"], ["sizes"]),
        helper.make_node("ReduceProd", ["sizes"], ["all"], keepdims=1),
        helper.make_node("Min", ["all", "size"], ["least"]),
        helper.make_node("ConstantOfShape", ["least"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["input", "zero"], ["logits"]),
    ]
    many = numpy_helper.from_array(np.array([1 << 30, 1 << 30], np.int64), "many")
    return networks.finish(nodes, [size, many], [4], [4])


def four(rows: int = 1) -> dict[str, np.ndarray]:
    return {"input": np.ones((rows, 4), np.float32)}


def test_outputs_are_those_of_a_run_in_this_process() -> None:
    qualified = qualify(networks.full_network(), {"input": ROWS}, name="m")
    wanted = Engine(networks.full_network(), name="m").run({"input": ROWS})
    assert qualified.outputs.keys() == wanted.keys() == {"logits"}
    np.testing.assert_array_equal(qualified.outputs["logits"], wanted["logits"])
    assert 10 << 20 < qualified.memory_bytes < 1 << 30


def test_memory_is_that_of_the_run() -> None:
    small = qualify(large(1 << 10), four(), name="m").memory_bytes
    assert qualify(large(1 << 26), four(), name="m").memory_bytes - small > 200 << 20


def test_what_needs_too_much_memory_is_ended_and_says_so() -> None:
    with pytest.raises(ModelError) as refused:
        qualify(large(1 << 40), four(), name="mine.onnx")
    assert str(refused.value) == (
        "mine.onnx: ConstantOfShape asks for 4194304 MiB at once, the limit is 6144 MiB of memory; "
        "use a smaller model"
    )
    limits = Limits(memory_bytes=2 << 30)
    with pytest.raises(ModelError, match=r"asks for 4096 MiB at once, the limit is 2048 MiB of memory"):
        qualify(large(1 << 30), four(), name="mine.onnx", limits=limits)


def test_what_takes_too_long_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(ModelError) as refused:
        qualify(endless(), four(), name="mine.onnx", limits=Limits(seconds=1.5))
    assert str(refused.value) == ("mine.onnx: one run took over 1.5 seconds, the limit; use a smaller model")
    assert time.monotonic() - start < 30


def children() -> Iterator[int]:
    """The processes that this one has started for `qualify`."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            ours = f"\nPPid:\t{os.getpid()}\n" in status.read_text()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if ours and b"inference_core.qualify" in command:
            yield int(status.parent.name)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to find the process")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_names_the_signal(number: signal.Signals) -> None:
    """What a crash of ONNX Runtime, or the kernel when memory runs out, does to the process."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(qualify, endless(), four(), name="mine.onnx", limits=Limits(seconds=60))
        while not run.done():
            for child in children():
                os.kill(child, number)
        with pytest.raises(ModelError) as refused:
            run.result()
    assert str(refused.value) == (
        f"mine.onnx: the run was ended by {number.name}, the limit is 6144 MiB of memory"
    )


def test_a_process_that_cannot_even_start_names_the_limit() -> None:
    with pytest.raises(ModelError, match=r"^mine\.onnx: .* the limit\D* 64 MiB"):
        qualify(networks.full_network(), {"input": ROWS}, name="mine.onnx", limits=Limits(64 << 20))


def test_a_model_that_does_not_load_is_refused_without_the_names_of_functions() -> None:
    loaded = onnx.load_from_string(networks.full_network())
    loaded.opset_import[0].version = 99
    with pytest.raises(ModelError, match=r"^m: ONNX Runtime cannot load it: .*Opset 99 is under") as refused:
        qualify(loaded.SerializeToString(), {"input": ROWS}, name="m")
    assert "onnxruntime::" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_run_that_fails_is_refused_without_the_names_of_functions() -> None:
    target = numpy_helper.from_array(np.array([2, 3], np.int64), "target")
    model = networks.finish(
        [helper.make_node("Reshape", ["input", "target"], ["logits"])], [target], [4], [3]
    )
    with pytest.raises(ModelError) as refused:
        qualify(model, four(), name="m")
    assert str(refused.value).startswith(
        "m: the run failed: Non-zero status code returned while running Resh"
    )
    assert str(refused.value).endswith("Input shape:{1,4}, requested shape:{2,3}")
    assert "onnxruntime" not in str(refused.value)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"^input 'input': shape must be \[-1, 1, 8, 8\], got \[1, 4\]"):
        qualify(networks.full_network(), four(), name="m")


def test_files_in_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "onnxruntime", "json"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('of the user')\n")
    monkeypatch.chdir(tmp_path)
    assert qualify(networks.full_network(), {"input": ROWS}, name="m").outputs["logits"].shape == (2, 3)


def test_what_libraries_say_on_the_way_confuses_nobody() -> None:
    said = b"at 0\nat /onnxruntime_src/core.cc:7\nat 1\nat 99999999999\nterminate called"
    assert _reached(said) == 1


def test_the_environment_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds tokens. The C library says what it does where this variable is set: so it shows who has it."""
    monkeypatch.setenv("LD_DEBUG", "statistics")
    monkeypatch.setenv("LD_DEBUG_OUTPUT", str(tmp_path / "loader"))
    subprocess.run([sys.executable, "-c", ""], check=True)
    if not (before := list(tmp_path.iterdir())):
        pytest.skip("this system's loader says nothing")
    qualify(networks.full_network(), {"input": ROWS}, name="m")
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["file", "args", "kwds", "a.npy", "/model/x:0", "self", "arr_0", "a\nb"])
def test_tensors_may_have_any_name(name: str) -> None:
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 8, 8])
    made = helper.make_tensor_value_info(name + "2", TensorProto.FLOAT, ["n", 1, 8, 8])
    graph = helper.make_graph([helper.make_node("Neg", [name], [name + "2"])], "g", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    outputs = qualify(model.SerializeToString(), {name: ROWS}, name="m").outputs
    assert {key: array.tolist() for key, array in outputs.items()} == {name + "2": (-ROWS).tolist()}
