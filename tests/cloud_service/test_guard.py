"""The doors of HTTP: who gets through by which certificate."""

from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from cloud_service.guard import CALLER, HttpGuard
from cloud_service.nodes import Nodes
from inference_core.http_connection import PEER

NAMES = (("DNS", "edge.example"), ("URI", "spiffe://tandem/edge/edge-7"))
LATER, OVER = "Jan  1 00:00:00 2099 GMT", "Jan  1 00:00:00 2001 GMT"


async def who(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse(str(scope["state"].get(CALLER)))(scope, receive, send)


@pytest.mark.parametrize(
    ("certificate", "path", "status", "words"),
    [
        ({"subjectAltName": NAMES, "notAfter": LATER}, "/v2", 200, "edge-7"),
        ({"subjectAltName": NAMES, "notAfter": OVER}, "/v2", 401, "has ended"),
        ({"subjectAltName": NAMES[:1], "notAfter": LATER}, "/v2", 403, "it must have one"),
        (None, "/v2", 401, "none was shown"),
        ({}, "/v2", 401, "none was shown"),
        (None, "/healthz", 200, "None"),
    ],
)
def test_who_gets_through(certificate: Any, path: str, status: int, words: str) -> None:
    guarded = HttpGuard(who, Nodes())

    async def connected(scope: Any, receive: Any, send: Any) -> None:
        await guarded({**scope, "state": {PEER: certificate}}, receive, send)

    answer = TestClient(connected).get(path)
    assert answer.status_code == status
    assert words in answer.text
