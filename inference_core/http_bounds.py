"""What an HTTP connection waits for, and for how long and how much of it."""

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


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


class Flow(FlowControl):
    """Reads nothing while requests wait for their turn: else they would become ever more."""

    def __init__(self, transport: asyncio.Transport, waiting: deque[Any]) -> None:
        """`waiting` are the requests of this connection that wait."""
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Read again, unless somebody waits."""
        if not self._waiting:
            super().resume_reading()
