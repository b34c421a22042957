"""A real edge node for every test of simulated devices."""

from collections.abc import Iterator

import pytest

from tests.toolchain.edge import running_edge


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an edge node that serves the model `colors`, without a cloud."""
    with running_edge(tmp_path_factory.mktemp("colors")) as url:
        yield url
