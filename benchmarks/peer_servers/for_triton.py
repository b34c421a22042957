"""Triton through pytriton: its server, and a Python process that runs the model."""

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import ModelConfig, Tensor  # type: ignore[import-not-found]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

from benchmarks.peer_servers.session import Session, given


def serve() -> None:
    """Until the process is ended."""
    asked = given()
    session = Session(asked.file)

    @batch  # type: ignore[untyped-decorator]
    def infer(**inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return {session.output: session.run(inputs[session.input])}

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=asked.http_port,
        grpc_address="127.0.0.1",
        grpc_port=asked.grpc_port,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=asked.model,
            infer_func=infer,
            inputs=[Tensor(name=session.input, dtype=np.float32, shape=session.shape)],
            outputs=[Tensor(name=session.output, dtype=np.float32, shape=(session.classes,))],
            config=ModelConfig(max_batch_size=8),
        )
        triton.serve()


if __name__ == "__main__":
    serve()
