"""Services for one test or for one module; a failed test shows their logs, and every run its figures."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.joint.canary import CANARY
from tests.joint.services import Services

_FIGURES = pytest.StashKey[list[str]]()
_LOG_LINES = 60


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = []
    config.addinivalue_line("markers", "slow: takes more than 30 seconds")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for service in Services.known:
            lines = "\n".join(service.log.splitlines()[-_LOG_LINES:])
            report.sections.append((f"log of {service.name}", lines))
    if report.when == "teardown":
        Services.known[:] = [s for s in Services.known if s.process.poll() is None]
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if config.stash[_FIGURES]:
        stalls = [end - start for start, end in CANARY.stalls]
        longest_ms = max(stalls, default=0.0) * 1000
        config.stash[_FIGURES].append(
            f"the machine stood still {len(stalls)} times, up to {longest_ms:.0f} ms"
        )
        terminalreporter.section("figures of the joint tests")
        for line in config.stash[_FIGURES]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="package", autouse=True)
def canary() -> Iterator[None]:
    """Watches the machine while these tests run."""
    CANARY.start()
    yield
    CANARY.stop()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep figures for the end of the run: `note(resumed_s=0.4)`."""

    def keep(**figures: float | str) -> None:
        texts = (f"{name} {v:.3g}" if isinstance(v, float) else f"{name} {v}" for name, v in figures.items())
        request.config.stash[_FIGURES].append(f"{request.node.name}: {', '.join(texts)}")

    return keep


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Starts services for one test."""
    with Services(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def module_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Starts services for all tests of a module."""
    with Services(tmp_path_factory.mktemp("services")) as started:
        yield started
