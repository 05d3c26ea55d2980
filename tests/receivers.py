"""A service that is told of its jobs: it remembers what came, and answers as a test wants it to."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Heard:
    """One delivery as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def event(self, secret: str) -> Any:
        """What it says; an exception unless it was signed with *secret*, just now."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """`answer` gives the status for each delivery; it may wait, and then nobody hears anything meanwhile."""

    url: str
    answer: Callable[[Heard], int] = lambda _: 200
    heard: list[Heard] = field(default_factory=list)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run one on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            one = Heard(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            receiver.heard.append(one)
            said = b"thank you\x00"
            self.send_response(receiver.answer(one))
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join(5)
