"""What a bundle is made from, and what it has to keep; both are checked when they are made."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from inference_core import trust
from inference_core.errors import BundleError, InvalidInput
from inference_core.preprocess import Preprocess
from toolchain.graph import Graph
from toolchain.samples import Samples

MAX_LABEL = 200  # characters
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")  # as the manifest has it
_LONGEST_CUT = 64 - len("head..onnx")  # which its files are named by


@dataclass(frozen=True)
class Targets:
    """What the bundle has to keep.

    With `confidence`, at most the share `gap` of all inputs are answered by the edge, wrongly, while the
    full model would have been right; or, where `budget` is given, at most that share is escalated. No
    form may lose more than `max_loss` of accuracy, and no cut may change more than the share `max_change`
    of the full model's answers. Raises `InvalidInput` for a number that is no such share.
    """

    gap: float = 0.01
    confidence: float = 0.95
    budget: float | None = None
    max_loss: float = 0.01
    max_change: float = 0.01

    def __post_init__(self) -> None:
        shares = {"gap": self.gap, "confidence": self.confidence, "escalation budget": self.budget}
        for name, value in shares.items():
            if value is not None and not 0 < value < 1:
                raise InvalidInput(f"the {name} must lie between 0 and 1, got {value:g}")
        for name, share in (("loss", self.max_loss), ("change by a cut", self.max_change)):
            if not 0 <= share <= 1:
                raise InvalidInput(f"the {name} allowed must be from 0 to 1, got {share:g}")

    @property
    def bound(self) -> float:
        """What is certified: the gap, or else the budget."""
        return self.gap if self.budget is None else self.budget


class Exits(StrEnum):
    """Whether the edge gets an early exit of the full model: where it is faster than any form of that, or
    in any case, or not at all.
    """

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True)
class Recipe:
    """What a bundle is made from.

    `full` and `edge` are models that were checked; without `edge` the edge gets a form of the full model
    or an early exit of it, as `exits` says. `samples` are parted by `seed`, unless there is a `test` part of
    its own. `cuts` are tensors of the simplified full model by the cut's name; without it they are looked
    for. With `half`, weights of the full model and of the cuts are stored in 16 bits.

    Raises `InvalidInput` for names that a bundle cannot have, for labels that do not fit the model, and
    when only one of `samples` and `test` has labels.
    """

    model: str
    version: str
    full: Graph
    samples: Samples
    labels: tuple[str, ...]
    edge: Graph | None = None
    preprocess: Preprocess | None = None
    test: Samples | None = None
    targets: Targets = field(default_factory=Targets)
    cuts: Mapping[str, tuple[str, ...]] | None = None
    exits: Exits = Exits.AUTO
    half: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_names(self.model, self.version, self.cuts or ())
        check_labels(self.labels)
        if self.full.output.shape != (len(self.labels),):
            outputs = self.full.output.shape[0]
            raise InvalidInput(f"{len(self.labels)} labels, the model has {outputs} outputs")
        if self.test is not None and (self.test.classes is None) != (self.samples.classes is None):
            raise InvalidInput("either both the data and the test data have labels, or neither")
        if self.edge is not None and self.exits is Exits.ALWAYS:
            raise InvalidInput("an edge model and an early exit in any case: choose one of both")


def check_names(model: str, version: str, cuts: Collection[str]) -> None:
    """Raise `InvalidInput` unless a bundle can have these names."""
    for what, name, longest in (("model", model, 64), *(("cut", cut, _LONGEST_CUT) for cut in cuts)):
        try:
            trust.check_name(what, name)
        except BundleError as error:
            raise InvalidInput(
                f"{error}: small letters, digits, '.', '_' and '-', beginning with a letter or a digit"
            ) from error
        if len(name) > longest:
            raise InvalidInput(f"{what} {name!r} is longer than {longest} characters")
    if not _VERSION.fullmatch(version):
        raise InvalidInput(f"version {version!r} does not match ^{_VERSION.pattern}$")


def check_labels(labels: Collection[str]) -> None:
    """Raise `InvalidInput` for a label that is empty, too long, not printable or there twice."""
    for label, times in Counter(labels).items():
        if not label.strip() or not label.isprintable() or len(label) > MAX_LABEL:
            raise InvalidInput(f"label {label!a} is not 1 to {MAX_LABEL} printable characters")
        if times > 1:
            raise InvalidInput(f"label {label!r} is named more than once")
