"""Refusals: what the sender is told, what only the log is told, and that each is counted once."""

import logging
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edge_node.metrics import Metrics
from edge_node.refusals import Refusal, Refusals
from inference_core.errors import (
    CloudRefused,
    ModelError,
    NotReady,
    Overloaded,
    TandemError,
    http_status,
)

METHOD, PATH = "POST", "/v1/models/m/predict"


class Rig:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.refusals = Refusals(Metrics(self.registry))

    def refuse(self, error: Exception, path: str = PATH) -> Refusal:
        return self.refusals.refuse(METHOD, path, error)

    def counted(self) -> dict[tuple[str, str], float]:
        return {
            (sample.labels["api"], sample.labels["status"]): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "tandem_refused_requests_total" and sample.value
        }


@pytest.fixture
def rig() -> Rig:
    return Rig()


def kinds(base: type[TandemError] = TandemError) -> Iterator[type[TandemError]]:
    """The whole tree of errors."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__.startswith("inference_core"):
            yield from kinds(kind)


def made(kind: type[TandemError]) -> TandemError:
    return CloudRefused("a secret", "cloud_error") if kind is CloudRefused else kind("a secret")


@pytest.mark.parametrize("kind", list(kinds()))
def test_the_senders_fault_is_told_and_ours_is_logged(
    rig: Rig, caplog: pytest.LogCaptureFixture, kind: type[TandemError]
) -> None:
    error = made(kind)
    refusal = rig.refuse(error)
    assert refusal.status == http_status(error)
    ours = refusal.status >= 500 and not isinstance(error, Overloaded)
    assert (refusal.message == "a secret") == (not ours)
    assert ("Retry-After" in refusal.headers) == isinstance(error, Overloaded)
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in records] == (
        [f"{METHOD} {PATH} failed: {error}"] if ours else []
    )
    assert rig.counted() == {("device", str(refusal.status)): 1}


def test_a_bug_is_logged_with_its_trace_and_not_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("a secret")
    except KeyError as error:
        refusal = rig.refuse(error)
    assert refusal == Refusal(500, "internal error; the service's log has the details")
    assert "KeyError: 'a secret'" in caplog.text
    assert __file__ in caplog.text


def test_the_frameworks_errors(rig: Rig) -> None:
    refusal = rig.refuse(HTTPException(405, headers={"Allow": "POST"}))
    assert refusal == Refusal(405, f"{METHOD} {PATH}: Method Not Allowed", {"Allow": "POST"})
    assert rig.refuse(HTTPException(404, "no such thing")).message == f"{METHOD} {PATH}: no such thing"


def test_who_hung_up_is_counted_and_not_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    assert rig.refuse(ClientDisconnect()).status == 499
    assert rig.counted() == {("device", "499"): 1}
    assert caplog.records == []


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (3.0, "3"), (60.0, "60")])
def test_when_to_come_back_is_whole_seconds_and_never_zero(rig: Rig, seconds: float, text: str) -> None:
    for kind in (Overloaded, NotReady):
        assert rig.refuse(kind("busy", seconds)).headers == {"Retry-After": text}


def test_refusals_are_counted_by_interface(rig: Rig) -> None:
    rig.refuse(ModelError("x"), "/v2/models/m/infer")
    rig.refuse(ModelError("x"), "/v2")
    rig.refuse(NotReady("x"), "/v1/models")
    rig.refuse(HTTPException(404), "/nowhere")
    assert rig.counted() == {
        ("open_inference", "500"): 2,
        ("device", "503"): 1,
        ("device", "404"): 1,
    }


def test_refusals_do_not_share_their_headers() -> None:
    Refusal(400, "x").headers["Allow"] = "POST"
    assert Refusal(400, "x").headers == {}
