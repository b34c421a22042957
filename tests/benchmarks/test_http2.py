"""The lean gRPC client against a server of gRPC's own library."""

import os
from collections.abc import Iterator

import pytest

from benchmarks.http2 import GrpcConnection
from benchmarks.load import Reply, open_loop
from tests.benchmarks.server import digest, running

AT_ONCE = (0.0,) * 12  # when the requests are due


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running("grpc") as port:
        yield port


@pytest.mark.parametrize("size", [0, 3136, 65_530, 602_112])
def test_calls_of_every_size_are_answered_rightly(port: int, size: int) -> None:
    content = os.urandom(size)

    def check(reply: Reply) -> str | None:
        return None if reply.body == digest(content) else f"{reply.body!r}"

    run = open_loop(
        lambda: GrpcConnection(port, "/test/Echo", content), check, due_s=AT_ONCE, clients=4, patience_s=60
    )
    assert run.errors == 0, run.examples
    assert len(run.latencies_ns) == len(AT_ONCE)


def test_large_answers_are_taken_whole(port: int) -> None:
    content = os.urandom(2_000_000)

    def check(reply: Reply) -> str | None:
        return None if reply.body == content else f"{len(reply.body)} bytes"

    run = open_loop(
        lambda: GrpcConnection(port, "/test/Large", content), check, due_s=AT_ONCE, clients=1, patience_s=60
    )
    assert run.errors == 0, run.examples
    assert len(run.latencies_ns) == len(AT_ONCE)


def test_a_wrong_answer_is_found_out(port: int) -> None:
    run = open_loop(
        lambda: GrpcConnection(port, "/test/Echo", b"abc"),
        lambda _: "not that",
        due_s=AT_ONCE,
        clients=1,
        patience_s=60,
    )
    assert run.wrong == len(AT_ONCE)
    assert not run.latencies_ns
    assert run.examples == {"wrong": "not that"}


def test_an_error_status_is_told_with_its_message(port: int) -> None:
    run = open_loop(
        lambda: GrpcConnection(port, "/test/Fail", b"abc"),
        lambda _: None,
        due_s=AT_ONCE,
        clients=1,
        patience_s=60,
    )
    assert run.refused == len(AT_ONCE)
    assert not run.latencies_ns
    assert run.examples["refused"].startswith("grpc-status 8 as told")


def test_an_unknown_method_is_refused(port: int) -> None:
    run = open_loop(
        lambda: GrpcConnection(port, "/test/Nothing", b""),
        lambda _: None,
        due_s=AT_ONCE,
        clients=1,
        patience_s=60,
    )
    assert run.refused == len(AT_ONCE)
    assert run.examples["refused"].startswith("grpc-status 12")
