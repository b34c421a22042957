"""A call on its way through a batcher, and what comes out for it."""

import asyncio
from dataclasses import dataclass, field

from inference_core.priority import Priority
from inference_core.tensors import Tensors


@dataclass(frozen=True)
class Batched:
    """One caller's own rows, and the seconds it waited and its batch ran."""

    outputs: Tensors
    queue_s: float
    infer_s: float


@dataclass(eq=False)
class Waiter:
    """A call that waits: `rows` samples from `caller`, since `enqueued` and until `deadline`.

    `kind` is the same for those whose inputs can be joined. `work` and `tag` are for the line that it waits
    in, which it does while it `waits`.
    """

    inputs: Tensors
    rows: int
    deadline: float
    enqueued: float
    future: asyncio.Future[Batched]
    priority: Priority
    caller: str
    tag: float = 0.0
    waits: bool = True
    work: float = field(init=False)
    kind: tuple[object, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.work = float(self.rows)
        self.kind = tuple((name, a.dtype.str, a.shape[1:]) for name, a in sorted(self.inputs.items()))
