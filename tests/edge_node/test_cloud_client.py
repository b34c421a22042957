"""The way up, against a real gRPC server that does as it is told."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_node.breaker import Breaker, Rules, State
from edge_node.cloud import Attempt
from edge_node.cloud_client import CloudClient
from edge_node.reply import REASON_KEY, REFUSALS, TOO_LARGE
from edge_node.throttle import Throttle
from inference_core.errors import (
    BreakerOpen,
    CloudRefused,
    CloudUnavailable,
    CloudUnreachable,
    DeadlineExceeded,
    SwitchedOff,
    Throttled,
)
from inference_core.tensors import get_parameters
from protos import open_inference_pb2 as oip
from tests.bundles import UNSURE, pixels
from tests.edge_node.scripted_cloud import (
    LOGITS,
    PATIENCE_S,
    Code,
    Context,
    ScriptedCloud,
    aborting,
    answering,
    message,
    query,
)

pytestmark = pytest.mark.anyio


class Rig:
    """A client, its breaker and what it told of its connection."""

    def __init__(self, target: str, *, failures: int, open_s: float, **changes: Any) -> None:
        self.connections: list[bool] = []
        self._changed = asyncio.Event()
        self.breaker = Breaker(Rules(failures), open_s, lambda: 1.0, lambda _: self._changed.set())
        given: dict[str, Any] = {
            "connect_timeout_s": 0.5,
            "patience_s": PATIENCE_S,
            "max_message_bytes": 1 << 20,
        }
        self.client = CloudClient(target, self.breaker, on_connection=self._tell, **given | changes)

    def _tell(self, connected: bool) -> None:
        self.connections.append(connected)
        self._changed.set()

    async def connection(self, *expected: bool) -> None:
        """Wait until the client has told of exactly these changes."""
        async with asyncio.timeout(PATIENCE_S):
            while self.connections != list(expected):
                self._changed.clear()
                await self._changed.wait()

    async def infer(self, timeout_s: float = PATIENCE_S, **changes: Any) -> list[float]:
        answer = await self.client.infer(query(**changes), timeout_s)
        return [float(value) for value in answer.logits[0]]

    async def fails(self, timeout_s: float = PATIENCE_S, **changes: Any) -> CloudUnavailable:
        with pytest.raises(CloudUnavailable) as caught:
            await self.client.infer(query(**changes), timeout_s)
        return caught.value

    async def is_closed(self) -> None:
        """Wait until the breaker is."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.is_in(State.CLOSED):
                self._changed.clear()
                await self._changed.wait()

    def is_in(self, state: State) -> bool:
        return self.breaker.state is state


@contextlib.asynccontextmanager
async def dialling(
    target: str, *, failures: int = 1, open_s: float = 1000.0, **changes: Any
) -> AsyncIterator[Rig]:
    """A client of whatever is at `target`. One failure opens its breaker, for good unless told otherwise."""
    made = Rig(target, failures=failures, open_s=open_s, **changes)
    made.client.start()
    try:
        yield made
    finally:
        await made.client.close()


@contextlib.asynccontextmanager
async def connected(cloud: ScriptedCloud, **changes: Any) -> AsyncIterator[Rig]:
    async with dialling(f"127.0.0.1:{cloud.port}", **changes) as made:
        await made.connection(True)
        yield made


@pytest.fixture
async def cloud() -> AsyncIterator[ScriptedCloud]:
    made = ScriptedCloud()
    await made.start()
    yield made
    made.release.set()
    await made.stop()


async def test_answer(cloud: ScriptedCloud) -> None:
    async with connected(cloud) as r:
        answer = await r.client.infer(query(), 10.0)
        assert answer.logits.tolist() == LOGITS.tolist()
        assert answer.parameters == {"tandem_infer_ms": 1.5}
        (request,) = cloud.requests
        assert (request.model_name, request.model_version, request.id) == ("colors", "1", "id-7")
        assert get_parameters(request.parameters) == {"tandem_bundle": "abc"}
        assert request.raw_input_contents[0] == pixels(UNSURE).tobytes()
        assert answer.bytes_up == request.ByteSize()
        assert answer.bytes_down == message(tandem_infer_ms=1.5).ByteSize()


