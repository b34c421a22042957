"""Servers that do nothing, to find out how much the load generator can send: HTTP/1.1 and gRPC's HTTP/2.

`python -m benchmarks.noop http|grpc PORT`: every request is answered with the same few bytes.
"""

import re
import select
import socket
import struct
import sys

from benchmarks import hpack
from benchmarks.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    message,
    settings,
)

ANSWER = b"nothing was done here, ten times."
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
_OPENING = hpack.encode({b":status": b"200", b"content-type": b"application/grpc"})
_TRAILERS = hpack.encode({b"grpc-status": b"0"})
_READ = 1 << 18
_LARGE = 1 << 30


class HttpPeer:
    """One connection of HTTP/1.1, of which nothing but the length of the requests is read."""

    greeting = b""

    def __init__(self) -> None:
        self._in = b""

    def take(self, data: bytes) -> bytes:
        """What is to be sent for `data`, the bytes that came next."""
        self._in += data
        end = self._in.find(b"\r\n\r\n")
        if end < 0:
            return b""
        length = _LENGTH.search(self._in, 0, end)
        if len(self._in) < end + 4 + (int(length[1]) if length else 0):
            return b""
        self._in = b""
        return _HTTP


class GrpcPeer:
    """One connection of HTTP/2 whose every stream is answered when its request is complete."""

    greeting = settings({INITIAL_WINDOW_SIZE: _LARGE}) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGE))

    def __init__(self) -> None:
        self._in = b""
        self._began = False
        self._taken = 0

    def take(self, data: bytes) -> bytes:
        """What is to be sent for `data`, the bytes that came next."""
        data = self._in + data
        at = 0
        if not self._began:
            if len(data) < len(PREFACE):
                self._in = data
                return b""
            at, self._began = len(PREFACE), True
        out = b""
        while len(data) - at >= 9:
            head, flags, stream = struct.unpack_from(">IBI", data, at)
            stop = at + 9 + (head >> 8)
            if stop > len(data):
                break
            out += self._answer(head & 0xFF, head >> 8, flags, stream)
            at = stop
        self._in = data[at:]
        return out

    def _answer(self, kind: int, size: int, flags: int, stream: int) -> bytes:
        if kind == SETTINGS and not flags & ACK:
            return frame(SETTINGS, ACK, 0, b"")
        if kind != DATA:
            return b""
        out = b""
        self._taken += size
        if self._taken > _LARGE // 2:
            out = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken))
            self._taken = 0
        if flags & END_STREAM:
            out += frame(HEADERS, END_HEADERS, stream, _OPENING)
            out += frame(DATA, 0, stream, message(ANSWER))
            out += frame(HEADERS, END_HEADERS | END_STREAM, stream, _TRAILERS)
        return out


def serve(kind: type[HttpPeer] | type[GrpcPeer], port: int) -> None:
    """Answer on `port` of this machine until the process is ended."""
    listener = socket.create_server(("127.0.0.1", port))
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    peers: dict[int, tuple[socket.socket, HttpPeer | GrpcPeer]] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peers[sock.fileno()] = (sock, kind())
                epoll.register(sock.fileno(), select.EPOLLIN)
                sock.sendall(kind.greeting)
                continue
            sock, peer = peers[fd]
            data = sock.recv(_READ)
            if data:
                sock.sendall(peer.take(data))
            else:
                epoll.unregister(fd)
                peers.pop(fd)[0].close()


if __name__ == "__main__":
    serve(GrpcPeer if sys.argv[1] == "grpc" else HttpPeer, int(sys.argv[2]))
