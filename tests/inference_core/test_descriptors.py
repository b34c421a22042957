"""The limit of open files where a system takes less than it tells; tests.joint.test_crowd has a real one."""

import resource

import pytest

from inference_core.descriptors import connections_within

OPEN_MAX = 10_240


def test_a_hard_limit_that_is_none_may_hide_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = [(256, resource.RLIM_INFINITY)]

    def setrlimit(_: int, wanted: tuple[int, int]) -> None:
        if wanted[0] > OPEN_MAX:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert connections_within(1000, "EDGE_MAX_CONNECTIONS") == 1000
    assert limits[-1] == (2256, resource.RLIM_INFINITY)
    assert connections_within(10_000, "EDGE_MAX_CONNECTIONS") == (OPEN_MAX - 256) // 2
    assert "EDGE_MAX_CONNECTIONS: 10000 connections" in caplog.text
