"""A TCP proxy before Postgres, for what only a network can do: vanish, cut, swallow the answer to a COMMIT."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

_BEGIN = b"Q\x00\x00\x00\x0aBEGIN\x00"
_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_ROLLBACK = b"Q\x00\x00\x00\x0dROLLBACK\x00"
_EXECUTE = b"E\x00\x00\x00\x09\x00\x00\x00\x00\x00S\x00\x00\x00\x04"


@dataclass(eq=False)
class _Link:
    """One client's connection and the server's side of it."""

    client: socket.socket
    server: socket.socket | None
    gone: bool = False  # both ends stay open, and nothing passes any more
    losing: threading.Event = field(default_factory=threading.Event)  # a COMMIT went on, its answer must not
    sent: bytearray = field(default_factory=bytearray)  # by the client, in its present transaction

    def close(self) -> None:
        for each in (self.client, self.server):
            if each:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()


class Proxy:
    """The running proxy. Its faults may be called from any thread."""

    def __init__(self, listener: socket.socket, server: tuple[str, int]) -> None:
        self.port: int = listener.getsockname()[1]
        self.commits_lost = 0
        self._listener = listener
        self._server = server
        self._links: list[_Link] = []
        self._lock = threading.Lock()
        self._vanished = False
        self._refusing = False
        self._lose: tuple[bytes, bool, bool] | None = None
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def url(self, server_url: str) -> str:
        """The address of the same database by way of this proxy."""
        parts = urlsplit(server_url)
        user, _, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{self.port}"))

    def cut(self) -> None:
        """End every connection."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.close()

    def vanish(self) -> None:
        """
        Be silent: connections stay open and take what is sent, but nothing comes back, on new ones neither.

        As with a frozen server or a balancer that forgot it, keepalives are answered and TCP sees no fault.
        """
        with self._lock:
            self._vanished = True
            for link in self._links:
                link.gone = True

    def come_back(self) -> None:
        """Serve new connections again; those of before stay silent for good."""
        with self._lock:
            self._vanished = self._refusing = False

    def refuse(self) -> None:
        """End every connection, and each new one at once."""
        self._refusing = True
        self.cut()

    def lose_commit(self, of: bytes, *, arrives: bool = True, then_refuse: bool = False) -> None:
        """
        Cut the connection at the next COMMIT of a transaction in which the client sent the bytes *of*.

        Likewise at the end of a statement that is a transaction by itself.

        It is done, and only its answer lost; or, unless it *arrives*, never done. *then_refuse*: nobody comes
        through after it, until `come_back`.
        """
        with self._lock:
            self._lose = (of, arrives, then_refuse)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open(client)

    def _open(self, client: socket.socket) -> None:
        server = None
        if not (self._refusing or self._vanished):
            with contextlib.suppress(OSError):
                server = socket.create_connection(self._server)
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if server is None and not self._vanished:
            client.close()
            return
        link = _Link(client, server)
        with self._lock:
            link.gone = self._vanished
            self._links.append(link)
        for pump in (self._from_client, self._from_server):
            thread = threading.Thread(target=pump, args=(link,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _from_client(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.client.recv(65536):
                if link.gone or link.server is None:
                    continue
                link.sent += data
                commits = data.endswith(_COMMIT) or (_BEGIN not in link.sent and _is_a_statement(data))
                if commits or data.endswith(_ROLLBACK):
                    if commits and (arrives := self._is_to_be_lost(link)) is not None:
                        link.losing.set()
                        if not arrives:
                            self.commits_lost += 1
                            break
                    link.sent.clear()
                link.server.sendall(data)
        self._end(link)

    def _from_server(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while link.server and (data := link.server.recv(65536)):
                if link.losing.is_set():  # the answer to the COMMIT: it is done
                    self.commits_lost += 1
                    break
                if not link.gone:
                    link.client.sendall(data)
            if link.gone:
                return  # the server gave up; the client does not learn of it
        self._end(link)

    def _is_to_be_lost(self, link: _Link) -> bool | None:
        """Whether this COMMIT still arrives, when it is the one to be lost; else None."""
        with self._lock:
            if self._lose is None or self._lose[0] not in link.sent:
                return None
            (_, arrives, self._refusing), self._lose = self._lose, None
            return arrives

    def _end(self, link: _Link) -> None:
        with self._lock:
            if link in self._links:
                self._links.remove(link)
        link.close()


def _is_a_statement(data: bytes) -> bool:
    """Whether it ends one; outside of a transaction that commits it."""
    return data.endswith(_EXECUTE) or data.startswith(b"Q")


@contextlib.contextmanager
def proxy(server_url: str) -> Iterator[Proxy]:
    """Run a proxy on loopback before the server of that URL."""
    parts = urlsplit(server_url)
    assert parts.hostname
    running = Proxy(socket.create_server(("127.0.0.1", 0)), (parts.hostname, parts.port or 5432))
    try:
        yield running
    finally:
        running.close()
