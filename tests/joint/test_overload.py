"""More requests than both services can answer: who is answered, who is told at once that it is not."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import grpc
import pytest

from inference_core.tensors import to_request
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from tests.bundles import SURE, UNSURE, picture, pixels, write_bundle
from tests.joint.device import Answer, Answers, Device, Load
from tests.joint.proxy import Proxy
from tests.joint.services import Service, Services, eventually

pytestmark = pytest.mark.anyio

WORK = 25  # makes a run take some 10 ms
DEADLINE_MS = 300
PATIENT_MS = 5000  # whatever else the machine does
REFUSED_MS = 5.0


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the services do."""
    return "asyncio"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "colors", edge_work=WORK, full_work=WORK)


@pytest.fixture(scope="module")
def edge(module_services: Services, bundle: Path) -> Service:
    """An edge node without a cloud that runs one sample at a time."""
    return module_services.edge(bundle, max_batch=1, workers=1, mode="edge").wait_ready()


def closed_loop(port: int, clients: int, each: int) -> Answers:
    """The answers to so many clients, each of which asks again when it has been answered."""
    device = Device(port)

    def ask(_: int) -> list[Answer]:
        return [device.predict(picture(UNSURE), deadline_ms=PATIENT_MS) for _ in range(each)]

    with ThreadPoolExecutor(clients) as pool:
        return Answers(itertools.chain.from_iterable(pool.map(ask, range(clients))))


@pytest.mark.parametrize("clients", [1, 8, 32])
def test_nobody_is_refused_whom_there_is_time_for(edge: Service, clients: int) -> None:
    """A queue that harms nobody is no overload."""
    answers = closed_loop(edge.ports[0], clients, 3)
    assert {answer.status for answer in answers} == {200}


def test_what_cannot_be_in_time_is_told_at_once(edge: Service, note: Callable[..., None]) -> None:
    before = edge.metrics()
    with Load(edge.ports[0], [picture(SURE)], rate=300, deadline_ms=DEADLINE_MS) as load:
        load.go_on(2.0)
    served = Answers(a for a in load.answers if a.status == 200)
    refused = Answers(a for a in load.answers if a.status != 200)
    assert {a.status for a in refused} == {503}
    in_time = [a for a in served if a.late_ms <= 0 or a.late_ms <= a.stalled_ms]
    assert len(in_time) >= 0.75 * len(served)  # it would be one in five, were everyone let in
    quick = sorted((a.seconds - a.stalled_ms / 1000) * 1000 for a in refused)
    note(served=len(served), refused=len(refused), refused_p50_ms=quick[len(quick) // 2])
    assert quick[len(quick) // 2] < REFUSED_MS
    counted = edge.metrics().total("tandem_shed_requests_total") - before.total("tandem_shed_requests_total")
    assert counted == len(refused)
    eventually(lambda: edge.metrics().total("tandem_waiting_samples") == 0, 2, "the line is empty")
    assert Device(edge.ports[0]).predict(picture(SURE), deadline_ms=DEADLINE_MS).status == 200


def test_the_critical_are_answered_while_the_background_is_refused(edge: Service) -> None:
    port, body = edge.ports[0], [picture(SURE)]
    with Load(port, body, rate=200, deadline_ms=1000, priority="background") as background:
        background.go_on(1.0)
        with Load(port, body, rate=8, deadline_ms=1000, priority="critical") as critical:
            critical.go_on(2.0)
    assert Counter(a.status for a in background.answers)[503] > 50
    assert Counter(a.status for a in critical.answers)[200] >= 0.75 * len(critical.answers)
    waited = [
        median(a.seconds for a in load.answers if a.status == 200 and a.sent >= critical.answers[0].sent)
        for load in (critical, background)
    ]
    assert waited[0] < waited[1] / 2


class Node:
    """An edge node as the cloud sees it: calls from one address."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = oip_grpc.GRPCInferenceServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.ended: Counter[str] = Counter()
        self.refused_s: list[float] = []

    async def ask(self, timeout_s: float) -> None:
        """One call, which is counted by its status."""
        request: oip.ModelInferRequest = to_request("colors", "1", {"input": pixels(SURE)}, {}, "")
        sent = time.monotonic()
        try:
            await self.stub.ModelInfer(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            self.ended[error.code().name] += 1
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.refused_s.append(time.monotonic() - sent)
        else:
            self.ended["OK"] += 1

    async def load(self, rate: float, seconds: float, timeout_s: float) -> None:
        """So many calls a second, whatever becomes of them."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
                group.create_task(self.ask(timeout_s))


async def test_one_nodes_flood_does_not_push_out_another(
    services: Services, bundle: Path, note: Callable[..., None]
) -> None:
    cloud = services.cloud(bundle, max_batch_size=1, max_queue=64).wait_ready()
    with Proxy(cloud.ports[1], source="127.0.0.2") as there:
        loud, quiet = Node(there.port), Node(cloud.ports[1])
        async with loud.channel, quiet.channel:
            await asyncio.gather(loud.load(400, 2.0, 1.0), quiet.load(15, 2.0, 1.0))
    note(loud=str(dict(loud.ended)), quiet=str(dict(quiet.ended)))
    assert quiet.ended["OK"] >= 0.9 * quiet.ended.total()
    assert loud.ended["RESOURCE_EXHAUSTED"] > loud.ended["OK"] > 0
    assert set(loud.ended) <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert median(loud.refused_s) < 0.25  # at once, as far as three busy processes on two cores can tell
    assert cloud.metrics().total("tandem_shed_requests_total") >= loud.ended["RESOURCE_EXHAUSTED"]
