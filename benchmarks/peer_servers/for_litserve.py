"""LitServe with one worker: JSON bodies, the values as a list or as base64."""

import base64
from typing import Any

import litserve  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_servers.session import Session, given

ASKED = given()


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """Runs the ONNX file."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Named by LitServe."""
        self.session = Session(ASKED.file)

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.float32]:
        """Named by LitServe."""
        if "base64" in request:
            values = np.frombuffer(base64.b64decode(request["base64"]), "<f4")
        else:
            values = np.asarray(request["values"], np.float32)
        return values.reshape(1, *self.session.shape)

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Named by LitServe."""
        return self.session.run(x)

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, list[float]]:
        """Named by LitServe."""
        return {"logits": output[0].tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(
        host="127.0.0.1",
        port=ASKED.http_port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
