"""Every form of a model, what it loses, which are refused, and which one is served."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks.networks import Graph, teach
from tests.toolchain import families, networks
from tests.toolchain.families import FAMILIES, Classes, Inputs
from toolchain.forms import PREFERENCE, Form, Forms, Judge, choose_served, is_faster, make_forms
from toolchain.graph import fold
from toolchain.runs import accuracy, run_model

KINDS = {family.name: family for family in FAMILIES}
FAINT = 0.003  # how large the features are that tell the classes apart


def faint(count: int, seed: int) -> tuple[Inputs, Classes]:
    """Ten loud features of noise, and ten faint ones around a point for each class."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 10, count)
    points = np.random.default_rng(0).standard_normal((10, 10))[classes]
    own = FAINT * (points + 0.3 * rng.standard_normal(points.shape))
    return np.concatenate([3 * rng.standard_normal((count, 10)), own], axis=1).astype(np.float32), classes


def ruined() -> bytes:
    """Four linear layers for `faint`; U8 has no step for what the first one listens to."""
    graph = Graph(20)
    weights = np.random.default_rng(3).standard_normal((64, 20)) * np.sqrt(2 / 10)
    weights *= np.repeat([0.01, 1 / FAINT], 10)
    x = graph.node("Gemm", graph.input, graph.constant(weights.astype(np.float32)), transB=1)
    for _ in range(2):
        x = graph.linear(graph.relu(x), 64, gain=2)
    return fold(teach(graph.finish(graph.linear(graph.relu(x), 10)), *faint(1000, seed=9)))


def judge_on(sample: Callable[[int, int], tuple[Inputs, Classes]], model: bytes, max_loss: float) -> Judge:
    return Judge(model, [sample(300, 1), sample(300, 2)], max_loss)


@pytest.fixture(scope="module")
def mixed() -> Forms:
    model = ruined()
    return make_forms(model, faint(100, seed=1)[0], judge_on(faint, model, 0.01))


# ---- mixed precision


def test_a_model_that_int8_ruins_keeps_the_layer_in_float(mixed: Forms) -> None:
    forms = mixed.forms
    assert forms["int8"].refused.startswith("loses ")
    assert forms["int8"].refused.endswith(" points, the limit is 1.00")
    assert forms["int8"].loss > 0.2
    assert forms["mixed"].refused == ""
    assert forms["mixed"].loss <= 0.01
    assert forms["mixed"].precision == "mixed"
    assert forms["mixed"].method == forms["int8"].method
    assert len(forms["mixed"].data) < len(forms["fp32"].data)


def test_the_ruined_layer_is_ranked_first(mixed: Forms) -> None:
    nodes = onnx.load_from_string(ruined()).graph.node
    first = next(node.name for node in nodes if node.op_type == "Gemm")
    assert [layer.operator for layer in mixed.layers] == ["Gemm"] * 4
    assert mixed.layers[0].name == first
    assert mixed.forms["mixed"].in_float == (first,)
    assert mixed.layers[0].error > 3 * mixed.layers[1].error


def test_figures_are_those_of_the_worst_part(mixed: Forms) -> None:
    form = mixed.forms["int8"]
    falls, same = [], []
    for seed in (1, 2):
        inputs, classes = faint(300, seed)
        wanted, given = run_model(ruined(), inputs), run_model(form.data, inputs)
        falls.append(accuracy(wanted, classes) - accuracy(given, classes))
        same.append(accuracy(given, wanted.argmax(axis=1)))
    assert form.loss == max(falls) > min(falls)
    assert form.agreement == pytest.approx(np.mean(same))


def test_what_is_served_was_not_refused(mixed: Forms) -> None:
    sample = faint(1, seed=3)[0]
    refused = {name for name, form in mixed.forms.items() if form.refused}
    assert refused >= {"int8", "int8-dynamic"}
    assert choose_served(mixed.forms, sample) not in refused
    alone = {name: mixed.forms[name] for name in ("int8", "fp32")}
    assert choose_served(alone, sample) == "fp32"


def test_layers_are_only_looked_at_where_int8_is_refused() -> None:
    family = KINDS["mlp"]
    model = fold(family.build())
    made = make_forms(model, family.inputs(100, seed=1), judge_on(family.labelled, model, 0.05))
    assert made.layers == ()
    assert made.forms.keys() == {"fp32", "fp16", "int8-dynamic", "int8"}
    assert not any(form.refused for form in made.forms.values())


# ---- refusals


def test_where_all_are_refused_fp32_is_served(caplog: pytest.LogCaptureFixture) -> None:
    family = KINDS["mlp"]
    model = fold(family.build())
    made = make_forms(model, family.inputs(20, seed=1), judge_on(family.labelled, model, -1.0))
    assert [name for name, form in made.forms.items() if not form.refused] == ["fp32"]
    assert choose_served(made.forms, family.inputs(1, seed=1)) == "fp32"
    assert len(made.layers) == 3
    assert "form int8 is refused: loses" in caplog.text


