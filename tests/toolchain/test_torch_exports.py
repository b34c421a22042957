"""Networks as PyTorch exports them: both exporters, old and new opsets, a free batch and a batch of one.

PyTorch is not among what the tests need, so without it all of this is skipped.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from inference_core.engine import Engine
from inference_core.errors import ModelError
from tests.toolchain.families import FAMILIES, Family, Inputs
from toolchain.cuts import find_places
from toolchain.forms import Forms, Judge, make_forms
from toolchain.graph import Graph, check
from toolchain.runs import agreement, run, run_model
from toolchain.split import split

_WHY = "exports are tested where PyTorch is installed: pip install '.[train]'"
pytest.importorskip("torch", reason=_WHY)
pytest.importorskip("onnxscript", reason=_WHY)

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

Logits = NDArray[np.float32]

SAMPLES = 200
WIDTH = 32
STEPS = 60  # of training

# What the exporters say about themselves and about tracing is no fault of the networks.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


# ---- networks


class Residual(nn.Module):  # type: ignore[misc]
    """A convolution, a residual block and a linear layer for images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self._norm(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False))
        self.first = self._norm(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False))
        self.second = self._norm(nn.Conv2d(32, 32, 3, padding=1, bias=False))
        self.around = self._norm(nn.Conv2d(16, 32, 1, stride=2, bias=False))
        self.head = nn.Linear(32, 10)

    @staticmethod
    def _norm(conv: nn.Conv2d) -> nn.Sequential:
        return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.second(self.first(x).relu()) + self.around(x)).relu()
        return self.head(x.mean((2, 3)))


