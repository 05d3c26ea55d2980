"""A server of bare sockets, for what no well-behaved provider answers: each request gets the bytes it is told."""

import json
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Request:
    """One request as it came: the target byte for byte, header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


Handler = Callable[[Request, socket.socket], None]


class Wire:
    """The running server: its address, and every request that arrived."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        host, self.port = listener.getsockname()[:2]
        self.url = f"http://{host}:{self.port}"
        self.requests: list[Request] = []
        self.handler = handler
        self._listener = listener
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def count(self, method: str) -> int:
        """How many requests of that method arrived."""
        return sum(request.method == method for request in self.requests)

    @property
    def untouched(self) -> bool:
        """Whether nobody so much as connected."""
        return not self._connections

    def close(self) -> None:
        for each in (self._listener, *self._connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection, connection.makefile("rb") as stream:
            while request := _read(stream):
                self.requests.append(request)
                self.handler(request, connection)


def _read(stream: BinaryIO) -> Request | None:
    first = stream.readline().decode("latin-1").split()
    if len(first) != 3:
        return None
    headers = {}
    while line := stream.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Request(first[0], first[1], headers, stream.read(int(headers.get("content-length", 0))))


@contextmanager
def wire(handler: Handler, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Wire]:
    """Run such a server on loopback."""
    listener = socket.create_server((host, 0))
    server = Wire(tls.wrap_socket(listener, server_side=True) if tls else listener, handler)
    try:
        yield server
    finally:
        server.close()


def raw(answer: bytes) -> Handler:
    """Answer with these bytes, and leave the connection open."""
    return lambda request, connection: connection.sendall(answer)


def http(status: int, body: bytes | object = b"", **headers: str) -> bytes:
    """The bytes of an answer; what is not bytes goes as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def says(status: int, body: bytes | object = b"", **headers: str) -> Handler:
    """Answer so."""
    return raw(http(status, body, **headers))


def hang_up(request: Request, connection: socket.socket) -> None:
    """Close without a word, as a server that restarts."""
    connection.shutdown(socket.SHUT_RDWR)


def reset(request: Request, connection: socket.socket) -> None:
    """Reset the connection, as a middlebox that forgot it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionAbortedError  # who serves it closes it


def begin_and_reset(request: Request, connection: socket.socket) -> None:
    """Send the headers and half of the body, then reset."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b'{"code":200,"data":{"id":"abc"')
    reset(request, connection)


def begin_and_hang_up(request: Request, connection: socket.socket) -> None:
    """Send the headers and half of the body, then close."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b'{"code":200,"data":{"id":"abc"')
    connection.shutdown(socket.SHUT_RDWR)


def endless(request: Request, connection: socket.socket) -> None:
    """Send a body that does not end, until the client has enough."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")


def silent(request: Request, connection: socket.socket) -> None:
    """Read, and never answer."""
    while connection.recv(1024):
        pass


def floods(beginning: bytes, piece: bytes) -> Handler:
    """Begin so, and go on with this piece as fast as the client takes it."""

    def handler(request: Request, connection: socket.socket) -> None:
        connection.sendall(beginning)
        while True:
            connection.sendall(piece)

    return handler


def drips(beginning: bytes, piece: bytes) -> Handler:
    """Begin so, and go on with this piece, slowly, until the client hangs up."""

    def handler(request: Request, connection: socket.socket) -> None:
        connection.sendall(beginning)
        while not select.select([connection], [], [], 0.02)[0]:
            connection.sendall(piece)

    return handler
