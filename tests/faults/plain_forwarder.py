"""What would become of samples if each try were a new sample to the cloud: the twin of keys."""

import threading
import time
from collections.abc import Iterator
from secrets import token_hex
from types import TracebackType
from typing import Self

import grpc

from protos import fleet_pb2
from tests.faults.plain_client import Call

PUT_SAMPLE = "/tandem.fleet.v1.Fleet/PutSample"
_TIMEOUT_S = 2.0
_PAUSE_S = 0.01


def put_request(picture: bytes, digest: str) -> fleet_pb2.PutSampleRequest:
    """A sample under a new key; `digest` is that of the model's bundle."""
    return fleet_pb2.PutSampleRequest(
        key=token_hex(16),
        node="plain",
        model="colors",
        version="1",
        bundle=digest,
        reason="requested",
        kept_at=time.time(),
        image=picture,
    )


class PlainForwarder:
    """Sends pictures to the cloud, some `beside` each other, each under a new key until it is acknowledged.
    From entering to leaving its block; `digest` is that of the model's bundle."""

    def __init__(self, port: int, pictures: Iterator[bytes], digest: str, *, beside: int = 6) -> None:
        self._address = f"127.0.0.1:{port}"
        self._pictures = pictures
        self._digest = digest
        self._stopping = threading.Event()
        self._taking = threading.Lock()
        self._threads = [threading.Thread(target=self._run, name="plain forwarder") for _ in range(beside)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with grpc.insecure_channel(
            self._address, options=[("grpc.max_reconnect_backoff_ms", 100)]
        ) as channel:
            put: Call = channel.unary_unary(PUT_SAMPLE)
            while not self._stopping.wait(_PAUSE_S):
                with self._taking:
                    picture = next(self._pictures, None)
                if picture is None:
                    return
                while not self._put(put, picture) and not self._stopping.wait(_PAUSE_S):
                    pass

    def _put(self, put: Call, picture: bytes) -> bool:
        try:
            put(put_request(picture, self._digest).SerializeToString(), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return True
