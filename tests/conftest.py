"""Fixtures that more than one package's tests use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.bundles import write_bundle

# A busy machine is slow, which is no fault of the code: time is watched by `timeout` in pyproject.toml.
settings.register_profile("tandem", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tandem")


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """`write_bundle` into a folder of its own: `make_bundle("name", version="2")` -> the folder."""

    def make(name: str = "bundle", **changes: Any) -> Path:
        return write_bundle(tmp_path / name, **changes)

    return make
