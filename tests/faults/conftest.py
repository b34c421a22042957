"""The fault suite: sizes, seeds, and one table of what was found, at the end and in a file."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.faults.others import Others
from tests.faults.row import SEED, Row
from tests.faults.soaking import Soak
from tests.faults.table import markdown, write
from tests.joint.canary import CANARY
from tests.joint.services import Services

_CASES = pytest.StashKey[list[tuple[str, ...]]]()
_OTHERS = pytest.StashKey[Others]()
_LOG_LINES = 60
SOAK_S = (300.0, 8 * 3600.0)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "the fault suite")
    group.addoption("--size", choices=("ci", "torture"), default="ci", help="how many trials each fault gets")
    group.addoption("--seed", type=int, default=SEED, help="what every random choice comes from")
    group.addoption("--faults-table", type=Path, help="file for the table; rows not run again stay in it")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CASES] = []
    config.stash[_OTHERS] = Others()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs beside the other rows is judged last."""
    items.sort(key=lambda item: item.path.stem == "test_soak")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for service in Services.known:
            lines = "\n".join(service.log.splitlines()[-_LOG_LINES:])
            report.sections.append((f"log of {service.name}", lines))
        row = getattr(item, "funcargs", {}).get("row")
        if isinstance(row, Row) and not row.judged:
            row.give_up(str(call.excinfo.value if call.excinfo else "").splitlines())
    if report.when == "teardown":
        Services.known[:] = [s for s in Services.known if s.process.poll() is None]
        _keep_table(item.config)
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    rows = config.stash[_CASES]
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write(markdown(rows))
    stalls = [end - start for start, end in CANARY.stalls]
    longest_ms = max(stalls, default=0.0) * 1000
    terminalreporter.write_line(
        f"the machine stood still {len(stalls)} times, up to {longest_ms:.0f} ms, and did other things with "
        f"{config.stash[_OTHERS].cores:.2f} of its {os.cpu_count()} processors"
    )


def _keep_table(config: pytest.Config) -> None:
    """After every test, so that a run of many hours can be broken off."""
    path, rows = config.getoption("--faults-table", None), config.stash[_CASES]
    if path is not None and rows:
        write(path, rows)


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    """Size, seed and the table: `row.judge(Case(fault, found, twin, removed))` at the end of a test."""
    return Row(request, request.config.stash[_CASES])


@pytest.fixture(scope="package", autouse=True)
def canary() -> Iterator[None]:
    """Watches the machine while the suite runs."""
    CANARY.start()
    yield
    CANARY.stop()


@pytest.fixture(scope="package", autouse=True)
def soak(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak | None]:
    """Runs beside everything else, where its row was asked for."""
    if not any(item.path.stem == "test_soak" for item in request.session.items):
        yield None
        return
    torture = request.config.getoption("--size", "ci") == "torture"
    seed = request.config.getoption("--seed", SEED)
    running = Soak(tmp_path_factory.mktemp("soak"), SOAK_S[torture], seed)
    yield running
    running.end()


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Starts services for one test."""
    with Services(tmp_path) as started:
        yield started
