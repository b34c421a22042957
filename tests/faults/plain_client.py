"""What a device gets that asks the cloud itself, by plain gRPC calls: the twin of what the edge does."""

import threading
import time
from types import TracebackType
from typing import Self, TypeAlias

import grpc
import numpy as np

from inference_core.tensors import from_response, to_request
from protos import open_inference_pb2 as oip
from tests.bundles import LABELS, UNSURE, pixels

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
RIGHT = "blue"  # what the full model says of UNSURE
Call: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"


def message() -> bytes:
    """A request for UNSURE, of whatever version there is."""
    return to_request("colors", "", {"input": pixels(UNSURE)}, {}, "").SerializeToString()


def ask(call: Call, deadline_s: float) -> bool:
    """Ask once; whether the right answer came in time."""
    try:
        answer = oip.ModelInferResponse.FromString(call(message(), timeout=deadline_s))
    except grpc.RpcError:
        return False
    (logits,) = from_response(answer).values()
    return LABELS[int(np.argmax(logits))] == RIGHT


class PlainClient:
    """Asks for the same picture at a steady rate, from entering to leaving its block; no retries, no breaker,
    no answer of its own, and whatever version there is."""

    def __init__(self, port: int, *, rate: float, deadline_ms: int) -> None:
        self.answers: list[tuple[float, bool]] = []  # when it was asked, and whether it was answered in time
        self._address = f"127.0.0.1:{port}"
        self._rate = rate
        self._deadline_s = deadline_ms / 1000
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plain client")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def failed_in(self, start: float, end: float) -> tuple[int, int]:
        """Of the requests sent in this stretch of time: how many got no right answer in time, and all."""
        answers = [right for sent, right in self.answers if start <= sent < end]
        return answers.count(False), len(answers)

    def _run(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            call: Call = channel.unary_unary(MODEL_INFER)
            while not self._stopping.is_set():
                sent = time.monotonic()
                self.answers.append((sent, ask(call, self._deadline_s)))
                self._stopping.wait(sent + 1 / self._rate - time.monotonic())
