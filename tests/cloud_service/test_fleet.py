"""Samples over gRPC: labelled by the full model, stored once; what is wrong with one has its status."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud_service.fleet import SERVICE
from cloud_service.models import PROVIDERS
from edge_node.cloud_tls import CloudTls
from inference_core.bundle import load_bundle
from inference_core.priority import Priority
from inference_core.tls import ServerTls
from protos import fleet_pb2 as pb
from protos import fleet_pb2_grpc as fleet_grpc
from tests.bundles import LABELS, SURE, SURE_BUT_WRONG, UNSURE, picture, pixels, write_bundle
from tests.certificates import Site
from tests.cloud_service.service import Service, serving

pytestmark = pytest.mark.anyio
KEY = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("fleet") / "colors")


@pytest.fixture
async def service(colors: Path, tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(colors, samples=tmp_path / "samples.db") as made:
        yield made


def request(digest: str, **changes: Any) -> pb.PutSampleRequest:
    fields: dict[str, Any] = {
        "key": KEY, "node": "node-7", "model": "colors", "version": "1", "bundle": digest,
        "reason": "audit", "kept_at": 5.5,
    }  # fmt: skip
    fields |= {"image": picture(UNSURE)} if not changes.keys() & {"tensor", "features", "image"} else {}
    made = pb.PutSampleRequest(**fields | changes)
    made.edge.index, made.edge.label, made.edge.confidence, made.edge.threshold = 0, "red", 0.9, 0.8
    return made


def tensor(name: str, datatype: str, array: Any) -> pb.Tensor:
    return pb.Tensor(name=name, datatype=datatype, shape=array.shape, data=array.tobytes())


async def put(service: Service, message: pb.PutSampleRequest) -> pb.PutSampleResponse:
    stub = fleet_grpc.FleetStub(service.channel)  # type: ignore[no-untyped-call]
    answer: pb.PutSampleResponse = await stub.PutSample(message, timeout=20)
    return answer


def stored(service: Service, query: str) -> list[tuple[Any, ...]]:
    assert service.settings.samples is not None
    with closing(sqlite3.connect(service.settings.samples)) as connection:
        return connection.execute(query).fetchall()


async def test_a_sample_is_labelled_by_the_full_model_and_stored(service: Service, colors: Path) -> None:
    digest = load_bundle(colors).digest
    answer = await put(service, request(digest))
    assert (LABELS[answer.index], answer.label, answer.known) == ("blue", "blue", False)
    assert stored(service, "SELECT key, node, form, edge_label, label, reason FROM samples") == [
        (KEY, "node-7", "image", "red", "blue", "audit")
    ]
    assert stored(service, "SELECT data FROM tensors") == [(picture(UNSURE),)]
    labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "PutSample"}
    assert service.value("grpc_server_handled_total", grpc_code="OK", **labels) == 1


async def test_duplicates_in_any_order_are_stored_once(service: Service, colors: Path) -> None:
    digest = load_bundle(colors).digest
    samples = [request(digest, key=f"{n:032x}", image=picture((SURE, UNSURE)[n % 2])) for n in range(6)]
    answers = [await put(service, one) for one in (*samples, *reversed(samples), samples[3])]
    assert [answer.known for answer in answers] == [False] * 6 + [True] * 7
    assert [answer.label for answer in answers[:6]] == ["red", "blue"] * 3
    assert [answer.label for answer in answers[6:12]] == ["blue", "red"] * 3
    assert stored(service, "SELECT count(*), count(DISTINCT key) FROM samples") == [(6, 6)]
    assert service.value("tandem_samples_repeated_total") == 7


async def test_tensors_and_features_are_taken_as_well(service: Service, colors: Path) -> None:
    bundle = load_bundle(colors)
    whole = pixels(SURE_BUT_WRONG)
    one = request(bundle.digest, key="1" * 32, tensor=tensor("input", "FP32", whole))
    cut = bundle.manifest.cuts[0]
    features = bundle.engine(cut.head, threads=1, providers=PROVIDERS).run({"input": whole})
    parts = [tensor(info.name, info.datatype, features[info.name]) for info in cut.boundary]
    other = request(bundle.digest, key="2" * 32, features=pb.Features(cut=cut.name, tensors=parts))
    assert {(await put(service, message)).label for message in (one, other)} == {"blue"}
    assert stored(service, "SELECT form FROM samples ORDER BY number") == [("tensor",), ("features.pixels",)]
    assert stored(service, "SELECT datatype, shape FROM tensors WHERE sample = 1") == [
        ("FP32", "[1, 3, 8, 8]")
    ]


Change = Callable[[pb.PutSampleRequest], None]


def without_content(message: pb.PutSampleRequest) -> None:
    message.ClearField("image")


def with_two_rows(message: pb.PutSampleRequest) -> None:
    message.tensor.CopyFrom(tensor("input", "FP32", pixels(SURE, UNSURE)))


def with_the_wrong_shape(message: pb.PutSampleRequest) -> None:
    message.tensor.CopyFrom(tensor("input", "FP32", pixels(SURE)[:, :2]))


def with_another(**changes: Any) -> Change:
    def change(message: pb.PutSampleRequest) -> None:
        message.MergeFrom(pb.PutSampleRequest(**changes))

    return change


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (with_another(key="short"), "INVALID_ARGUMENT", "key: must be 32 hexadecimal digits"),
        (with_another(key=KEY.upper()), "INVALID_ARGUMENT", "key: must be 32 hexadecimal digits"),
        (with_another(reason="because"), "INVALID_ARGUMENT", "reason: 'because' is not one of"),
        (with_another(node="n" * 300), "INVALID_ARGUMENT", "node: 300 characters, the limit is 256"),
        (with_another(kept_at=float("nan")), "INVALID_ARGUMENT", "hold a NaN"),
        (without_content, "INVALID_ARGUMENT", "content: there is none"),
        (with_another(image=b"no image"), "INVALID_ARGUMENT", "image"),
        (with_two_rows, "INVALID_ARGUMENT", "must be one sample"),
        (with_the_wrong_shape, "INVALID_ARGUMENT", "shape"),
        (with_another(model="shapes"), "NOT_FOUND", "shapes"),
        (with_another(version="2"), "FAILED_PRECONDITION", "version 2"),
        (with_another(bundle="e" * 64), "FAILED_PRECONDITION", "bundle eeeeeeeeeeee"),
    ],
)
async def test_what_is_wrong_is_said_and_not_stored(
    service: Service, colors: Path, change: Change, status: str, words: str
) -> None:
    message = request(load_bundle(colors).digest)
    change(message)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(service, message)
    assert caught.value.code().name == status
    assert words in str(caught.value.details())
    assert stored(service, "SELECT * FROM samples") == []


async def test_whose_turn_it_is_is_not_the_messages_to_say(
    service: Service, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, callers = load_bundle(colors).digest, set[str]()
    admission = service.models.get("colors").batcher.admission
    let_in = admission.let_in

    def watched(rows: int, deadline: float, priority: Priority, caller: str) -> Any:
        callers.add(caller)
        assert priority is Priority.BACKGROUND
        return let_in(rows, deadline, priority, caller)

    monkeypatch.setattr(admission, "let_in", watched)
    for number in range(3):
        await put(service, request(digest, key=f"{number:032x}", node=f"made-up-{number}"))
    assert callers == {"127.0.0.1"}


async def test_without_a_file_for_them_no_samples_are_taken(colors: Path) -> None:
    async with serving(colors) as service:
        with pytest.raises(grpc.aio.AioRpcError, match="CLOUD_SAMPLES is empty") as caught:
            await put(service, request(load_bundle(colors).digest))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_full_store_says_so(colors: Path, tmp_path: Path) -> None:
    path = tmp_path / "samples.db"
    async with serving(colors, samples=path, samples_max_bytes=65_536) as service:
        digest, image = load_bundle(colors).digest, picture(SURE, size=(4000, 4000))
        assert len(image) > 40_000
        await put(service, request(digest, key="0" * 32))
        with pytest.raises(grpc.aio.AioRpcError, match="the limit is 65536") as caught:
            await put(service, request(digest, key="f" * 32, image=image))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await put(service, request(digest, key="0" * 32))).known
        assert path.stat().st_size <= 65_536


async def test_before_the_models_are_loaded_the_caller_is_to_come_again(colors: Path, tmp_path: Path) -> None:
    async with serving(colors, loaded=False, samples=tmp_path / "samples.db") as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await put(service, request(load_bundle(colors).digest))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_node_cannot_speak_for_another(colors: Path, tmp_path: Path) -> None:
    site = Site(tmp_path)
    path, digest = tmp_path / "samples.db", load_bundle(colors).digest
    async with serving(colors, samples=path, tls=ServerTls(site.cloud())) as service:
        target = f"127.0.0.1:{service.server.port}"
        credentials = CloudTls(site.edge("node-7")).credentials
        async with grpc.aio.secure_channel(target, credentials) as service.channel:
            assert (await put(service, request(digest, key="1" * 32))).label == "blue"
            assert (await put(service, request(digest, key="2" * 32, node=""))).label == "blue"
            with pytest.raises(grpc.aio.AioRpcError, match="the certificate 'node-7'") as caught:
                await put(service, request(digest, key="3" * 32, node="node-8"))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert stored(service, "SELECT node FROM samples") == [("node-7",), ("node-7",)]
