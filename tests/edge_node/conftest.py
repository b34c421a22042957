"""Fixtures of this package's tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.bundles import write_bundle
from tests.edge_node.node import CloudSimulator, Node, node


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the services do."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def _one_loop(anyio_backend: str) -> AsyncIterator[None]:
    """One event loop for all tests: gRPC may still tell one of a channel that its test has closed."""
    yield  # noqa: PT022 - the loop lives as long as this fixture does


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return write_bundle(tmp_path_factory.mktemp("edge") / "colors")


@pytest.fixture
def cloud(colors: Path) -> CloudSimulator:
    """A cloud with the same bundle."""
    return CloudSimulator(colors)


@pytest.fixture
def edge(colors: Path, cloud: CloudSimulator) -> Iterator[Node]:
    """A node with that cloud."""
    with node(colors, cloud=cloud) as made:
        yield made


@pytest.fixture
def client(edge: Node) -> Iterator[TestClient]:
    """A client of the node's HTTP application; an exception out of the application fails the test."""
    with TestClient(edge.app()) as made:
        yield made
