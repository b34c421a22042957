"""gRPC over a minimal HTTP/2 client, for load: one unary call at a time, its message made beforehand.

Frames are of RFC 9113; how gRPC uses them is in its PROTOCOL-HTTP2.md. The other side's flow control, frame
size, settings and pings are kept to; our own windows are as large as they may be.
"""

import struct
from typing import Final

from benchmarks import hpack
from benchmarks.http1 import connect
from benchmarks.load import Broken, Reply

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
WINDOW: Final = 65_535
FRAME: Final = 16_384
_LARGE: Final = 1 << 30
_READ: Final = 1 << 18
_OK: Final = b"0"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame as it goes over the wire."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A frame of settings, by their numbers."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in values.items()))


def message(content: bytes) -> bytes:
    """A gRPC message, not compressed, as it goes into DATA frames."""
    return struct.pack(">BI", 0, len(content)) + content


class GrpcConnection:
    """Makes the same unary call again and again at a port of this machine."""

    def __init__(self, port: int, path: str, content: bytes) -> None:
        """Connect. `path` is `/package.Service/Method`, `content` the request. Raises `Broken`."""
        self._sock = connect(port)
        self._message = memoryview(message(content))
        self._block = hpack.encode(
            {
                b":method": b"POST",
                b":scheme": b"http",
                b":path": path.encode(),
                b":authority": b"127.0.0.1",
                b"te": b"trailers",
                b"content-type": b"application/grpc",
                b"user-agent": b"benchmark",
            }
        )
        own = settings({HEADER_TABLE_SIZE: 0, ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: _LARGE})
        self._out = bytearray(PREFACE + own + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGE)))
        self._in = b""
        self._stream = -1
        self._sent = len(self._message)  # of the message of the call on its way
        self._window, self._stream_window, self._initial = WINDOW, 0, WINDOW
        self._largest = FRAME
        self._received = 0  # since the other side was last told that there is room
        self._headers: list[bytes] = []
        self._body: list[bytes] = []
        self._known: dict[bytes, hpack.Headers] = {}
        self._flags = 0

    def fileno(self) -> int:
        """The socket, for polling."""
        return self._sock.fileno()

    @property
    def wants_to_write(self) -> bool:
        """Whether bytes lie here that could not be sent yet."""
        return bool(self._out)

    def send(self) -> None:
        """Begin the call. Raises `Broken`."""
        self._stream += 2
        self._stream_window = self._initial
        self._sent = 0
        self._out += frame(HEADERS, END_HEADERS, self._stream, self._block)
        self._fill()
        self._flush()

    def advance(self) -> Reply | None:
        """Write and read what is possible; the answer once it is complete. Raises `Broken`."""
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            data = None
        except OSError as error:
            raise Broken(f"reading: {error}") from error
        reply = None
        if data is not None:
            if not data:
                raise Broken("the server ended the connection")
            reply = self._read(self._in + data if self._in else data)
            self._fill()
        if self._out:
            self._flush()
        return reply

    def close(self) -> None:
        """End the connection."""
        self._sock.close()

    def _fill(self) -> None:
        """Put as much of the message on the way out as the other side has room for."""
        size = len(self._message)
        while self._sent < size and (room := min(self._window, self._stream_window)) > 0:
            length = min(self._largest, room, size - self._sent)
            last = self._sent + length == size
            self._out += struct.pack(">IBI", length << 8 | DATA, END_STREAM if last else 0, self._stream)
            self._out += self._message[self._sent : self._sent + length]
            self._sent += length
            self._window -= length
            self._stream_window -= length

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            return
        except OSError as error:
            raise Broken(f"writing: {error}") from error
        del self._out[:sent]

    def _read(self, data: bytes) -> Reply | None:
        """Take the whole frames of `data`; the answer when one of them ends it."""
        reply = None
        at, end = 0, len(data)
        while end - at >= 9:
            head, flags, stream = struct.unpack_from(">IBI", data, at)
            stop = at + 9 + (head >> 8)
            if stop > end:
                break
            payload = data[at + 9 : stop]
            at = stop
            if stream == 0:
                self._take_of_connection(head & 0xFF, flags, payload)
            elif stream == self._stream:
                reply = self._take(head & 0xFF, flags, payload) or reply
        self._in = data[at:]
        return reply

    def _take_of_connection(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._window += struct.unpack(">I", payload)[0]
        elif kind == SETTINGS and not flags & ACK:
            for number, value in struct.iter_unpack(">HI", payload):
                if number == INITIAL_WINDOW_SIZE:
                    self._stream_window += value - self._initial
                    self._initial = value
                elif number == MAX_FRAME_SIZE:
                    self._largest = value
            self._out += frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            raise Broken(f"the server lets go of the connection: {payload[8:].decode('utf-8', 'replace')}")

    def _take(self, kind: int, flags: int, payload: bytes) -> Reply | None:
        if kind == DATA:
            self._took(len(payload))
            self._body.append(payload[1 : len(payload) - payload[0]] if flags & PADDED else payload)
            if flags & END_STREAM:
                raise Broken("an answer without a grpc-status")
        elif kind == WINDOW_UPDATE:
            self._stream_window += struct.unpack(">I", payload)[0]
        elif kind == RST_STREAM:
            raise Broken(f"the server reset the call: code {struct.unpack('>I', payload)[0]}")
        elif kind in (HEADERS, CONTINUATION):
            if kind == HEADERS:
                self._headers, self._flags = [], flags
                payload = payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
                payload = payload[5:] if flags & PRIORITY else payload
            self._headers.append(payload)
            if flags & END_HEADERS and self._flags & END_STREAM:
                return self._finish(b"".join(self._headers))
        return None

    def _took(self, size: int) -> None:
        """Give room back to the other side, seldom."""
        self._received += size
        if self._received > _LARGE // 2:
            self._out += frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received))
            self._received = 0

    def _finish(self, block: bytes) -> Reply:
        """The answer, of which `block` are the trailers."""
        trailers = self._known.get(block)
        if trailers is None:
            try:
                trailers = hpack.decode(block)
            except ValueError as error:
                raise Broken(str(error)) from error
            if len(self._known) < 100:
                self._known[block] = trailers
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        if self._sent < len(self._message):
            raise Broken("answered before the request was sent")
        status = trailers.get(b"grpc-status", b"")
        if status != _OK:
            text = trailers.get(b"grpc-message", b"").decode("ascii", "replace")
            return Reply(False, f"grpc-status {status.decode('ascii', 'replace')} {text}", block, body[5:])
        if len(body) < 5 or body[0] or struct.unpack_from(">I", body, 1)[0] != len(body) - 5:
            raise Broken(f"{len(body)} bytes that are not one plain message")
        return Reply(True, "0", block, body[5:])
