"""KServe's Python server with one worker; what it logs of every request is turned off."""

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # type: ignore[import-not-found]
from kserve.logging import KSERVE_LOG_CONFIG, configure_logging  # type: ignore[import-not-found]

from benchmarks.peer_servers.session import Session, given

ASKED = given()


class Classifier(Model):  # type: ignore[misc]
    """Runs the ONNX file."""

    def __init__(self) -> None:
        super().__init__(ASKED.model)
        self.session = Session(ASKED.file)
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,  # noqa: ARG002
        response_headers: object = None,  # noqa: ARG002
    ) -> InferResponse:
        """Named by KServe."""
        logits = self.session.run(payload.inputs[0].as_numpy())
        output = InferOutput(self.session.output, list(logits.shape), "FP32")
        output.set_data_from_numpy(logits, binary_data=payload.use_binary_outputs)
        return InferResponse(payload.id, self.name, [output], use_binary_outputs=payload.use_binary_outputs)


def _quiet() -> None:
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.error", "uvicorn.access"):
        KSERVE_LOG_CONFIG["loggers"][name]["level"] = "WARNING"
    configure_logging(KSERVE_LOG_CONFIG)


if __name__ == "__main__":
    _quiet()
    ModelServer(
        http_port=ASKED.http_port,
        grpc_port=ASKED.grpc_port,
        workers=1,
        enable_latency_logging=False,
    ).start([Classifier()])
