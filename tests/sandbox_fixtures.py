"""What the sandbox's tests share: a plain HTTP caller, a webhook receiver, and patience."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from pipeline.sandbox import Sandbox

QUICK: dict[str, object] = {"generation_s": 0.02, "webhook_retry_s": 0.01}
SLOW: dict[str, object] = {"generation_s": 600}
T = TypeVar("T")


def eventually(question: Callable[[], T | None], patience_s: float = 20) -> T:
    """The first true answer to *question*."""
    give_up = time.monotonic() + patience_s
    pause_s = 0.005
    while not (answer := question()):
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.25, 0.05)
    return answer


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def data(self) -> Any:
        """What the provider's envelope holds, in an answer that is fine."""
        assert self.status == 200, self.body
        assert (self.json["code"], self.json["message"]) == (200, "success")
        return self.json["data"]


def fetch(method: str, url: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
    """One request; redirects are not followed."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, raw, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


class Caller:
    """A client of the API that hides nothing."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def call(self, method: str, path: str, body: object = None, key: str | None = "key") -> Answer:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return fetch(method, f"{self.sandbox.url}/api/v3/{path}", body, headers)

    def submit(
        self,
        prompt: str = "a lighthouse",
        *,
        webhook: str | None = None,
        model: str = "openai/dall-e-2",
        **more: object,
    ) -> Answer:
        query = f"?webhook={quote(webhook, safe='')}" if webhook else ""
        return self.call("POST", model + query, {"prompt": prompt, **more})

    def start(self, prompt: str = "a lighthouse", **more: Any) -> str:
        """Submit, and return the id of the task."""
        return str(self.submit(prompt, **more).data["id"])

    def result(self, task_id: str) -> Any:
        return self.call("GET", f"predictions/{task_id}/result").data

    def ended(self, task_id: str) -> Any:
        """The prediction once it is no longer running."""

        def look() -> Any:
            prediction = self.result(task_id)
            return None if prediction["status"] in {"created", "pending", "processing"} else prediction

        return eventually(look)

    def run(self, prompt: str = "a lighthouse", **more: Any) -> Any:
        return self.ended(self.start(prompt, **more))

    def list(self, **wanted: object) -> list[Any]:
        items: list[Any] = self.call("POST", "predictions", wanted).data["items"]
        return items


@dataclass(frozen=True)
class Received:
    """One delivery as it came over the wire."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def prediction(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """A webhook receiver that answers as told: *answers* first, then 204."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)

    def wait(self, count: int) -> list[Received]:
        """The deliveries, once there are *count*."""
        eventually(lambda: len(self.received) >= count)
        return list(self.received)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on loopback."""
    receiver = Receiver()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                receiver.received.append(Received(self.path, dict(self.headers.items()), body))
                status = receiver.answers.pop(0) if receiver.answers else 204
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            if status != 204:
                self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
