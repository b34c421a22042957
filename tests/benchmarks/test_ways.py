"""What is sent is what the protocols say, and every answer is compared with what is right."""

from pathlib import Path

import numpy as np
import orjson
import pytest

from benchmarks import ways
from benchmarks.load import Reply
from benchmarks.models import Served
from inference_core.tensors import to_response

SAMPLE = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
LOGITS = np.array([[1.0, -2.0, 3.0]], np.float32)
MODEL = Served("net", "fp32", Path("nowhere"), SAMPLE, LOGITS)
OFF = LOGITS + np.array([[0, 0, 0.1]], np.float32)


def reply(body: bytes) -> Reply:
    return Reply(True, "200", b"", body)


def outcome(label: str, milliseconds: float) -> bytes:
    """As the edge node answers devices, cut short."""
    content = {
        "prediction": {"label": label, "index": 2},
        "edge": {"label": label},
        "timings_ms": {"total": milliseconds},
    }
    return orjson.dumps(content)


def oip_json(logits: np.ndarray, milliseconds: float) -> bytes:
    data = {"name": "logits", "shape": [1, 3], "datatype": "FP32", "data": logits.ravel().tolist()}
    return orjson.dumps({"parameters": {"total": milliseconds}, "outputs": [data]})


def protobuf(logits: np.ndarray, milliseconds: float) -> bytes:
    parameters = {"tandem_total_ms": milliseconds}
    return to_response("net", "1", {"logits": logits}, parameters, "1").SerializeToString()


@pytest.mark.parametrize(
    ("way", "right", "wrong"),
    [
        (ways.device(MODEL), outcome("2", 1.5), outcome("1", 1.5)),
        (ways.oip_binary(MODEL), b"{}" + LOGITS.tobytes(), b"{}" + OFF.tobytes()),
        (ways.oip_json(MODEL), oip_json(LOGITS, 1.5), oip_json(OFF, 1.5)),
        (ways.grpc_infer(MODEL), protobuf(LOGITS, 1.5), protobuf(OFF, 1.5)),
    ],
    ids=lambda value: value.name if isinstance(value, ways.Way) else "",
)
def test_right_answers_pass_and_others_do_not(way: ways.Way, right: bytes, wrong: bytes) -> None:
    for _ in range(2):  # the second is known from the first
        assert way.check(reply(right)) is None
        assert way.check(reply(wrong)) is not None
    assert way.check(reply(b"")) is not None
    assert way.check(reply(b"garbage that is long enough")) is not None


def test_what_differs_only_in_its_times_is_known_again() -> None:
    reads: list[bytes] = []

    def label(body: bytes) -> str:
        reads.append(body)
        return str(orjson.loads(body)["prediction"]["label"])

    judge = ways.Judge("2", ways.device(MODEL).check.part, label)
    assert [judge(reply(outcome("2", ms))) for ms in (1.0, 2.0, 3.0)] == [None] * 3
    assert len(reads) == 1


def test_rounding_passes_and_another_network_does_not() -> None:
    judge = ways.oip_binary(MODEL).check
    assert judge(reply((LOGITS + np.float32(0.01)).tobytes())) is None
    assert judge(reply((LOGITS + np.float32(0.05)).tobytes())) == "off by 0.05, the limit is 0.03"


def test_a_label_is_no_logits() -> None:
    assert ways.Judge("2", bytes, lambda body: np.frombuffer(body, "<f4"))(reply(bytes(4))) is not None
