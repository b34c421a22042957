"""Emulated links in a process of their own: what is measured shares no interpreter with them."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from benchmarks.conditions import Conditions
from benchmarks.link import Counts, Emulator


class RemoteEmulator:
    """An `Emulator` in a process of its own, with the same calls."""

    def __init__(self, seed: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, seed), name="link", daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.send(None)
        self._process.join(10)

    def add(self, target: int) -> int:
        """As `Emulator.add`."""
        return int(self._call("add", target))

    def set(self, conditions: Conditions) -> None:
        """As `Emulator.set`."""
        self._call("set", conditions)

    def counts(self) -> list[Counts]:
        """As `Emulator.counts`."""
        return list(self._call("counts"))

    def _call(self, name: str, *arguments: object) -> Any:
        self._end.send((name, arguments))
        return self._end.recv()


def _serve(end: Connection, seed: int) -> None:
    with Emulator(seed) as links:
        calls: dict[str, Callable[..., object]] = {"add": links.add, "set": links.set, "counts": links.counts}
        while (message := end.recv()) is not None:
            name, arguments = message
            end.send(calls[name](*arguments))
