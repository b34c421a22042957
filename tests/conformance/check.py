"""What the checks share: the service that is checked, and the lines that say what came of each.

Runs in the client's environment, which has NumPy and `tritonclient` and nothing of Tandem's.
"""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

PREFIX = "check_"
SURE, UNSURE = (255, 0, 0), (130, 128, 128)
RED, BLUE = 0, 2
LABELS = ("red", "green", "blue")


@dataclass(frozen=True)
class Target:
    """A running service with the bundle `colors`: `service` is "edge" or "cloud", the ports are its own,
    `image` is a red picture as PNG and `proto` the descriptor of its protocol's file."""

    service: str
    http: str
    grpc: str
    image: bytes
    proto: bytes

    @property
    def models(self) -> list[str]:
        """What it serves, by name."""
        if self.service == "edge":
            return ["colors"]
        cuts = [f"colors.{kind}.{cut}" for kind in ("packed", "tail") for cut in ("means", "pixels")]
        return ["colors", "colors.image", *cuts]

    @property
    def max_batch_size(self) -> int:
        """How many samples it takes in one request."""
        return 64 if self.service == "edge" else 16


def pixels(*colors: tuple[int, int, int]) -> NDArray[np.float32]:
    """Pictures of one colour each, as the model `colors` takes them: float32 `[n, 3, 8, 8]`."""
    rows = np.asarray(colors, np.float32).reshape(-1, 3, 1, 1) / np.float32(255)
    return np.ascontiguousarray(np.broadcast_to(rows, (len(colors), 3, 8, 8)))


def objects(*elements: bytes) -> NDArray[np.object_]:
    """A BYTES tensor of one axis."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def winners(logits: NDArray[np.float32] | None) -> list[int]:
    """The strongest class of each sample."""
    assert logits is not None
    assert logits.dtype == np.float32
    assert logits.shape[1:] == (3,)
    return [int(row.argmax()) for row in logits]


@contextlib.contextmanager
def refused(text: str, *statuses: str) -> Iterator[None]:
    """What happens inside must be refused by the service, with one of the statuses and words with `text`."""
    caught: InferenceServerException | None = None
    try:
        yield
    except InferenceServerException as error:
        caught = error
    assert caught is not None, f"not refused; expected {statuses} with {text!r}"
    assert caught.status() in statuses, f"status {caught.status()}: {caught.message()}"
    assert text in caught.message(), caught.message()


def run(checks: Mapping[str, Any]) -> None:
    """Run every function of `checks` called `check_...` on the target named by the first argument; print
    a line of JSON for each: its name, the error or null, and the seconds it took."""
    given = json.loads(sys.argv[1])
    image, proto = (bytes.fromhex(given[name]) for name in ("image", "proto"))
    target = Target(given["service"], given["http"], given["grpc"], image, proto)
    for name, check in checks.items():
        if name.startswith(PREFIX):
            started = time.monotonic()
            error = _error(check, target)
            line = {"check": name, "error": error, "seconds": round(time.monotonic() - started, 3)}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


def _error(check: Callable[[Target], None], target: Target) -> str | None:
    try:
        check(target)
    except Exception:  # noqa: BLE001 - whatever it is, the line tells it
        return traceback.format_exc()
    return None
