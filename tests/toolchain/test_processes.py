"""Services as processes: started, killed, started again, and never left behind."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.bundles import edited
from toolchain.processes import Service, ServiceFailed


def cloud(bundle: Path, **settings: str) -> Service:
    """A cloud service with `bundle`."""
    return Service("cloud_service", "CLOUD", {"BUNDLES": str(bundle), **settings})


def is_running(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_service_comes_back_on_the_same_ports(make_bundle: Callable[..., Path]) -> None:
    async def scenario() -> None:
        async with cloud(make_bundle()) as service:
            url, target, first = service.url, service.grpc_target, service.pid
            assert first is not None
            assert httpx2.get(f"{url}/readyz").status_code == 200
            service.kill()
            assert not is_running(first)
            await service.start()
            assert (service.url, service.grpc_target) == (url, target)
            assert httpx2.get(f"{url}/readyz").status_code == 200
            second = service.pid
            with pytest.raises(RuntimeError, match="running already"):
                await service.start()
        assert second is not None
        assert not is_running(second)

    asyncio.run(scenario())


def test_a_service_that_refuses_its_bundle_says_why(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    with edited(folder) as manifest:
        manifest["format"] = 99
    with pytest.raises(ServiceFailed, match=r"(?s)cloud_service ended with status 1.*format: 99 is newer"):
        asyncio.run(cloud(folder).start())


def test_a_service_with_a_wrong_setting_says_why(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(ServiceFailed, match=r"(?s)status 2.*CLOUD_MAX_BATCH_SIZE.*'many'"):
        asyncio.run(cloud(make_bundle(), MAX_BATCH_SIZE="many").start())


def test_an_interrupted_start_leaves_no_process(make_bundle: Callable[..., Path]) -> None:
    service = cloud(make_bundle())

    async def scenario() -> int | None:
        entering = asyncio.create_task(service.__aenter__())
        await asyncio.sleep(0)  # to where the process exists and is waited for
        pid = service.pid
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        return pid

    pid = asyncio.run(scenario())
    assert pid is not None
    assert not is_running(pid)


def test_a_service_that_does_not_heed_sigterm_is_killed(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolchain.processes.STOP_S", 0.1)

    async def scenario() -> int:
        async with cloud(make_bundle()) as service:
            pid = service.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
        return pid

    assert not is_running(asyncio.run(scenario()))