async def test_what_is_left_of_the_deadline_travels_along(cloud: ScriptedCloud) -> None:
    async with connected(cloud) as r:
        await r.infer(10.0)
        (remaining,) = cloud.remaining
        assert 5.0 < remaining < 10.5  # gRPC rounds it on the wire


async def test_server_that_names_no_version_is_believed(cloud: ScriptedCloud) -> None:
    cloud.behave = answering(message(version=""))
    async with connected(cloud) as r:
        assert await r.infer() == [1.0, 2.0, 3.0]


# What each status makes of the call: class, reason, and whether it speaks against the cloud.
STATUSES: dict[grpc.StatusCode, tuple[type[CloudUnavailable], str, bool]] = {
    Code.OK: (CloudRefused, "invalid_answer", True),
    Code.UNAVAILABLE: (CloudUnreachable, "cloud_unreachable", False),
    Code.CANCELLED: (CloudUnreachable, "cloud_unreachable", False),
    Code.DEADLINE_EXCEEDED: (DeadlineExceeded, "deadline", True),
    Code.RESOURCE_EXHAUSTED: (CloudRefused, "overloaded", False),
    Code.FAILED_PRECONDITION: (CloudRefused, "version_mismatch", False),
    Code.NOT_FOUND: (CloudRefused, "model_missing", False),
    Code.UNIMPLEMENTED: (CloudRefused, "model_missing", False),
    Code.INVALID_ARGUMENT: (CloudRefused, "input_refused", False),
    Code.OUT_OF_RANGE: (CloudRefused, "input_refused", False),
    Code.UNAUTHENTICATED: (CloudRefused, "unauthorized", False),
    Code.PERMISSION_DENIED: (CloudRefused, "unauthorized", False),
    Code.INTERNAL: (CloudRefused, "cloud_error", True),
    Code.UNKNOWN: (CloudRefused, "cloud_error", True),
    Code.DATA_LOSS: (CloudRefused, "cloud_error", True),
    Code.ABORTED: (CloudRefused, "cloud_error", True),
    Code.ALREADY_EXISTS: (CloudRefused, "cloud_error", True),
}


def test_every_status_has_its_leaf() -> None:
    assert set(REFUSALS) == set(STATUSES) == set(grpc.StatusCode)
    for code, make in REFUSALS.items():
        error = make("text")
        assert (type(error), error.reason) == STATUSES[code][:2]
        assert str(error) == "text"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not Code.OK])
async def test_status_of_a_call(cloud: ScriptedCloud, code: grpc.StatusCode) -> None:
    kind, reason, alarming = STATUSES[code]
    cloud.behave = aborting(code)
    async with connected(cloud) as r:
        error = await r.fails()
        assert (type(error), error.reason) == (kind, reason)
        assert code.name in str(error)
        assert error.bytes_up == cloud.requests[0].ByteSize() > 768
        assert r.is_in(State.OPEN if alarming else State.CLOSED)


def renamed(array: NDArray[Any], name: str = "logits") -> oip.ModelInferResponse:
    return message({name: array})


def cut_off() -> oip.ModelInferResponse:
    response = message()
    response.raw_output_contents[0] = response.raw_output_contents[0][:-1]
    return response


def uncounted() -> oip.ModelInferResponse:
    response = message()
    response.raw_output_contents.append(b"more")
    return response


def strange() -> oip.ModelInferResponse:
    response = message()
    response.outputs[0].datatype = "FP8"
    return response


NONSENSE: dict[str, oip.ModelInferResponse | bytes] = {
    "no output": oip.ModelInferResponse(model_version="1"),
    "nothing at all": b"",
    "no message": b"\xff" * 40,
    "other output": renamed(LOGITS, "probabilities"),
    "no batch axis": renamed(LOGITS[0]),
    "two samples": renamed(np.concatenate([LOGITS, LOGITS])),
    "too few classes": renamed(LOGITS[:, :2]),
    "doubles": renamed(LOGITS.astype(np.float64)),
    "integers": renamed(LOGITS.astype(np.int32)),
    "too many parameters": message(None, "1", **{f"p{number}": 1 for number in range(65)}),
    "too many fields": message().SerializeToString() + b"\x22\x00" * 6000,
    "NaN": renamed(LOGITS * np.float32("nan")),
    "infinity": renamed(LOGITS * np.float32("inf")),
    "bytes missing": cut_off(),
    "too many raw parts": uncounted(),
    "unknown datatype": strange(),
}


