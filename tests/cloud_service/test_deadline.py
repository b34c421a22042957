"""The time a request gives itself."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_service.deadline import time_left
from inference_core.errors import InvalidInput
from inference_core.tensors import Parameter


@given(caller_s=st.floats(0, 1e4), ours_ms=st.floats(0, 1e7), triton_us=st.integers(1, 2**62))
def test_the_shortest_holds(caller_s: float, ours_ms: float, triton_us: int) -> None:
    parameters: dict[str, Parameter] = {"tandem_deadline_ms": ours_ms, "timeout": triton_us}
    assert time_left(parameters, caller_s) == pytest.approx(min(caller_s, ours_ms / 1e3, triton_us / 1e6))


def test_who_says_nothing_has_what_the_call_gives() -> None:
    assert time_left({"other": "x"}, 7.0) == 7.0
    assert time_left({"timeout": 0}, 7.0) == 7.0
    assert time_left({"tandem_deadline_ms": 0}, 7.0) == 0.0


@pytest.mark.parametrize("name", ["tandem_deadline_ms", "timeout"])
@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, True, "100"])
def test_what_is_no_time_is_refused_by_its_name(name: str, value: Parameter) -> None:
    with pytest.raises(InvalidInput, match=f"parameter '{name}': must be a number from 0, got {value!r}"):
        time_left({name: value}, 1.0)
