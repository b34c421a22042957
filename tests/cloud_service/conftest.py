"""Fixtures of this package's tests."""

from collections.abc import AsyncIterator

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the services do."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def _one_loop(anyio_backend: str) -> AsyncIterator[None]:
    """One event loop for all tests: gRPC may still tell one of a channel that its test has closed."""
    yield  # noqa: PT022 - the loop lives as long as this fixture does
