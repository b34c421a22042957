"""Which requests go first where not all can: on the wire between both ends, so both must agree."""

from collections.abc import Mapping
from enum import StrEnum

from inference_core.errors import InvalidInput

PRIORITY = "tandem_priority"  # the parameter of a request, in either direction of the way


class Priority(StrEnum):
    """How much a request matters, the most first. A class is served before those after it."""

    CRITICAL = "critical"
    NORMAL = "normal"
    BACKGROUND = "background"


def asked_priority(parameters: Mapping[str, object]) -> Priority:
    """The class that a request's parameters ask for, normal where they say nothing. Raises `InvalidInput`."""
    value = parameters.get(PRIORITY, Priority.NORMAL)
    try:
        return Priority(str(value))
    except ValueError as error:
        known = ", ".join(Priority)
        raise InvalidInput(f"parameter {PRIORITY!r}: must be one of {known}, got {value!r:.100}") from error