@pytest.mark.parametrize("case", NONSENSE)
async def test_nonsense_is_refused_and_speaks_against_the_cloud(cloud: ScriptedCloud, case: str) -> None:
    cloud.behave = answering(NONSENSE[case])
    async with connected(cloud) as r:
        error = await r.fails()
        assert (type(error), error.reason) == (CloudRefused, "invalid_answer")
        assert error.bytes_up == cloud.requests[0].ByteSize()
        assert r.is_in(State.OPEN)


async def test_answer_of_another_version_is_refused(cloud: ScriptedCloud) -> None:
    cloud.behave = answering(message(version="2"))
    async with connected(cloud) as r:
        error = await r.fails()
        assert (type(error), error.reason) == (CloudRefused, "version_mismatch")
        assert "2" in str(error)
        assert error.bytes_up > 768
        assert r.is_in(State.CLOSED)


async def test_failures_in_a_row_open_the_breaker_and_the_cloud_is_left_alone(cloud: ScriptedCloud) -> None:
    cloud.behave = aborting(Code.INTERNAL)
    async with connected(cloud, failures=2) as r:
        await r.fails()
        cloud.behave = answering(message())
        assert await r.infer() == [1.0, 2.0, 3.0]
        cloud.behave = aborting(Code.INTERNAL)
        await r.fails()
        r.client.check(PATIENCE_S)
        await r.fails()
        asked = len(cloud.requests)
        error = await r.fails()
        assert (type(error), error.reason, error.bytes_up) == (BreakerOpen, "breaker_open", 0)
        with pytest.raises(BreakerOpen):
            r.client.check(PATIENCE_S)
        assert len(cloud.requests) == asked


async def test_a_trial_that_is_answered_closes_the_breaker(cloud: ScriptedCloud) -> None:
    cloud.behave = aborting(Code.INTERNAL)
    async with connected(cloud, open_s=0.0) as r:
        await r.fails()
        assert r.is_in(State.OPEN)
        cloud.behave = answering(message())
        r.client.find_out(query())
        await r.is_closed()


async def test_one_trial_at_a_time_and_nobody_waits_for_it(cloud: ScriptedCloud) -> None:
    cloud.behave = aborting(Code.INTERNAL)
    async with connected(cloud, open_s=0.0) as r:
        await r.fails()
        cloud.behave, cloud.began = cloud.held, asyncio.Event()
        for _ in range(3):
            r.client.find_out(query())
            assert isinstance(await r.fails(), BreakerOpen)
        await cloud.began.wait()
        assert r.is_in(State.HALF_OPEN)
        assert not r.client.due(PATIENCE_S)
        with pytest.raises(BreakerOpen):
            r.client.check(PATIENCE_S)
        assert len(cloud.requests) == 2
        cloud.release.set()
        await r.is_closed()
        assert await r.infer() == [1.0, 2.0, 3.0]


async def test_a_trial_that_the_cloud_turns_down_shows_that_it_is_there(cloud: ScriptedCloud) -> None:
    cloud.behave = aborting(Code.INTERNAL)
    async with connected(cloud, open_s=0.0) as r:
        await r.fails()
        cloud.behave = aborting(Code.NOT_FOUND)
        r.client.find_out(query())
        await r.is_closed()


async def test_a_trial_under_way_ends_with_the_client(cloud: ScriptedCloud) -> None:
    cloud.behave = aborting(Code.INTERNAL)
    async with connected(cloud, open_s=0.0) as r:
        await r.fails()
        cloud.behave, cloud.began = cloud.held, asyncio.Event()
        r.client.find_out(query())
        await cloud.began.wait()
        await r.client.close()
        assert not r.is_in(State.HALF_OPEN)


async def test_many_that_are_turned_down_are_not_even_sent(cloud: ScriptedCloud) -> None:
    cloud.behave = aborting(Code.RESOURCE_EXHAUSTED)
    dropped: list[None] = []
    throttle = Throttle(lambda: 0.5)
    async with connected(cloud, throttle=throttle, on_throttled=lambda: dropped.append(None)) as r:
        for _ in range(20):
            await r.fails()
        error = await r.fails()
        assert (type(error), error.reason, error.bytes_up) == (Throttled, "throttled", 0)
        assert len(cloud.requests) + len(dropped) == 21
        assert len(dropped) >= 18
        assert r.is_in(State.CLOSED)


