"""What an HTTP connection waits for, and for how long and how much of it."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one server allows strangers. Times are in seconds: for a request's head, for its body and for
    taking the answer to it, and between two requests. `head_bytes` bounds request line and headers."""

    connections: int = 1000
    head_bytes: int = 16 << 10
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 30.0


class Phase(Enum):
    """What a connection is waiting for its client to send."""

    NOTHING = "nothing"  # a request may come
    HEAD = "head"
    BODY = "body"
    END = "end"  # it has been refused: what still comes is thrown away
