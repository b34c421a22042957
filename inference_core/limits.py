"""How many of what costs more than its bytes one request may hold.

A tensor, a parameter or a string takes microseconds to look at and two bytes to send: without a limit a body
of a few megabytes would keep the event loop, and so everybody, waiting for seconds.
"""

from inference_core.errors import InvalidInput

MAX_TENSORS = 256  # models have tens of inputs and outputs at most
MAX_PARAMETERS = 64  # of a request, and of each of its tensors
MAX_STRINGS = 1 << 12  # elements of all BYTES tensors together
MAX_LISTS = 1 << 16  # that the JSON tensors of a request are nested in, in equal shares
MAX_DIMENSIONS = 16


def check_count(where: str, count: int, noun: str, limit: int) -> None:
    """Raise `InvalidInput` for a `count` over `limit`; `where` and `noun` say of what."""
    if count > limit:
        raise InvalidInput(f"{where}: {count} {noun}, the limit is {limit}")
