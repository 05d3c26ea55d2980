"""What stands in front of a server: a real HTTP proxy on loopback that passes on, or does not, or changes something."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Message:
    """A request on its way in, or an answer on its way out, to be changed as one likes."""

    headers: dict[str, str]
    body: bytes
    status: int = 0
    path: str = ""


def _as_it_is(message: Message) -> None:
    """Change nothing."""


@dataclass
class Front:
    """How the proxy treats what passes; with *answer* nothing does."""

    behind: str = ""
    inward: Callable[[Message], None] = _as_it_is
    outward: Callable[[Message], None] = _as_it_is
    answer: Callable[[Message], Message] | None = None
    seen: list[str] = field(default_factory=list)


@contextmanager
def fronting(front: Front) -> Iterator[str]:
    """Run it; give its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            asked = Message(dict(self.headers.items()), self.rfile.read(size), path=self.path)
            front.seen.append(asked.path)
            front.inward(asked)
            answer = front.answer(asked) if front.answer else self._asked(asked)
            front.outward(answer)
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def do_GET(self) -> None:
            self.do_POST()

        def _asked(self, asked: Message) -> Message:
            parts = urlsplit(front.behind)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
            headers = {**asked.headers, "Content-Length": str(len(asked.body))}
            try:
                connection.request(self.command, asked.path, asked.body or None, headers)
                answer = connection.getresponse()
                return Message(dict(answer.getheaders()), answer.read(), answer.status)
            finally:
                connection.close()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