async def test_too_large_is_not_too_many(cloud: ScriptedCloud) -> None:
    async def over(request: oip.ModelInferRequest, context: Context) -> bytes:
        await context.abort(Code.RESOURCE_EXHAUSTED, "as told", ((REASON_KEY, TOO_LARGE),))

    cloud.behave = over
    async with connected(cloud) as r:
        for _ in range(20):
            error = await r.fails()
            assert (type(error), error.reason) == (CloudRefused, "too_large")


async def test_what_is_not_admitted_does_not_leave(cloud: ScriptedCloud) -> None:
    told: list[tuple[Attempt, int]] = []

    def admit(kind: Attempt, nbytes: int) -> None:
        told.append((kind, nbytes))
        if len(told) > 1:
            raise SwitchedOff("no more")

    async with connected(cloud, admit=admit, streams=False) as r:
        await r.infer()
        assert isinstance(await r.fails(), SwitchedOff)
        assert told == [(Attempt.FIRST, cloud.requests[0].ByteSize())] * 2
        assert len(cloud.requests) == 1
        assert r.is_in(State.CLOSED)


async def test_silence_towards_the_impatient_leaves_the_way_open_for_others(cloud: ScriptedCloud) -> None:
    cloud.behave = cloud.held
    async with connected(cloud) as r:
        assert isinstance(await r.fails(0.02), DeadlineExceeded)
        assert isinstance(await r.fails(0.02), BreakerOpen)
        r.client.check(0.5)
        assert isinstance(await r.fails(0.5), DeadlineExceeded)
        assert isinstance(await r.fails(0.5), BreakerOpen)


async def test_silence_ends_with_the_deadline(cloud: ScriptedCloud) -> None:
    cloud.behave = cloud.held
    async with connected(cloud) as r:
        started = time.monotonic()
        error = await r.fails(0.1)
        assert time.monotonic() - started < 5.0
        assert (type(error), error.reason) == (DeadlineExceeded, "deadline")
        assert r.is_in(State.OPEN)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
async def test_call_without_time_ends_at_once(cloud: ScriptedCloud, timeout_s: float) -> None:
    cloud.behave = cloud.held
    async with connected(cloud) as r:
        assert isinstance(await r.fails(timeout_s), CloudUnavailable)
        assert r.is_in(State.CLOSED)


async def test_cancelled_call_is_cancelled_at_the_cloud_too(cloud: ScriptedCloud) -> None:
    ended = asyncio.Event()

    async def watched(request: oip.ModelInferRequest, context: Context) -> bytes:
        try:
            return await cloud.held(request, context)
        finally:
            ended.set()

    cloud.behave = watched
    async with connected(cloud) as r:
        call = asyncio.create_task(r.infer())
        await cloud.began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
        assert r.is_in(State.CLOSED)


async def test_cloud_that_dies_during_a_call(cloud: ScriptedCloud) -> None:
    cloud.behave = cloud.held
    async with connected(cloud) as r:
        call = asyncio.create_task(r.fails())
        await cloud.began.wait()
        await cloud.stop()
        error = await call
        assert (type(error), error.reason) == (CloudUnreachable, "cloud_unreachable")
        assert error.bytes_up > 768
        assert r.is_in(State.CLOSED)


async def test_connection_comes_back_with_the_cloud(cloud: ScriptedCloud) -> None:
    async with connected(cloud) as r:
        await r.infer()
        await cloud.stop()
        await r.connection(True, False)
        error = await r.fails()
        assert (type(error), error.bytes_up) == (CloudUnreachable, 0)
        with pytest.raises(CloudUnreachable):
            r.client.check(PATIENCE_S)
        await cloud.start()
        started = time.monotonic()
        await r.connection(True, False, True)
        assert time.monotonic() - started < 2.0
        r.client.check(PATIENCE_S)
        assert await r.infer() == [1.0, 2.0, 3.0]
        assert r.is_in(State.CLOSED)


async def test_connection_comes_back_soon_after_a_longer_outage(cloud: ScriptedCloud) -> None:
    async with connected(cloud, connect_timeout_s=0.1) as r:
        await cloud.stop()
        await r.connection(True, False)
        await asyncio.sleep(1.0)  # the outage: gRPC alone would try more and more seldom
        assert isinstance(await r.fails(), CloudUnreachable)
        await cloud.start()
        started = time.monotonic()
        await r.connection(True, False, True)
        assert time.monotonic() - started < 2.0
        assert await r.infer() == [1.0, 2.0, 3.0]


