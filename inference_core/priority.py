"""Which requests go first where not all can: on the wire between both ends, so both must agree."""

from enum import StrEnum

PRIORITY = "tandem_priority"  # the parameter of a request, in either direction of the way


class Priority(StrEnum):
    """How much a request matters, the most first. A class is served before those after it."""

    CRITICAL = "critical"
    NORMAL = "normal"
    BACKGROUND = "background"
