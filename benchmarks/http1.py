"""HTTP/1.1 over a kept connection, for load: the request is bytes made beforehand, the answer is bytes."""

import re
import socket

from benchmarks.load import Broken, Reply

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CONNECT_S = 5.0
_READ = 1 << 18


def post(path: str, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> bytes:
    """A POST as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def connect(port: int) -> socket.socket:
    """A connection to this machine's `port` that never blocks; `Broken` when nobody listens."""
    try:
        sock = socket.create_connection(("127.0.0.1", port), _CONNECT_S)
    except OSError as error:
        raise Broken(f"port {port}: {error}") from error
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class HttpConnection:
    """Sends the same request again and again to a port of this machine."""

    def __init__(self, port: int, request: bytes) -> None:
        """Connect. Raises `Broken` when nobody listens."""
        self._sock = connect(port)
        self._request = memoryview(request)
        self._left = self._request[:0]
        self._parts: list[bytes] = []
        self._size = 0
        self._needed = 0  # bytes of the whole answer, 0 while that is not known

    def fileno(self) -> int:
        """The socket, for polling."""
        return self._sock.fileno()

    @property
    def wants_to_write(self) -> bool:
        """Whether part of the request could not be sent yet."""
        return bool(self._left)

    def send(self) -> None:
        """Begin the request. Raises `Broken`."""
        self._left = self._request
        self._write()

    def advance(self) -> Reply | None:
        """Write and read what is possible; the answer once it is complete. Raises `Broken`."""
        if self._left:
            self._write()
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return None
        except OSError as error:
            raise Broken(f"reading: {error}") from error
        if not data:
            raise Broken("the server ended the connection")
        self._parts.append(data)
        self._size += len(data)
        if self._size < self._needed:
            return None
        return self._parse(data if len(self._parts) == 1 else b"".join(self._parts))

    def close(self) -> None:
        """End the connection."""
        self._sock.close()

    def _write(self) -> None:
        try:
            self._left = self._left[self._sock.send(self._left) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise Broken(f"writing: {error}") from error

    def _parse(self, data: bytes) -> Reply | None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = data[:end]
        length = _LENGTH.search(head)
        if length is not None:
            self._needed = end + 4 + int(length[1])
            if len(data) < self._needed:
                return None
            if len(data) > self._needed:
                raise Broken(f"{len(data) - self._needed} bytes after the answer")
            body = data[end + 4 :]
        elif _CHUNKED.search(head):
            if not data.endswith(b"0\r\n\r\n"):
                return None
            body = _joined(data[end + 4 :])
        else:
            raise Broken("an answer without a length")
        self._parts, self._size, self._needed = [], 0, 0
        status = head[9:12]
        return Reply(status == b"200", status.decode("ascii", "replace"), head, body)


def _joined(chunked: bytes) -> bytes:
    """The content of a chunked body that is complete."""
    parts: list[bytes] = []
    at = 0
    while True:
        line, _, _ = chunked[at:].partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        at += len(line) + 2
        if not size:
            return b"".join(parts)
        parts.append(chunked[at : at + size])
        at += size + 2
