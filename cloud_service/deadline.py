"""The time that a request has, by what it says itself: a message on a stream has no deadline of gRPC's."""

import math
from collections.abc import Mapping

from inference_core.errors import InvalidInput
from inference_core.tensors import Parameter

_UNITS = {"tandem_deadline_ms": 1e-3, "timeout": 1e-6}


def time_left(parameters: Mapping[str, Parameter], left_s: float) -> float:
    """The seconds that a request has: `left_s`, or less where a parameter says so.

    That is `tandem_deadline_ms`, or Triton's `timeout` in microseconds, where 0 stands for none. Raises
    `InvalidInput` for what is no time.
    """
    for name, unit in _UNITS.items():
        value = parameters.get(name)
        if value is None or (name == "timeout" and value == 0):
            continue
        if isinstance(value, bool | str) or not 0 <= value < math.inf:
            raise InvalidInput(f"parameter {name!r}: must be a number from 0, got {value!r}")
        left_s = min(left_s, value * unit)
    return left_s
