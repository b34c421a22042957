"""MLServer in one process: a custom runtime, without its pool of workers."""

import asyncio

from mlserver import MLModel, MLServer, ModelSettings, Settings  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from benchmarks.peer_servers.session import Session, given

ASKED = given()


class OnnxRuntime(MLModel):  # type: ignore[misc]
    """Runs the ONNX file."""

    async def load(self) -> bool:
        """Named by MLServer."""
        self.session = Session(ASKED.file)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Named by MLServer."""
        logits = self.session.run(NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output(self.session.output, logits)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def serve() -> None:
    """Until the process is ended."""
    settings = Settings(
        host="127.0.0.1",
        http_port=ASKED.http_port,
        grpc_port=ASKED.grpc_port,
        parallel_workers=0,
        metrics_endpoint=None,
        debug=False,
        grpc_max_message_length=-1,
    )
    await MLServer(settings).start([ModelSettings(name=ASKED.model, implementation=OnnxRuntime)])


asyncio.run(serve())
