"""The devices' interface: every body it takes, and every one that it refuses."""

import gc
import gzip
import io
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from edge_node.device_api import IMAGE_TYPES, TENSOR_TYPE
from inference_core.bundle import load_bundle
from inference_core.errors import CloudUnreachable
from tests.bundles import SURE, UNSURE, picture, pixels, write_bundle
from tests.edge_node.node import CloudSimulator, Node, node, noise

URL = "/v1/models/colors/predict"
PNG, RAW = "image/png", TENSOR_TYPE
GOOD = picture(SURE)
TENSOR = pixels(SURE).tobytes()


def post(
    client: TestClient, body: bytes, content_type: str | None = PNG, url: str = URL, **headers: str
) -> Any:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    if content_type is not None:
        named["Content-Type"] = content_type
    return client.post(url, content=body, headers=named)


def form(*parts: tuple[str, str | None, bytes], boundary: str = "xyz") -> bytes:
    """A multipart body of (field, file name or None, content)."""
    lines = []
    for field, file, content in parts:
        name = f'; filename="{file}"' if file is not None else ""
        lines.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"{name}\r\n\r\n'.encode())
        lines.append(content + b"\r\n")
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=xyz"


def test_answer_is_the_whole_outcome(client: TestClient, colors: Path) -> None:
    answer = post(client, picture(UNSURE), X_Request_Id="id-7")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "id-7"
    body = answer.json()
    assert body.keys() == {
        *("id", "source", "reason", "degraded", "mode", "cut", "prediction", "edge", "threshold", "model"),
        *("timings_ms", "bytes_up", "bytes_down", "way", "predicted_ms", "prospects_ms", "kept"),
    }
    assert (body["id"], body["source"], body["reason"], body["degraded"], body["mode"]) == (
        *("id-7", "cloud", "low_confidence", False, "cascade"),
    )
    assert (body["prediction"]["label"], body["prediction"]["index"]) == ("blue", 2)
    assert [item["label"] for item in body["prediction"]["top_k"]] == ["blue", "red", "green"]
    assert (body["edge"]["label"], body["threshold"], body["cut"]) == ("red", 0.8, None)
    assert body["model"] == {"name": "colors", "version": "1", "digest": load_bundle(colors).digest}
    assert body["timings_ms"].keys() == {"preprocess", "edge", "cloud", "total"}
    assert body["bytes_up"] > 0
    assert (body["way"], body["predicted_ms"], body["prospects_ms"]) == ("image", None, {})


