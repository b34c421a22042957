import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from deploy.probe import is_ready


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response({"/readyz": 200, "/loading": 503}.get(self.path, 404))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_ready_is_200_and_nothing_else(server: str) -> None:
    assert is_ready(f"{server}/readyz")
    assert not is_ready(f"{server}/loading")
    assert not is_ready(server)


def test_a_closed_port_is_not_ready() -> None:
    assert not is_ready("http://127.0.0.1:1/readyz", timeout_s=1)


def test_a_silent_port_is_given_up() -> None:
    with HTTPServer(("127.0.0.1", 0), _Answers) as httpd:  # listens, but nobody answers
        assert not is_ready(f"http://127.0.0.1:{httpd.server_port}/readyz", timeout_s=0.1)


def test_the_proxy_of_the_environment_is_not_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert is_ready(f"{server}/readyz")
