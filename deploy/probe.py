"""Exit with 0 if a URL answers 200: the containers' health check, since their image has no curl."""

import http.client
import sys
from urllib.parse import urlsplit


def is_ready(url: str, timeout_s: float = 2.5) -> bool:
    """Whether `url` answers 200 within `timeout_s`. No proxy is asked: the address is the container's own."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_ready(sys.argv[1]) else 1)
