"""The model as every peer runs it: ONNX Runtime, one thread, on the CPU."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


@dataclass(frozen=True)
class Given:
    """What an adapter is told: the ONNX file, the model's name, and the ports for HTTP and gRPC."""

    file: Path
    model: str
    http_port: int
    grpc_port: int


def given() -> Given:
    """From the environment, which worker processes inherit: `PEER_FILE`, `PEER_MODEL` and the ports."""
    value = os.environ
    return Given(
        Path(value["PEER_FILE"]),
        value["PEER_MODEL"],
        int(value["PEER_HTTP_PORT"]),
        int(value["PEER_GRPC_PORT"]),
    )


class Session:
    """A loaded model with one input and one output."""

    def __init__(self, file: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
        node = self._session.get_inputs()[0]
        self.input: str = node.name
        self.shape: tuple[int, ...] = tuple(node.shape[1:])
        self.output: str = self._session.get_outputs()[0].name
        self.classes: int = self._session.get_outputs()[0].shape[1]
        self.run(np.zeros((1, *self.shape), np.float32))

    def run(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Logits for `rows`, float32 `[n, *shape]`: float32 `[n, classes]`."""
        logits: NDArray[np.float32] = self._session.run(None, {self.input: rows})[0]
        return logits