class Vision(nn.Module):  # type: ignore[misc]
    """A vision transformer: patches, a class token, one block around `nn.MultiheadAttention`."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(0.3 * torch.randn(1, 17, WIDTH))
        self.before, self.between, self.after = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        y = self.before(x)
        x = x + self.attention(y, y, y)[0]
        x = x + self.inner(self.between(x))
        return self.head(self.after(x)[:, 0])


class Recurrent(nn.Module):  # type: ignore[misc]
    """An LSTM over a sensor's window; its last state answers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Words(nn.Module):  # type: ignore[misc]
    """Embedded words and places, two layers of `nn.TransformerEncoderLayer`, the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, WIDTH)
        self.places = nn.Parameter(0.3 * torch.randn(1, 16, WIDTH))
        layers = [nn.TransformerEncoderLayer(WIDTH, 4, 64, 0.0, "gelu", batch_first=True) for _ in range(2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.words(x) + self.places).mean(1))


class Handmade(nn.Module):  # type: ignore[misc]
    """Words again, with one layer of attention written by hand, as those who export to old opsets do."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, WIDTH)
        self.places = nn.Parameter(0.3 * torch.randn(1, 16, WIDTH))
        self.query, self.key, self.value, self.mix = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(y.shape[0], y.shape[1], 4, WIDTH // 4).transpose(1, 2)

        x = self.words(x) + self.places
        query, key, value = (heads(part(x)) for part in (self.query, self.key, self.value))
        scores = torch.softmax(query @ key.transpose(2, 3) / (WIDTH // 4) ** 0.5, dim=-1)
        mixed = (scores @ value).transpose(1, 2).contiguous().view(x.shape)
        return self.head(self.norm(x + self.mix(mixed)).mean(1))


@dataclass(frozen=True)
class Network:
    """What is exported, the family whose inputs it takes, and the oldest opset that PyTorch has for it."""

    build: Callable[[], nn.Module]
    family: Family
    oldest: int


KINDS = {family.name: family for family in FAMILIES}
NETWORKS = {
    "residual": Network(Residual, KINDS["resnet"], 11),
    "vision": Network(Vision, KINDS["vit"], 13),
    "recurrent": Network(Recurrent, KINDS["lstm"], 11),
    "words": Network(Words, KINDS["bert"], 14),
    "handmade": Network(Handmade, KINDS["bert"], 11),
}


@cache
def trained(name: str) -> nn.Module:
    """The network `name`, trained a little, so that it tells classes apart."""
    torch.set_num_threads(1)  # faster for anything this small
    torch.manual_seed(0)
    network = NETWORKS[name].build()
    labelled = NETWORKS[name].family.labelled(64 * STEPS, seed=1)
    values, classes = (torch.from_numpy(array) for array in labelled)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for x, y in zip(values.split(64), classes.split(64), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


# ---- exports


@dataclass(frozen=True)
class Export:
    """An exported network: `logits` `[n, 10]` are PyTorch's own for `inputs` `[n, ...]`.

    With `batch` "one", the model takes one input at a time.
    """

    name: str
    model: bytes
    batch: str
    inputs: Inputs
    logits: Logits


def exported(network: nn.Module, exporter: str, batch: str, example: Tensor) -> bytes:
    """`network` as an ONNX file from `input` to `logits`."""
    free = batch == "free"
    names = {"input_names": ["input"], "output_names": ["logits"]}
    if exporter == "dynamo":
        sizes = ({0: torch.export.Dim("batch")},) if free else None
        program = torch.onnx.export(
            network, (example,), dynamo=True, dynamic_shapes=sizes, verbose=False, **names
        )
        data: bytes = program.model_proto.SerializeToString()
        return data
    axes = {"input": {0: "batch"}, "logits": {0: "batch"}} if free else None
    out = io.BytesIO()
    opset = int(exporter.removeprefix("opset"))
    torch.onnx.export(network, (example,), out, dynamo=False, opset_version=opset, dynamic_axes=axes, **names)
    return out.getvalue()


CASES = [
    (name, exporter, batch)
    for name, network in NETWORKS.items()
    for exporter in ("dynamo", f"opset{network.oldest}", "opset17")  # the new one, and the old one twice
    for batch in ("free", "one")
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def export(request: pytest.FixtureRequest) -> Export:
    """Every network from every exporter with either batch."""
    name, exporter, batch = request.param
    network = trained(name)
    inputs = NETWORKS[name].family.inputs(SAMPLES, seed=2)
    with torch.no_grad():
        logits = network(torch.from_numpy(inputs)).numpy()
    model = exported(network, exporter, batch, torch.from_numpy(inputs[: 3 if batch == "free" else 1]))
    return Export("-".join(request.param), model, batch, inputs, logits)


def test_onnx_runtime_answers_as_pytorch_does(export: Export) -> None:
    engine = Engine(export.model, name=export.name)
    assert engine.inputs[0].shape[0] == (-1 if export.batch == "free" else 1)
    chunks = np.split(export.inputs, SAMPLES if export.batch == "one" else 2)
    answers = np.concatenate([engine.run({"input": chunk})["logits"] for chunk in chunks])
    np.testing.assert_allclose(answers, export.logits, atol=1e-3, rtol=1e-3)


def test_the_networks_tell_classes_apart(export: Export) -> None:
    counts = np.bincount(export.logits.argmax(axis=1), minlength=10)
    assert (counts > 0).sum() >= 5
    assert counts.max() < SAMPLES / 2


# ---- what the toolchain makes of them


@dataclass(frozen=True)
class Taken:
    """An export that `check` takes, or, with `refused`, the line that says why not."""

    export: Export
    graph: Graph | None
    refused: str


@pytest.fixture(scope="module")
def taken(export: Export) -> Taken:
    try:
        return Taken(export, check(export.model, f"{export.name}.onnx"), "")
    except ModelError as error:
        return Taken(export, None, str(error))


def opened(taken: Taken) -> Graph:
    """The graph; what has a batch of one that the graph depends on is skipped, once that was said."""
    if taken.graph is None:
        pytest.skip(taken.refused)
    return taken.graph


def test_every_export_is_taken_or_its_fixed_batch_is_the_reason(taken: Taken) -> None:
    if taken.graph is None:
        assert taken.export.batch == "one"
        start = f"{taken.export.name}.onnx: the batch axis has a fixed size of 1 that the graph depends on; "
        assert taken.refused.startswith(start + "export it with an open one (")
        assert "\n" not in taken.refused
        return
    assert ("batch axis of size 1 opened" in taken.graph.notes) == (taken.export.batch == "one")
    assert taken.graph.opset >= 13
    given = run_model(taken.graph.data, taken.export.inputs)
    np.testing.assert_allclose(given, taken.export.logits, atol=2e-3, rtol=2e-3)


def forms(graph: Graph, export: Export) -> Forms:
    inputs, classes = export.inputs, export.logits.argmax(axis=1)
    return make_forms(graph.data, inputs[:64], Judge(graph.data, [(inputs, classes)], 0.02))


def test_an_export_has_an_int8_form_that_may_be_served(taken: Taken) -> None:
    made = forms(opened(taken), taken.export).forms
    small = [form for form in made.values() if form.name in ("int8", "int8-dynamic", "mixed")]
    kept = [form for form in small if not form.refused]
    assert kept, {form.name: form.refused for form in small}
    assert min(len(form.data) for form in kept) < len(made["fp32"].data)
    assert all(form.agreement >= 0.95 for form in kept)


def test_an_export_can_be_cut_in_two(taken: Taken) -> None:
    graph, inputs = opened(taken), taken.export.inputs
    places = find_places(graph.data, inputs[:1])
    assert places
    place = places[len(places) // 2]
    halves = split(graph.data, place.tensors, inputs[:64], inputs, 0.99)
    features = run(Engine(halves.head, name="head"), {graph.input.name: inputs})
    answers = run(Engine(halves.tail, name="tail"), features)[graph.output.name]
    assert agreement(answers, taken.export.logits) >= 0.98
