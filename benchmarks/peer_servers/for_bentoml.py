"""BentoML with one worker: JSON bodies, the values as an array or as base64."""

import base64

import bentoml  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_servers.session import Session, given

ASKED = given()


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Classifier:
    """Runs the ONNX file."""

    def __init__(self) -> None:
        self.session = Session(ASKED.file)

    @bentoml.api  # type: ignore[untyped-decorator]
    async def values(self, values: NDArray[np.float32]) -> dict[str, list[float]]:
        """The logits for one sample."""
        rows = values.astype(np.float32).reshape(1, *self.session.shape)
        return {"logits": self.session.run(rows)[0].tolist()}

    @bentoml.api  # type: ignore[untyped-decorator]
    async def encoded(self, content: str) -> dict[str, list[float]]:
        """The same for the sample's bytes in base64."""
        rows = np.frombuffer(base64.b64decode(content), "<f4").reshape(1, *self.session.shape)
        return {"logits": self.session.run(rows)[0].tolist()}
