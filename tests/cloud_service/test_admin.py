"""The HTTP side, in process and on a real port."""

import asyncio
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from cloud_service.admin import create_admin
from cloud_service.metrics import Metrics
from cloud_service.models import Models, load_models
from cloud_service.settings import Settings
from inference_core.http_server import HttpServer


def test_alive_but_not_ready_while_loading() -> None:
    client = TestClient(create_admin(Models()))
    assert client.get("/healthz").json() == {"live": True}
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False})
    assert client.get("/v1/models").json() == {"models": []}


def test_ready_and_listing_once_loaded(make_bundle: Callable[..., Path]) -> None:
    models = Models()
    with ThreadPoolExecutor(1) as runs:
        given: dict[str, Any] = {"bundles": (make_bundle(cuts=()),), "threads": 1}
        models.load(load_models(Settings(**given), Metrics(CollectorRegistry()), runs, time.monotonic))
        client = TestClient(create_admin(models))
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"ready": True})
        listed = client.get("/v1/models").json()["models"]
        assert [(item["name"], item["version"]) for item in listed] == [
            ("colors", "1"),
            ("colors.image", "1"),
        ]
        models.ready = False
        assert client.get("/readyz").status_code == 503


def test_what_is_not_there() -> None:
    client = TestClient(create_admin(Models()))
    for method, path, status in (("GET", "/v3", 404), ("POST", "/readyz", 405)):
        answer = client.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


@pytest.mark.anyio
async def test_real_server_answers_on_a_free_port_until_it_is_stopped() -> None:
    server = HttpServer(create_admin(Models()), "127.0.0.1", 0, 1.0)
    server.start()
    url = f"http://127.0.0.1:{server.port}/healthz"

    def get() -> bytes:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())

    assert await asyncio.to_thread(get) == b'{"live":true}'
    await server.stop()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(get)


@pytest.mark.anyio
async def test_port_that_is_taken() -> None:
    first = HttpServer(create_admin(Models()), "127.0.0.1", 0, 1.0)
    with pytest.raises(OSError, match="in use"):
        HttpServer(create_admin(Models()), "127.0.0.1", first.port, 1.0)
    await first.stop()
