"""The networks that other tests and the benchmarks stand on are what they say, and each becomes a bundle."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import networks
from inference_core.bundle import Bundle, load_bundle
from inference_core.engine import Engine
from inference_core.manifest import File
from tests.toolchain import families
from tests.toolchain.families import CLASSES, FAMILIES, Family
from toolchain.cuts import find_places
from toolchain.graph import Graph, check
from toolchain.prepare import prepare
from toolchain.recipe import Exits, Recipe, Targets
from toolchain.report import Report
from toolchain.runs import CPU, accuracy, agreement, run
from toolchain.samples import Samples
from toolchain.split import split

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def logits(model: bytes, inputs: families.Inputs) -> networks.Samples:
    """FP32 `[n, classes]` of `model` for `inputs` `[n, ...]`."""
    answers = Engine(model, name="model").run({networks.INPUT: inputs})[networks.OUTPUT]
    return np.asarray(answers, np.float32)


# ---- families


def test_every_family_has_a_name_of_its_own() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) == 10


@every_family
def test_a_family_is_a_valid_model_with_one_input_and_one_output(family: Family) -> None:
    onnx.checker.check_model(onnx.load_from_string(family.build()), full_check=True)
    engine = Engine(family.build(), name=family.name)
    (takes,), (gives,) = engine.inputs, engine.outputs
    assert (takes.datatype, takes.shape) == (family.datatype, (-1, *family.shape))
    assert (gives.datatype, gives.shape) == ("FP32", (-1, CLASSES))


@every_family
def test_the_batch_is_free_and_does_not_matter(family: Family) -> None:
    inputs = family.inputs(3, seed=5)
    together = logits(family.build(), inputs)
    assert together.shape == (3, CLASSES)
    assert np.isfinite(together).all()
    alone = [logits(family.build(), inputs[at : at + 1]) for at in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-4, atol=1e-4)


@every_family
def test_answers_are_spread_and_rest_on_a_margin(family: Family) -> None:
    inputs, classes = family.labelled(500, seed=7)
    ranked = np.sort(logits(family.build(), inputs), axis=1)
    answers = logits(family.build(), inputs).argmax(axis=1)
    counts = np.bincount(answers, minlength=CLASSES)
    assert (counts > 0).sum() == CLASSES
    assert counts.max() < len(inputs) / 2
    assert np.median(ranked[:, -1] - ranked[:, -2]) > 1
    assert (answers == classes).mean() > 0.85


@every_family
def test_a_family_is_the_same_bytes_and_the_same_inputs_every_time(family: Family) -> None:
    assert families.taught.__wrapped__(family) == family.build()
    np.testing.assert_array_equal(family.inputs(4, seed=9), family.inputs(4, seed=9))
    assert not np.array_equal(family.inputs(4, seed=9), family.inputs(4, seed=10))


# ---- bundles


MAX_LOSS = 0.01
SAMPLES = 320
MORE_SAMPLES = {"densenet": 800}  # some of its answers are so close that cuts need more to be chosen well
UNSEEN = 500
# What is tried beside FP32 and FP16: 4 bits for large matrix products, dynamic INT8 where most weights are in
# products or recurrences, static INT8 wherever those are not recurrences.
TRIED = {
    "vgg": {"int4", "int8-dynamic", "int8"},
    "vit": {"int8-dynamic", "int8"},
    "bert": {"int8-dynamic", "int8"},
    "lstm": {"int8-dynamic"},
    "mlp": {"int8-dynamic", "int8"},
}


@dataclass(frozen=True)
class Made:
    """A family's bundle, loaded again, with its report, and inputs that nothing was made from."""

    family: Family
    graph: Graph
    bundle: Bundle
    report: Report
    inputs: families.Inputs
    classes: families.Classes

    def outputs(self, file: File, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `file` of the bundle, whose golden outputs were checked, answers."""
        return dict(run(self.bundle.engine(file, threads=1, providers=CPU), inputs))

    def logits(self, file: File) -> networks.Samples:
        """What a whole model of the bundle answers to the inputs."""
        manifest = self.bundle.manifest
        return self.outputs(file, {manifest.input.name: self.inputs})[manifest.output.name]


def asked_cuts(family: Family, graph: Graph) -> Mapping[str, tuple[str, ...]] | None:
    """The only place behind the recurrence or the tokens, which no search would take; None to search."""
    if family.name not in ("bert", "lstm"):
        return None
    return {"last": find_places(graph.data, family.inputs(1, seed=0))[-1].tensors}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every family as a bundle."""
    family: Family = request.param
    graph = check(family.build(), f"{family.name}.onnx")
    inputs, classes = family.labelled(MORE_SAMPLES.get(family.name, SAMPLES), seed=1)
    folder: Path = tmp_path_factory.mktemp("bundles") / family.name
    recipe = Recipe(
        model=family.name,
        version="1",
        full=graph,
        samples=Samples(inputs, classes, None),
        labels=tuple(str(number) for number in range(CLASSES)),
        targets=Targets(gap=0.05, max_loss=MAX_LOSS),
        cuts=asked_cuts(family, graph),
        exits=Exits.NEVER,
    )
    report = prepare(recipe, folder).report
    return Made(family, graph, load_bundle(folder), report, *family.labelled(UNSEEN, seed=99))


def test_the_full_model_of_a_bundle_answers_as_the_network_did(made: Made) -> None:
    wanted = logits(made.family.build(), made.inputs)
    given = made.logits(made.bundle.manifest.full)
    np.testing.assert_allclose(given, wanted, rtol=1e-3, atol=1e-3)
    assert made.graph.input.shape == made.family.shape


def test_every_form_that_fits_a_family_is_tried(made: Made) -> None:
    rows = {row.name: row for row in made.report.forms if row.name != "full"}
    assert rows.keys() - {"mixed"} == {"fp32", "fp16"} | TRIED.get(made.family.name, {"int8"})
    assert rows["fp16"].bytes < 0.6 * rows["fp32"].bytes
    for row in rows.values():
        assert (row.loss > MAX_LOSS + 1e-9) == (row.verdict == "refused") == bool(row.reason)
    assert ("mixed" in rows) <= ("int8" in rows and rows["int8"].verdict == "refused")


def test_what_a_family_serves_loses_at_most_the_limit(made: Made) -> None:
    (served,) = (row for row in made.report.forms if row.verdict == "served")
    assert served.loss <= MAX_LOSS + 1e-9
    assert served.name == made.bundle.manifest.edge
    full = accuracy(made.logits(made.bundle.manifest.full), made.classes)
    variants = {variant.name: variant for variant in made.bundle.manifest.variants}
    for variant in variants.values():
        # On samples that nothing was chosen on; twice the limit, since 500 are few.
        assert accuracy(made.logits(variant), made.classes) >= full - 2 * MAX_LOSS, variant.name
    assert not {row.name for row in made.report.forms if row.verdict == "refused"} & variants.keys()


def test_every_cut_of_a_family_agrees_on_unseen_inputs(made: Made) -> None:
    manifest = made.bundle.manifest
    full = made.logits(manifest.full)
    assert len(manifest.cuts) >= 1
    for cut in manifest.cuts:
        features = made.outputs(cut.head, {manifest.input.name: made.inputs})
        assert {name: (array.dtype, array.shape[1:]) for name, array in features.items()} == {
            info.name: (np.dtype(np.uint8), info.shape) for info in cut.boundary
        }
        answers = made.outputs(cut.tail, features)[manifest.output.name]
        assert agreement(answers, full) >= 0.99, cut.name


def test_attention_over_ids_can_be_cut_between_its_layers() -> None:
    family = next(family for family in FAMILIES if family.name == "bert")
    graph = check(family.build(), "bert.onnx")
    nodes = onnx.load_from_string(graph.data).graph.node
    norms = [node.output[0] for node in nodes if node.op_type == "LayerNormalization"]
    halves = split(graph.data, [norms[2]], family.inputs(100, seed=1), family.inputs(300, seed=2), 0.99)
    assert halves.boundary[0].shape == (*families.TOKENS, families.WIDTH)
    unseen = family.inputs(UNSEEN, seed=3)
    features = run(Engine(halves.head, name="head"), {"input": unseen})
    answers = run(Engine(halves.tail, name="tail"), features)["logits"]
    assert agreement(answers, logits(family.build(), unseen)) >= 0.99


# ---- benchmarks


PUBLISHED = [
    (networks.resnet18, 11_689_512),
    (networks.resnet50, 25_557_032),
    (networks.mobilenet_v2, 3_504_872),
]


@pytest.mark.parametrize(("build", "published"), PUBLISHED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_benchmark_network_has_the_published_parameters(
    build: Callable[..., bytes], published: int
) -> None:
    model = build(size=32)
    graph = onnx.load_from_string(model).graph
    statistics = {
        name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]
    }
    learned = [tensor for tensor in graph.initializer if tensor.name not in statistics]
    assert sum(numpy_helper.to_array(tensor).size for tensor in learned) == pytest.approx(published, rel=0.05)
    answers = logits(model, networks.photos(2, 32, seed=1))
    assert answers.shape == (2, 1000)
    assert 0.3 < answers.std() < 10


def test_a_benchmark_network_is_the_same_bytes_every_time() -> None:
    assert networks.mobilenet_v2(size=32) == networks.mobilenet_v2(size=32)
    assert networks.tiny() == networks.tiny()


def test_the_tiny_network_takes_digits() -> None:
    assert logits(networks.tiny(), np.zeros((2, 1, 28, 28), np.float32)).shape == (2, 10)


def test_photos_are_normalised_smooth_and_seeded() -> None:
    images = networks.photos(20, 64, seed=3)
    assert images.dtype == np.float32
    assert images.shape == (20, 3, 64, 64)
    np.testing.assert_array_equal(images[:5], networks.photos(5, 64, seed=3))
    assert 0.5 < images.std() < 1.5
    step = np.diff(images, axis=3).std()  # between neighbours; 1.4 times the deviation in white noise
    assert step < 0.7 * images.std()
