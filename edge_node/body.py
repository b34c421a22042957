"""Request bodies, read with a limit."""

from starlette.requests import Request

from inference_core.errors import InvalidInput, TooLarge


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises `InvalidInput` for none, and `TooLarge` as soon as it is known to be over
    `limit` bytes."""
    try:
        declared = int(request.headers.get("content-length", "0"))
    except ValueError:
        declared = 0  # the stream will tell
    if declared > limit:
        raise TooLarge(f"body: {declared} bytes, the limit is {limit}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"body: over the limit of {limit} bytes")
    if not body:
        raise InvalidInput("body: is empty")
    return bytes(body)