def test_a_form_that_cannot_be_made_is_refused_with_the_reason() -> None:
    family = KINDS["mlp"]
    model = fold(family.build())
    wrong = np.zeros((20, 7), np.float32)  # inputs for the ranges that the model does not take
    made = make_forms(model, wrong, judge_on(family.labelled, model, 0.05)).forms
    assert made["int8"].refused.startswith("the model cannot be quantized: ")
    assert "\n" not in made["int8"].refused
    assert (made["int8"].data, made["int8"].loss, made["int8"].agreement) == (b"", 1.0, 0.0)
    assert not made["int8-dynamic"].refused
    assert choose_served(made, family.inputs(1, seed=1)) != "int8"


def test_a_form_that_cannot_run_is_refused_with_the_reason() -> None:
    family = KINDS["mlp"]
    judge = judge_on(family.labelled, family.build(), 0.05)
    broken = judge.judge(Form("int8", "int8", "by hand", b"no model"))
    assert broken.refused.startswith("model: ONNX Runtime cannot load it")
    assert (broken.data, broken.loss) == (b"", 1.0)
    fine = Form("fp32", "fp32", "as it came", family.build())
    assert choose_served({"int8": broken, "fp32": fine}, family.inputs(1, seed=1)) == "fp32"


@pytest.mark.parametrize("right", range(1, 101, 7))
def test_a_loss_of_exactly_the_limit_is_allowed(right: int) -> None:
    """The shares are not exact in binary: 0.57 - 0.56 is more than 0.01."""

    def product(sign: int) -> bytes:
        weights = numpy_helper.from_array(sign * np.eye(2, dtype=np.float32), "w")
        return networks.finish([helper.make_node("MatMul", ["input", "w"], ["logits"])], [weights], [2], [2])

    inputs = np.zeros((100, 2), np.float32)
    inputs[0, 1] = 1  # the one that both answer differently
    classes = np.array([1] + [0] * (right - 1) + [1] * (100 - right))
    other = Form("int8", "int8", "by hand", product(-1))
    judged = Judge(product(1), [(inputs, classes)], 0.01).judge(other)
    assert judged.loss == pytest.approx(0.01)
    assert judged.refused == ""
    judged = Judge(product(1), [(inputs, classes)], 0.009).judge(other)
    assert judged.refused == "loses 1.00 points, the limit is 0.90"


# ---- which are tried


def test_a_recurrence_has_no_static_form() -> None:
    family = KINDS["lstm"]
    judge = judge_on(family.labelled, family.build(), 0.05)
    made = make_forms(family.build(), family.inputs(50, seed=1), judge).forms
    assert made.keys() == {"fp32", "fp16", "int8-dynamic"}
    assert len(made["int8-dynamic"].data) < 0.4 * len(made["fp32"].data)


def test_an_embedding_does_not_keep_products_from_being_tried() -> None:
    """Tables of words are not multiplied, however large they are."""
    graph = Graph(*families.TOKENS, kind=onnx.TensorProto.INT64)
    x = graph.node("Gather", graph.weight(5000, 16), graph.input)
    x = graph.linear(graph.node("ReduceMean", x, axes=[1], keepdims=0), 16)
    model = graph.finish(graph.linear(graph.relu(x), 10))

    def sample(count: int, seed: int) -> tuple[Inputs, Classes]:
        ids = families.sentences(count, seed)[0].astype(np.int64)
        return ids, run_model(model, ids).argmax(axis=1)

    made = make_forms(model, sample(50, 1)[0], judge_on(sample, model, 0.05)).forms
    assert made.keys() >= {"fp32", "fp16", "int8-dynamic", "int8"}


# ---- which is served


def test_the_first_that_is_hardly_slower_is_served() -> None:
    family = KINDS["vgg"]
    slow, fast = family.build(), KINDS["mlp"].build()
    sample, small = family.inputs(1, seed=1), KINDS["mlp"].inputs(1, seed=1)

    def form(name: str, data: bytes) -> Form:
        return Form(name, "fp32", "by hand", data)

    same = {name: form(name, fast) for name in PREFERENCE}
    # Equal but for noise: any of them may be fastest, and the first is hardly slower than that.
    assert choose_served({"fp16": same["fp16"], "fp32": same["fp32"]}, small) in ("fp16", "fp32")
    assert not is_faster(form("fp32", slow), form("fp16", slow), sample)
    refused = replace(same["int8"], refused="loses 2.00 points, the limit is 1.00")
    assert choose_served({"int8": refused, "mixed": same["mixed"]}, small) == "mixed"


def test_a_form_with_a_tenth_of_the_work_is_faster() -> None:
    def wide(width: int) -> bytes:
        graph = Graph(256)
        x = graph.relu(graph.linear(graph.input, width))
        return graph.finish(graph.linear(graph.relu(graph.linear(x, width)), 10))

    sample = np.ones((1, 256), np.float32)
    slow = Form("int8", "int8", "by hand", wide(2048))
    fast = Form("fp16", "fp16", "by hand", wide(32))
    assert is_faster(fast, slow, sample)
    assert not is_faster(slow, fast, sample)
    assert choose_served({"int8": slow, "fp16": fast}, sample) == "fp16"
