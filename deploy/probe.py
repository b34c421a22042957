"""Exit with 0 if a URL answers 200: the containers' health check, since their image has no curl."""

import http.client
import ssl
import sys
from urllib.parse import urlsplit


def is_ready(url: str, timeout_s: float = 2.5) -> bool:
    """Whether `url` answers 200 within `timeout_s`. No proxy is asked: the address is the container's own."""
    parts = urlsplit(url)
    connection = _connection(parts.scheme, parts.netloc, timeout_s)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _connection(scheme: str, netloc: str, timeout_s: float) -> http.client.HTTPConnection:
    if scheme != "https":
        return http.client.HTTPConnection(netloc, timeout=timeout_s)
    # It asks the container that it runs in, by an address that no certificate is for.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(netloc, timeout=timeout_s, context=context)


if __name__ == "__main__":
    sys.exit(0 if is_ready(sys.argv[1]) else 1)
