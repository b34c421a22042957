"""Every form of a model that an edge could serve, what each loses, and which are refused for it.

A form is one precision: FP32 as it came, FP16 weights, INT8 with ranges measured before (static) or anew
for every input (dynamic), INT8 with a few layers in float (mixed), 4-bit weights.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from inference_core.engine import Engine
from inference_core.errors import ModelError
from toolchain.quantize import Quantizer, dynamic
from toolchain.runs import Classes, accuracy, agreement, latencies, likeness, run_model
from toolchain.sensitivity import Layer, rank_layers, spare_layers
from toolchain.storage import half_weights, nibble_weights

Precision = Literal["fp32", "fp16", "int8", "int4", "mixed"]

# From which on a form is preferred to a later one that is hardly faster.
PREFERENCE = ("int8", "mixed", "int8-dynamic", "int4", "fp16", "fp32")
_HARDLY = 1.1  # times as long, and so many milliseconds more, are nothing to choose by
_HARDLY_MS = 0.05
_ERROR_SAMPLES = 256  # on which layers are compared
_LEAST_SHARE = 0.25  # of the weights that are multiplied, for which a kind of INT8 is tried
_STATIC = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_DYNAMIC = frozenset(("MatMul", "Gemm", "LSTM", "Attention"))
_MULTIPLYING = _STATIC | _DYNAMIC | {"GRU", "RNN"}
_ROUNDING = 1e-9  # of a difference of two shares

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """A model in one precision, and what it loses against FP32.

    `loss` is the largest fall of accuracy, 0 to 1, on any part it was judged on (of agreement with the
    full model's answers, without labels); `agreement` the share of all those samples on which it names the
    class that FP32 names. `refused` says why it must not be served, or is empty. `data` is empty for a form
    that cannot be made or run. `in_float` names the layers that stayed in float.
    """

    name: str
    precision: Precision
    method: str
    data: bytes
    loss: float = 0.0
    agreement: float = 1.0
    refused: str = ""
    in_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forms:
    """All forms of one model by name, and how sensitive its layers are, where that was looked for."""

    forms: Mapping[str, Form]
    layers: tuple[Layer, ...] = ()


class Judge:
    """What a form is held against: the FP32 model's answers on some parts, each with its right classes."""

    def __init__(
        self, model: bytes, parts: Sequence[tuple[NDArray[np.generic], Classes]], max_loss: float
    ) -> None:
        """`parts` are inputs `[n, ...]` and classes `[n]`; a form may lose at most `max_loss`, 0 to 1."""
        self._parts = parts
        self._max_loss = max_loss
        self._wanted = [run_model(model, inputs) for inputs, _ in parts]

    def judge(self, form: Form) -> Form:
        """`form` with its loss, its agreement and whether it is refused."""
        try:
            given = [run_model(form.data, inputs) for inputs, _ in self._parts]
        except ModelError as error:
            return _fails(form, error)
        losses = [
            accuracy(wanted, classes) - accuracy(logits, classes)
            for wanted, logits, (_, classes) in zip(self._wanted, given, self._parts, strict=True)
        ]
        loss = max(losses)
        refused = ""
        if loss > self._max_loss + _ROUNDING:
            refused = f"loses {100 * loss:.2f} points, the limit is {100 * self._max_loss:.2f}"
            _log.warning("form %s is refused: %s", form.name, refused)
        same = agreement(np.concatenate(given), np.concatenate(self._wanted))
        return replace(form, loss=loss, agreement=same, refused=refused)

    def error(self, model: bytes) -> float:
        """The mean absolute difference of the logits on the first samples."""
        inputs, _ = self._parts[0]
        few = run_model(model, inputs[:_ERROR_SAMPLES])
        return -likeness(few, self._wanted[0][:_ERROR_SAMPLES])[1]

    def fit(self, model: bytes) -> tuple[float, float]:
        """How alike `model` is on the first part, for choosing between methods."""
        return likeness(run_model(model, self._parts[0][0]), self._wanted[0])


def _fails(form: Form, error: ModelError) -> Form:
    """`form`, refused because it cannot be made or run."""
    refused = " ".join(str(error).split())
    _log.warning("form %s is refused: %s", form.name, refused)
    return replace(form, data=b"", loss=1.0, agreement=0.0, refused=refused)


def make_forms(model: bytes, samples: NDArray[np.generic], judge: Judge) -> Forms:
    """All forms of `model`, an FP32 ONNX file that was checked, that `judge` could be asked about.

    Static INT8 takes its ranges from `samples` `[n, ...]`, by the method that agrees best. Where it loses
    too much, layers are left in float until it does not.
    """
    made: list[Form | None] = [
        Form("fp32", "fp32", "as it came", model),
        _judged("fp16", "fp16", "weights in 16 bits, FP32 arithmetic", partial(half_weights, model), judge),
        _judged("int4", "int4", "MatMulNBits, blocks of 32", partial(nibble_weights, model), judge),
    ]
    if _share(model, _DYNAMIC) >= _LEAST_SHARE:
        made.append(_judged("int8-dynamic", "int8", "dynamic, per channel", partial(dynamic, model), judge))
    layers: tuple[Layer, ...] = ()
    if _share(model, _STATIC) >= _LEAST_SHARE:
        static, layers = _static(model, samples, judge)
        made += static
    return Forms({form.name: form for form in made if form is not None}, layers)


def choose_served(forms: Mapping[str, Form], sample: NDArray[np.generic]) -> str:
    """The name of the form to serve: the first of `PREFERENCE` that is hardly slower than the fastest.

    Timed on `sample` `[1, ...]` with one thread; refused forms are left out.
    """
    times = _times({name: form.data for name, form in forms.items() if not form.refused}, sample)
    limit = _HARDLY * min(times.values()) + _HARDLY_MS
    return next(name for name in PREFERENCE if times.get(name, np.inf) <= limit)


def is_faster(form: Form, other: Form, sample: NDArray[np.generic]) -> bool:
    """Whether `form` is more than hardly faster than `other`, on `sample` `[1, ...]` with one thread."""
    times = _times({"form": form.data, "other": other.data}, sample)
    return _HARDLY * times["form"] + _HARDLY_MS < times["other"]


def _times(models: Mapping[str, bytes], sample: NDArray[np.generic]) -> dict[str, float]:
    """Median milliseconds of each."""
    calls: dict[str, Callable[[], object]] = {}
    for name, data in models.items():
        engine = Engine(data, name=name)
        calls[name] = partial(engine.run, {engine.inputs[0].name: sample})
    return {name: latency.p50 for name, latency in latencies(calls).items()}


def _judged(
    name: str, precision: Precision, method: str, make: Callable[[], bytes | None], judge: Judge
) -> Form | None:
    """The form that `make` makes, if it makes one."""
    form = Form(name, precision, method, b"")
    try:
        data = make()
    except ModelError as error:
        return _fails(form, error)
    return None if data is None else judge.judge(replace(form, data=data))


def _static(model: bytes, samples: NDArray[np.generic], judge: Judge) -> tuple[list[Form], tuple[Layer, ...]]:
    """Static INT8, and the mixed form and the ranked layers where that is refused."""
    form = Form("int8", "int8", "static QDQ per channel", b"")
    try:
        with Quantizer(model, samples) as quantizer:
            data, method = quantizer.best(judge.fit)
            form = judge.judge(replace(form, method=f"{form.method}, {method.name} ranges", data=data))
            if not form.refused:
                return [form], ()
            layers = rank_layers(quantizer, method, judge.error)
            tried: list[Form] = []

            def good(candidate: bytes) -> bool:
                tried.append(judge.judge(Form("mixed", "mixed", form.method, candidate)))
                return not tried[-1].refused

            spared = spare_layers(quantizer, method, layers, good)
    except ModelError as error:
        return [_fails(form, error)], ()
    mixed = [] if spared is None else [replace(tried[-1], in_float=spared[1])]
    return [form, *mixed], tuple(layers)


def _share(model: bytes, operators: Collection[str]) -> float:
    """The share of the weights that some operator multiplies with that are multiplied by `operators`."""
    graph = onnx.load_from_string(model).graph
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}

    def weights(operators: Collection[str]) -> int:
        inside = {name for node in graph.node if node.op_type in operators for name in node.input}
        return sum(sizes.get(name, 0) for name in inside)

    return weights(operators) / max(1, weights(_MULTIPLYING))