def test_answer_while_the_cloud_is_away(client: TestClient, cloud: CloudSimulator) -> None:
    cloud.absent = CloudUnreachable("gone")
    body = post(client, picture(UNSURE)).json()
    assert (body["source"], body["reason"], body["degraded"]) == ("edge_fallback", "cloud_unreachable", True)
    assert body["prediction"]["label"] == "red"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (picture(SURE, "PNG"), "image/png"),
        (picture(SURE, "JPEG"), "image/jpeg"),
        (picture(SURE, "WEBP"), "image/webp"),
        (picture(SURE, "JPEG"), "image/png"),
        (picture(SURE), "IMAGE/PNG; charset=binary"),
        (picture(SURE), None),
        (picture(SURE, "JPEG"), None),
        (picture(SURE, "WEBP"), None),
        (picture(SURE), "application/x-www-form-urlencoded"),
        (TENSOR, RAW),
        (TENSOR, "Application/Octet-Stream; x=y"),
        (form(("file", "photo.png", picture(SURE))), FORM),
        (form(("file", "", picture(SURE))), FORM),
        (picture(SURE, size=(64, 64)), "image/png"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_form_of_a_sample(client: TestClient, body: bytes, content_type: str | None) -> None:
    answer = post(client, body, content_type)
    assert answer.status_code == 200, answer.text
    assert answer.json()["prediction"]["label"] == "red"


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(client: TestClient, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    body = pixels(SURE).tobytes()
    headers = {"Content-Type": "application/octet-stream", "Content-Encoding": encoding}
    answer = client.post(URL, content=pack(body), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["prediction"]["label"] == "red"
    for sent, named in ((body, encoding), (pack(body), "br")):
        refused = client.post(URL, content=sent, headers=headers | {"Content-Encoding": named})
        assert refused.status_code == 400
        assert named in refused.json()["error"]


@pytest.mark.parametrize("form_of", ["P", "L", "1"])
def test_images_that_convert_plainly_are_taken(client: TestClient, form_of: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(form_of).save(out, "PNG")
    assert post(client, out.getvalue()).status_code == 200


def test_large_file_in_a_form(client: TestClient) -> None:
    body = form(("file", "photo.png", noise(256)))
    assert len(body) > 100_000
    assert post(client, body, FORM).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("mode=edge", {"mode": "edge", "source": "edge", "cut": None}),
        ("mode=cloud", {"mode": "cloud", "source": "cloud"}),
        ("mode=split", {"mode": "split", "cut": "pixels"}),
        ("mode=split&cut=means", {"mode": "split", "cut": "means"}),
        ("threshold=0", {"threshold": 0.0, "source": "edge", "reason": "confident"}),
        ("threshold=1", {"threshold": 1.0, "source": "cloud"}),
        ("deadline_ms=60000", {"source": "cloud"}),
    ],
)
def test_parameters(client: TestClient, parameters: str, expected: dict[str, Any]) -> None:
    answer = post(client, picture(UNSURE), url=f"{URL}?{parameters}")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert {key: body[key] for key in expected} == expected


@pytest.mark.parametrize(("top_k", "count"), [("", 3), ("?top_k=1", 1), ("?top_k=1000", 3)])
def test_top_k(client: TestClient, top_k: str, count: int) -> None:
    assert len(post(client, picture(SURE), url=URL + top_k).json()["prediction"]["top_k"]) == count


def test_id_is_made_where_none_was_sent(client: TestClient) -> None:
    answer = post(client, picture(SURE))
    assert answer.headers["x-request-id"] == answer.json()["id"] != ""


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=100)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of 10,000 x 10,000 pixels in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def image(mode: str, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (8, 8)).save(out, form)
    return out.getvalue()


def gif() -> bytes:
    return image("P", "GIF")


BAD: dict[str, tuple[int, str, bytes, str | None, Mapping[str, str]]] = {
    "not an image": (400, "not one of JPEG, PNG, WEBP", b"hello", PNG, {}),
    "another format": (400, "not one of JPEG, PNG, WEBP", gif(), "image/png", {}),
    "truncated": (400, "image: truncated or damaged", picture(SURE)[:-30], PNG, {}),
    "truncated JPEG": (400, "image: truncated or damaged", picture(SURE, "JPEG")[:-300], PNG, {}),
    "bomb": (413, "over the limit of 16000000 pixels", bomb(), PNG, {}),
    "animated": (400, "3 frames, the limit is 1", animated(), "image/webp", {}),
    "four channels": (400, "RGBA has 4 channels", image("RGBA"), PNG, {}),
    "two channels": (400, "LA has 2 channels", image("LA"), PNG, {}),
    "four inks": (400, "CMYK has 4 channels", image("CMYK", "JPEG"), PNG, {}),
    "deep": (400, "8 bits each", image("I;16"), PNG, {}),
    "empty": (400, "body: is empty", b"", PNG, {}),
    "empty and untyped": (400, "body: is empty", b"", None, {}),
    "tensor too short": (400, "FP32[3, 8, 8], 768 bytes little-endian, got 767", TENSOR[:-1], RAW, {}),
    "tensor too long": (400, "768 bytes little-endian, got 769", TENSOR + b"0", RAW, {}),
    "tensor of doubles": (400, "768 bytes", pixels(SURE).astype("f8").tobytes(), RAW, {}),
    "NaN": (400, "NaN or an infinity", np.full(192, np.nan, "f4").tobytes(), RAW, {}),
    "infinity": (400, "NaN or an infinity", np.full(192, -np.inf, "f4").tobytes(), RAW, {}),
    "content type": (400, "'text/html' is not one of image/jpeg", GOOD, "text/html", {}),
    "empty content type": (400, "Content-Type: 'none' is not one of", b"hello", "", {}),
    "JSON": (400, "'application/json' is not one of", b"{}", "application/json", {}),
    "untyped tensor": (400, "Content-Type: 'none' is not one of", TENSOR, None, {}),
    "compressed, and not saying so": (400, "not one of JPEG", zlib.compress(GOOD), PNG, {}),
    "id with a blank": (400, "X-Request-Id: must be 1 to 128", GOOD, PNG, {"X-Request-Id": "a b"}),
    "id too long": (400, "X-Request-Id: must be 1 to 128", GOOD, PNG, {"X-Request-Id": "a" * 129}),
    "no boundary": (400, "Missing boundary", form(("file", "x", b"x")), "multipart/form-data", {}),
    "other boundary": (400, "multipart body", form(("file", "x", b"x")), FORM + "z", {}),
    "garbage form": (400, "multipart body", b"\xff\x00garbage" * 9, FORM, {}),
    "cut-off form": (400, "", form(("file", "x", picture(SURE)))[:60], FORM, {}),
    "no file": (400, "Too many fields", form(("file", None, b"x")), FORM, {}),
    "other field": (400, "the field 'file' with a file is missing", form(("photo", "x", b"x")), FORM, {}),
    "no parts": (400, "the field 'file' with a file is missing", b"--xyz--\r\n", FORM, {}),
    "two files": (400, "Too many files", form(("file", "x", b"x"), ("file", "y", b"y")), FORM, {}),
    "empty file": (400, "image", form(("file", "x", b"")), FORM, {}),
    "file is no image": (400, "not one of JPEG", form(("file", "x", b"hello")), FORM, {}),
    "part without a name": (400, "multipart body", b"--xyz\r\nA: b\r\n\r\nx\r\n--xyz--\r\n", FORM, {}),
    "charset undefined": (400, "charset", form(("file", "x", b"x")), FORM + "; charset=undefined", {}),
}  # fmt: skip


BAD_PARAMETERS = [
    ("mode=fast", "mode: Input should be 'edge', 'cloud'"),
    ("mode=edge&mode=cloud", "mode: is given twice, the limit is once"),
    ("mode=auto&cut=means", "only mode 'split' takes a cut"),
    ("mode=split&cut=x", "cut: 'x' is not one of pixels, means"),
    ("cut=means", "only mode 'split' takes a cut"),
    ("deadline_ms=0", "deadline_ms: Input should be greater than or equal to 1"),
    ("deadline_ms=60001", "less than or equal to 60000"),
    ("deadline_ms=now", "deadline_ms: Input should be a valid integer"),
    ("threshold=1.1", "threshold: Input should be less than or equal to 1"),
    ("threshold=nan", "threshold: Input should be"),
    ("top_k=0", "top_k: Input should be greater than or equal to 1"),
    ("top_k=1001", "top_k: Input should be less than or equal to 1000"),
    ("treshold=1", "treshold: Extra inputs are not permitted"),
]


def is_refused(edge: Node, client: TestClient, answer: Any, status: int, text: str) -> bool:
    """The answer is this error, it was counted once, and a good request is answered after it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    assert text in answer.json()["error"]
    assert edge.series("tandem_refused_requests_total") == {("device", str(status)): 1}
    assert edge.series("tandem_requests_total") == {}
    assert post(client, GOOD).json()["prediction"]["label"] == "red"
    return sum(edge.series("tandem_requests_total").values()) == 1


@pytest.mark.parametrize("case", BAD)
def test_bad_request_is_refused_counted_once_and_harms_no_one(
    edge: Node, client: TestClient, case: str
) -> None:
    status, text, body, content_type, headers = BAD[case]
    given = dict(headers)
    if content_type is not None:
        given["Content-Type"] = content_type
    answer = client.post(URL, content=body, headers=given)
    assert is_refused(edge, client, answer, status, text)


@pytest.mark.parametrize(("parameters", "text"), BAD_PARAMETERS)
def test_bad_parameter_is_refused_by_name_and_limit(
    edge: Node, client: TestClient, parameters: str, text: str
) -> None:
    answer = post(client, GOOD, url=f"{URL}?{parameters}")
    assert is_refused(edge, client, answer, 400, text)


@pytest.mark.parametrize(
    "name", ["shapes", "Colors", "colors.tail.means", "%2e%2e", "a%20b", "%F0%9F%98%80", "x" * 500]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_model(edge: Node, client: TestClient, name: str, method: str) -> None:
    url = f"/v1/models/{name}" + ("/predict" if method == "POST" else "")
    answer = client.request(method, url, content=picture(SURE), headers={"Content-Type": PNG})
    assert answer.status_code == 404
    assert answer.json().keys() == {"error"}
    assert edge.series("tandem_refused_requests_total") == {("device", "404"): 1}


def test_body_over_the_limit(colors: Path) -> None:
    with node(colors, max_body_bytes=1024) as edge, TestClient(edge.app()) as client:
        answer = post(client, b"x" * 1025)
        assert (answer.status_code, answer.json()) == (413, {"error": "body: 1025 bytes, the limit is 1024"})
        answer = client.post(URL, content=iter([b"x" * 1000, b"x" * 25]), headers={"Content-Type": PNG})
        assert (answer.status_code, answer.json()) == (413, {"error": "body: over the limit of 1024 bytes"})
        assert edge.series("tandem_refused_requests_total") == {("device", "413"): 2}
        assert post(client, picture(SURE)).status_code == 200
        assert (
            client.post(URL, content=iter([picture(SURE)]), headers={"Content-Type": PNG}).status_code == 200
        )


@pytest.mark.parametrize("length", range(60, 150, 15))
def test_form_that_is_cut_off_leaves_no_file_open(client: TestClient, length: int) -> None:
    body = form(("file", "photo.png", GOOD))[:length]
    assert post(client, body, FORM).json()["error"].startswith("multipart body: ")
    gc.collect()  # an open file would complain now, and fail the test


def test_image_for_a_model_on_tensors(tmp_path: Path) -> None:
    with node(write_bundle(tmp_path / "plain", preprocess=False)) as edge, TestClient(edge.app()) as client:
        answer = post(client, picture(SURE))
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            "model 'colors' takes tensors, not images",
        )
        assert post(client, TENSOR, RAW).json()["prediction"]["label"] == "red"
        described = client.get("/v1/models/colors").json()
        assert described["accepts"]["images"] == []


def test_models_are_described(client: TestClient, colors: Path) -> None:
    (listed,) = client.get("/v1/models").json()["models"]
    described = client.get("/v1/models/colors").json()
    assert listed == described
    assert (described["name"], described["version"], described["digest"]) == (
        "colors",
        "1",
        load_bundle(colors).digest,
    )
    assert described["labels"] == ["red", "green", "blue"]
    assert described["accepts"]["images"] == ["JPEG", "PNG", "WEBP"]
    assert described["accepts"]["tensor"] == {"name": "input", "datatype": "FP32", "shape": [3, 8, 8]}
    assert described["cuts"] == [{"name": "pixels", "bytes": 192}, {"name": "means", "bytes": 3}]
    assert (described["mode"], described["threshold"], described["deadline_ms"]) == ("cascade", 0.8, 20_000)
    assert (described["edge"]["precision"], described["edge"]["cut"]) == ("int8", None)


def test_early_exit_is_described(tmp_path: Path) -> None:
    with node(write_bundle(tmp_path / "exit", exit_at="means")) as edge, TestClient(edge.app()) as client:
        described = client.get("/v1/models/colors").json()
        assert (described["edge"]["name"], described["edge"]["cut"]) == ("exit", "means")
        assert [cut["name"] for cut in described["cuts"]] == ["pixels", "means"]


def test_busy_node_says_when_to_come_back(colors: Path, cloud: CloudSimulator) -> None:
    cloud.gate = threading.Event()
    with node(colors, cloud=cloud, max_inflight=1) as edge, TestClient(edge.app()) as client:
        with ThreadPoolExecutor(1) as device:
            first = device.submit(post, client, picture(UNSURE))
            assert cloud.entered.wait(30)
            answer = post(client, GOOD)
            cloud.gate.set()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {"error": "1 samples are being answered and 1 more asked for, the limit is 1"}
        assert edge.series("tandem_refused_requests_total") == {("device", "503"): 1}
        assert first.result().json()["source"] == "cloud"
        assert post(client, GOOD).status_code == 200
        assert sum(edge.series("tandem_requests_total").values()) == 2


TYPES = st.sampled_from(
    [*sorted(IMAGE_TYPES), RAW, FORM, FORM + "; charset=utf-7", "multipart/form-data", "", "text/x"]
)
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(str.strip)
SEEDS = [
    picture(SURE),
    picture(SURE, "JPEG"),
    picture(SURE, "WEBP"),
    TENSOR,
    form(("file", "x", picture(SURE))),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good body with a few bytes changed, cut out or put in."""
    body = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(body)


@pytest.fixture(scope="module")
def fuzzed(colors: Path) -> Iterator[TestClient]:
    with node(colors, cloud=CloudSimulator(colors)) as edge, TestClient(edge.app()) as client:
        yield client


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    body=damaged() | st.binary(max_size=64),
    content_type=TYPES | HEADER | HEADER.map(lambda text: f"multipart/form-data; {text}"),
    parameters=st.dictionaries(
        st.sampled_from(["mode", "cut", "deadline_ms", "threshold", "top_k", "x"]),
        st.sampled_from(
            ["edge", "split", "means", "0.5", "100", "nan", "-1", "", "1e999", "\u00e9", "9" * 5000]
        ),
        max_size=2,
    ),
    request_id=st.none() | HEADER,
)
def test_nothing_that_is_sent_is_answered_with_a_5xx(
    fuzzed: TestClient, body: bytes, content_type: str, parameters: dict[str, str], request_id: str | None
) -> None:
    headers = {"Content-Type": content_type} | ({"X-Request-Id": request_id} if request_id else {})
    answer = fuzzed.post(URL, content=body, params=parameters, headers=headers)
    assert answer.status_code in (200, 400, 413), answer.text
    content = json.loads(answer.content)
    assert ("error" in content) == (answer.status_code != 200)