@contextlib.contextmanager
def nobody_answers() -> Iterator[str]:
    """A port that takes connections, as the kernel does, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def test_refused_connection_costs_nothing_and_does_not_count() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        target = f"127.0.0.1:{listening.getsockname()[1]}"
    async with dialling(target) as r:
        for _ in range(5):
            error = await r.fails(PATIENCE_S)
            assert (type(error), error.bytes_up) == (CloudUnreachable, 0)
        assert r.is_in(State.CLOSED)
        assert True not in r.connections


async def test_connection_that_is_never_made_is_not_waited_for() -> None:
    with nobody_answers() as target:
        async with dialling(target) as r:
            started = time.monotonic()
            for _ in range(20):
                assert isinstance(await r.fails(PATIENCE_S), CloudUnreachable)
            assert time.monotonic() - started < 2.0
            assert r.is_in(State.CLOSED)


async def test_connection_that_was_never_made_is_dialled_afresh() -> None:
    late = ScriptedCloud()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        late.port = int(silent.getsockname()[1])
        async with dialling(f"127.0.0.1:{late.port}", connect_timeout_s=0.1) as r:
            await r.fails(0.0)
            silent.close()
            await late.start()
            try:
                await r.connection(True)
                assert await r.infer() == [1.0, 2.0, 3.0]
            finally:
                await late.stop()


async def test_call_before_the_connection_waits_a_blink_for_it(cloud: ScriptedCloud) -> None:
    async with dialling(f"127.0.0.1:{cloud.port}") as r:
        with contextlib.suppress(CloudUnreachable):
            assert await r.infer() == [1.0, 2.0, 3.0]
        await r.connection(True)
        assert await r.infer() == [1.0, 2.0, 3.0]


async def test_message_over_the_limit_never_leaves(cloud: ScriptedCloud) -> None:
    async with connected(cloud, max_message_bytes=2000) as r:
        error = await r.fails(inputs={"input": pixels(UNSURE, UNSURE, UNSURE)})
        assert isinstance(error, CloudRefused)
        assert error.reason == "too_large"
        assert cloud.requests == []
        assert r.is_in(State.CLOSED)


async def test_close_ends_calls_in_flight_as_a_lost_connection(cloud: ScriptedCloud) -> None:
    cloud.behave = cloud.held
    async with connected(cloud) as r:
        call = asyncio.create_task(r.fails())
        await cloud.began.wait()
        await r.client.close()
        assert isinstance(await call, CloudUnreachable)


async def test_call_after_close_finds_no_connection(cloud: ScriptedCloud) -> None:
    async with connected(cloud) as r:
        await r.client.close()
        assert isinstance(await r.fails(), CloudUnreachable)


async def test_close_ends_the_wait_for_a_connection() -> None:
    with nobody_answers() as target:
        async with dialling(target) as r:
            call = asyncio.create_task(r.fails())
            await asyncio.sleep(0)
            await r.client.close()
            assert isinstance(await call, CloudUnreachable)


async def test_a_silent_connection_is_replaced_by_another_beside_it(
    cloud: ScriptedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_node.connection._DOUBT_S", 0.1)
    async with connected(cloud, open_s=0.0, patience_s=0.05) as r:
        cloud.behave = cloud.held
        await r.fails(0.05)
        async with asyncio.timeout(PATIENCE_S):
            while len(cloud.peers) < 2:
                r.client.find_out(query())
                await asyncio.sleep(0.01)
        cloud.release.set()
        r.client.find_out(query())
        await r.is_closed()
        assert r.connections == [True], "it was never without one"


async def test_calls_in_flight_end_on_the_connection_that_is_replaced(
    cloud: ScriptedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_node.connection._RENEW_S", 0.2)
    async with connected(cloud) as r:
        cloud.behave = cloud.held
        call = asyncio.create_task(r.infer())
        await cloud.began.wait()
        cloud.behave = answering(message())
        async with asyncio.timeout(PATIENCE_S):
            while len(cloud.peers) < 3:
                assert await r.infer() == [1.0, 2.0, 3.0]
        cloud.release.set()
        assert await call == [1.0, 2.0, 3.0]
        assert r.connections == [True]
