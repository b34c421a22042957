"""The emulated link is what its conditions say, on real sockets by the real clock."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from statistics import median
from typing import Any

import pytest

from benchmarks.conditions import PERFECT, PROFILES, Conditions
from benchmarks.link import Emulator
from benchmarks.remote_link import RemoteEmulator

MBIT = 1e6 / 8


class Echo:
    """A server of messages: 4 bytes say how long one is, 4 how much of it is wanted back."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if connection.recv(1, socket.MSG_PEEK) == b"\xff":
                connection.close()
                return
            self._threads.append(threading.Thread(target=self._answer, args=(connection,)))
            self._threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while len(head := stream.read(8)) == 8:
                up, down = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
                connection.sendall(stream.read(up)[:down].ljust(down, b"."))

    def close(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.sendall(b"\xff")
            self._threads[0].join(5)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def links() -> Iterator[Emulator]:
    with Emulator() as started:
        yield started


class Client:
    """Sends messages and times the answers."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, body: bytes, down: int) -> tuple[bytes, float]:
        began = time.perf_counter()
        self._socket.sendall(len(body).to_bytes(4, "big") + down.to_bytes(4, "big") + body)
        answer = b""
        while len(answer) < down:
            part = self._socket.recv(1 << 16)
            assert part, "the link ended"
            answer += part
        return answer, time.perf_counter() - began

    def seconds(self, up: int, down: int, times: int) -> float:
        """The quickest of a few: this machine only ever makes it slower."""
        return min(self.ask(bytes(up), down)[1] for _ in range(times))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def client(links: Emulator, echo: Echo) -> Iterator[Client]:
    client = Client(links.add(echo.port))
    yield client
    client.close()


@pytest.mark.parametrize("round_trip_s", [0.001, 0.02, 0.15])
def test_the_round_trip_is_what_is_said(links: Emulator, client: Client, round_trip_s: float) -> None:
    links.set(Conditions(round_trip_s, 1e9, 1e9))
    assert client.seconds(1, 1, 15) == pytest.approx(round_trip_s, rel=0.05, abs=0.0015)


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("rate", [0.75 * MBIT, 12 * MBIT, 200 * MBIT])
def test_the_rate_is_what_is_said(links: Emulator, client: Client, rate: float, up: bool) -> None:
    links.set(Conditions(0.01, rate if up else 1e9, 1e9 if up else rate))
    size = int(rate * 0.2)
    taken = client.seconds(size, 4, 3) if up else client.seconds(4, size, 3)
    assert taken == pytest.approx(0.21, rel=0.06)


def test_connections_share_the_rate(links: Emulator, echo: Echo) -> None:
    port = links.add(echo.port)
    links.set(Conditions(0.0, 1 * MBIT, 1e9))
    clients = [Client(port), Client(port)]
    took: list[float] = []
    with ThreadPoolExecutor(len(clients)) as pool:
        for _ in range(3):
            asked = [pool.submit(client.ask, bytes(12_500), 4) for client in clients]
            took.append(max(call.result()[1] for call in asked))
    for client in clients:
        client.close()
    assert min(took) == pytest.approx(0.2, rel=0.1)


def test_bytes_come_in_order_and_unchanged(links: Emulator, client: Client) -> None:
    links.set(Conditions(0.005, 400 * MBIT, 400 * MBIT, jitter_s=0.004, stalls_per_s=20, stall_s=0.01))
    sent = bytes(value % 251 for value in range(3_000_000))
    assert client.ask(sent, len(sent))[0] == sent
    counts = links.counts()[0]
    assert (counts.up, counts.down) == (len(sent) + 8, len(sent))


def test_an_outage_holds_everything_and_ends(links: Emulator, client: Client) -> None:
    answered: list[float] = []
    for _ in range(3):
        links.set(Conditions(0.002, 1e9, 1e9, out=True))
        waiting = threading.Thread(target=lambda: answered.append(client.ask(b"held", 4)[1]))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        links.set(Conditions(0.002, 1e9, 1e9))
        waiting.join(5)
    assert 0.3 <= median(answered) < 0.4


def test_stalls_come_as_often_as_is_said(links: Emulator, client: Client) -> None:
    # Each of the 200 ways up and down takes one segment, so 4 ms of sending each by the least reckoning.
    links.set(Conditions(0.0, 1e9, 1e9, stalls_per_s=25, stall_s=0.05))
    late = sum(client.ask(b"x", 1)[1] > 0.045 for _ in range(100))
    assert 8 <= late <= 32  # 19 are to be expected: three standard deviations


def test_a_trace_is_replayed_step_by_step(links: Emulator, client: Client) -> None:
    fast, slow = Conditions(0.001, 1e9, 1e9), Conditions(0.1, 1e9, 1e9)
    replay = threading.Thread(target=links.replay, args=([fast, slow, fast], 0.4))
    began = time.monotonic()
    replay.start()
    took: list[list[float]] = [[], [], []]
    while replay.is_alive() and (at := time.monotonic() - began) < 1.2:
        took[int(at / 0.4)].append(client.ask(b"x", 1)[1])
    replay.join(5)
    assert [median(step) > 0.05 for step in took] == [False, True, False]


def test_a_target_that_is_not_there_ends_the_connection(links: Emulator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    connection = socket.create_connection(("127.0.0.1", links.add(port)), timeout=5)
    with connection, suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def test_the_other_process_does_the_same(echo: Echo) -> None:
    with RemoteEmulator() as links:
        client = Client(links.add(echo.port))
        links.set(Conditions(0.05, 10 * MBIT, 1e9))
        assert client.seconds(125_000, 4, 3) == pytest.approx(0.15, rel=0.06)
        assert links.counts()[0].up == 3 * (125_000 + 8)
        client.close()


def test_profiles_are_plausible() -> None:
    assert {"lan", "wifi", "5g", "4g", "3g", "satellite", "flapping"} <= PROFILES.keys()
    steady = {name for name, profile in PROFILES.items() if profile.steady}
    assert steady == {"lan", "wifi", "5g", "4g", "3g", "satellite"}
    assert all(profile.source for profile in PROFILES.values())
    assert any(conditions.out for conditions in PROFILES["drive"].trace)


@pytest.mark.parametrize("wrong", [{"up": 0.0}, {"down": -1.0}, {"round_trip_s": float("nan")}])
def test_impossible_conditions_are_refused(wrong: dict[str, float]) -> None:
    values: dict[str, Any] = {"round_trip_s": 0.0, "up": PERFECT.up, "down": PERFECT.down} | wrong
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: "):
        Conditions(**values)
