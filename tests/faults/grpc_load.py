"""Requests to a cloud on a kept stream, as edges send them, at a steady rate, whatever has become of those
before."""

import asyncio
import itertools
import threading
import time
from types import TracebackType
from typing import Self

import grpc
import uvloop

from inference_core.tensors import to_request
from protos import open_inference_pb2 as oip
from tests.bundles import UNSURE, pixels
from tests.joint.device import Answer, Answers

_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
_STATUS = {"OK": 200, "RESOURCE_EXHAUSTED": 503, "DEADLINE_EXCEEDED": 504}
_GIVE_UP_S = 5.0


class GrpcLoad:
    """Runs from entering to leaving its block, and leaves when every request has its answer. A status is told
    as its counterpart of HTTP; 0 for what is no answer to a busy service, and for none."""

    def __init__(self, port: int, *, rate: float, deadline_ms: int) -> None:
        self._address = f"127.0.0.1:{port}"
        self._rate = rate
        self._deadline_s = deadline_ms / 1000
        request = to_request(
            "colors", "", {"input": pixels(UNSURE)}, {"tandem_deadline_ms": float(deadline_ms)}, ""
        )
        self._message = request.SerializeToString()
        self._sent: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="grpc load")
        self._done: list[Answer] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Ask no more; what has been asked is still answered."""
        self._stopping.set()

    @property
    def answers(self) -> Answers:
        """Those that have come so far."""
        return Answers(self._done)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            multi: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_STREAM_INFER)
            stream = multi()
            reading = asyncio.create_task(self._read(stream))
            await self._write(stream)
            await stream.done_writing()
            await asyncio.wait((reading,), timeout=_GIVE_UP_S)
            reading.cancel()
            stream.cancel()
        for sent in self._sent.values():
            self._done.append(Answer(sent, _GIVE_UP_S, self._deadline_s, 0, {}, "no answer"))

    async def _write(self, stream: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        started = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, started + number / self._rate - time.monotonic()))
            if self._stopping.is_set():
                return
            key = str(number)
            self._sent[key] = time.monotonic()
            # Messages of one type, one behind the other, are one message with the fields of both.
            await stream.write(self._message + oip.ModelInferRequest(id=key).SerializeToString())

    async def _read(self, stream: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        while (data := await stream.read()) is not grpc.aio.EOF:
            now = time.monotonic()
            assert isinstance(data, bytes)
            answer = oip.ModelStreamInferResponse.FromString(data)
            told = answer.infer_response.parameters
            code = told["tandem_status"].string_param if answer.error_message else "OK"
            sent = self._sent.pop(answer.infer_response.id)
            status = _STATUS.get(code, 0)
            self._done.append(Answer(sent, now - sent, self._deadline_s, status, {}, code))
