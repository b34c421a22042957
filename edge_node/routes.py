"""Which way a sample takes in mode `auto`: the one that is predicted to end first. Pure.

The edge model's answer costs its own time and, for the share of samples that it is unsure of, the best way
up. Going up at once costs that way alone. Once the edge is unsure, every way up is a prospect: the time to
make what is sent, the link's to carry it, and the cloud's. None is taken that would probably end too late.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from edge_node.experience import Experience
from edge_node.link import Transfer
from edge_node.policy import Payload, Privacy, Route, may_leave, send_original

EXPLORED = 0.02  # share of the escalations that try a way about which too little is known
_UNKNOWN = 0.25  # spread of a prospect, as a share of it, from which it is worth a try
_CLEARLY = 0.8  # of the time by the edge first, that the cloud at once has to stay under
_WORTH = 1.25  # times the best one's time that a try may take
_ALIKE, _ALIKE_S = 1.02, 0.0002  # of the best one's time: what is no slower than this may as well be smaller


class Kind(StrEnum):
    """What goes up: the image as it came, the input tensor, or the features at a cut."""

    IMAGE = "image"
    TENSOR = "tensor"
    FEATURES = "features"


@dataclass(frozen=True, slots=True)
class Way:
    """One thing that can be sent up. Features may be `packed`: deflated."""

    kind: Kind
    cut: str = ""
    packed: bool = False

    @property
    def model(self) -> str:
        """What the cloud's time goes by: the kind, and the cut."""
        return f"{self.kind}.{self.cut}" if self.cut else self.kind.value

    def __str__(self) -> str:
        return f"{self.model}.packed" if self.packed else self.model


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one sample in each form; `image` is None for a sample that came as a tensor."""

    image: int | None
    tensor: int
    features: dict[str, int]


@dataclass(frozen=True, slots=True)
class Prospect:
    """One way, when it would end, in seconds from now, with one standard deviation, and its bytes up."""

    way: Way
    seconds: float
    spread: float
    bytes_up: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The way taken, None for none, out of these prospects; `explored` says that it was not the best."""

    taken: Prospect | None
    prospects: tuple[Prospect, ...]
    explored: bool = False


def ways(*, image: bool, cuts: Iterable[str], packs: bool, privacy: Privacy) -> tuple[Way, ...]:
    """Every way that is open. `image` says whether the sample came as one that the cloud can decode, `packs`
    whether the cloud unpacks features."""
    whole = [Way(Kind.IMAGE)] * image + [Way(Kind.TENSOR)] if may_leave(privacy, Route.INPUT) else []
    if not may_leave(privacy, Route.FEATURES):
        cuts = ()
    forms = (False, True) if packs else (False,)
    return (*whole, *(Way(Kind.FEATURES, cut, packed) for cut in cuts for packed in forms))


def prospect(
    way: Way,
    sizes: Sizes,
    experience: Experience,
    transfer: Callable[[int, int], Transfer],
    *,
    decoded: bool,
    made: str | None = None,
) -> Prospect:
    """What `way` promises for a sample of these `sizes`, if it were taken now.

    `transfer` is the link's guess for bytes up and down. `decoded` says that the input tensor is there, and
    `made` is the cut whose features are.
    """
    seconds = 0.0 if decoded or way.kind is Kind.IMAGE else experience.preprocess_s.value
    size = float(sizes.tensor)
    if way.kind is Kind.IMAGE:
        size = float(sizes.image or 0)
    elif way.kind is Kind.FEATURES:
        seconds += 0.0 if way.cut == made else experience.head_s[way.cut].value
        size = sizes.features[way.cut] * (experience.packed[way.cut].value if way.packed else 1.0)
    up = round(size + experience.overhead_bytes.value)
    carried = transfer(up, round(experience.answer_bytes.value))
    seconds += carried.seconds + experience.cloud_s[way.model].value
    return Prospect(way, seconds, carried.spread, up)


def best(prospects: Iterable[Prospect], budget_s: float, *, caution: float = 1.0) -> Prospect | None:
    """The first to end among those that `budget_s` seconds are enough for, `caution` standard deviations
    included; of equally quick ones the smallest. None when all would be late."""
    in_time = [p for p in prospects if p.seconds + caution * p.spread <= budget_s]
    if not in_time:
        return None
    quickest = min(p.seconds for p in in_time)
    alike = [p for p in in_time if p.seconds <= max(quickest * _ALIKE, quickest + _ALIKE_S)]
    return min(alike, key=lambda p: (p.bytes_up, p.seconds))


def choose(prospects: Iterable[Prospect], budget_s: float, *, draw: float, caution: float = 1.0) -> Choice:
    """The way to take. `draw` is a random number from 0 to 1: below `EXPLORED`, a way is taken that may be
    better than it looks, if there is one, in time by the same rule."""
    every = tuple(prospects)
    taken = best(every, budget_s, caution=caution)
    if taken is not None and draw < EXPLORED:
        hopes = [
            one
            for one in every
            if one is not taken and _is_worth(one, taken, budget_s - caution * one.spread)
        ]
        if hopes:
            return Choice(min(hopes, key=lambda p: p.seconds - 2 * p.spread), every, explored=True)
    return Choice(taken, every)


def _is_worth(one: Prospect, taken: Prospect, budget_s: float) -> bool:
    """Whether `one` is worth a try: little known, perhaps quicker than `taken`, not much slower, in time."""
    unknown = one.spread > _UNKNOWN * one.seconds and one.seconds - 2 * one.spread < taken.seconds
    return unknown and one.seconds < _WORTH * taken.seconds and one.seconds <= budget_s


def edge_first(edge_s: float, escalated: float, after: Prospect | None, direct: Prospect | None) -> bool:
    """Whether the edge model is run before anything is sent.

    `edge_s` is what it takes, `escalated` the share of samples that it is unsure of, `after` the best way
    then, and `direct` the best way now. Without a way now there is nothing else to do. An answer in hand is
    worth something: the cloud has to be clearly quicker.
    """
    if direct is None or after is None:
        return True
    return _CLEARLY * (edge_s + escalated * after.seconds) <= direct.seconds


def whole(payload: Payload, sample: object, tensor_bytes: int) -> Way:
    """How an input goes up as a whole: as the image that it came as, or as its tensor."""
    size = len(sample) if isinstance(sample, bytes) else None
    return Way(Kind.IMAGE if send_original(payload, size, tensor_bytes) else Kind.TENSOR)
