"""
A provider that does nothing until the test says so, over real HTTP.

Every request is held open; its answer, and whether it made a task, are decided by the test, steps later if it
likes. So the test knows the truth: which POST was paid for, which never was, and how each task ended.
"""

import itertools
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.wire import Request, Wire, hang_up, http, wire

PATIENCE_S = 60.0
"""No request is held for longer, should a test forget it."""


@dataclass
class Task:
    """One paid generation. `token` is of the webhook it was made with; None for a task that somebody else made."""

    id: str
    token: str | None
    model: str
    input: dict[str, Any]
    created_at: datetime
    status: str = "processing"

    def shown(self, *, with_input: bool = False, status: str | None = None) -> dict[str, Any]:
        """The task as the provider's API and its callbacks show it."""
        status = status or self.status
        done = status == "completed"
        return {
            "id": self.id,
            "model": self.model,
            "status": status,
            "outputs": [f"https://cdn.example.com/{self.id}/1.png"] if done else [],
            "has_nsfw_contents": [False] if done else [],
            "error": "The content contains sensitive information." if status == "failed" else "",
            "code": 1200 if status == "failed" else 0,
            "created_at": self.created_at.isoformat().replace("+00:00", "Z"),
            **({"input": self.input} if with_input else {}),
        }


@dataclass
class Post:
    """One paid POST that has arrived and waits for its answer; None as the answer cuts the connection."""

    token: str
    model: str
    input: dict[str, Any]
    answer: bytes | None = None
    answered: threading.Event = field(default_factory=threading.Event)


class Gate:
    """Holds one asker's questions until it is opened; then answers all alike."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.opened = threading.Event()
        self.how = "truth"


class Provider:
    """
    The provider, and what really happened there.

    Who asks is told apart by the first part of the path: `/worker-1/api/v3/…`. An asker with a gate is held at it.
    """

    def __init__(self) -> None:
        self.url = ""
        self._arrived = threading.Condition()
        self.forget()

    def forget(self) -> None:
        """As if nothing had ever happened."""
        self.tasks: list[Task] = []
        self.posts: dict[str, Post] = {}
        self.gates: dict[str, Gate] = {}
        self.key_works = True
        self.list_shows_input = True
        self.list_lag_s = 0.0  # how long a task takes to show in the list
        self._ids = itertools.count(1)

    def make(self, model: str, given: dict[str, Any], token: str | None = None) -> Task:
        """Create a task: from now on it costs money, whoever hears of it."""
        task = Task(f"{next(self._ids):032x}", token, model, given, datetime.now(UTC))
        self.tasks.append(task)
        return task

    def of_ours(self) -> list[Task]:
        """The tasks that POSTs of ours made."""
        return [task for task in self.tasks if task.token]

    def find(self, task_id: str) -> Task | None:
        """The task of that id, if it exists."""
        return next((task for task in self.tasks if task.id == task_id), None)

    def made_by(self, token: str) -> Task | None:
        """The task that the POST with this token made, if it made one."""
        return next((task for task in self.tasks if task.token == token), None)

    def age(self, by_s: float) -> None:
        """Let time pass here as well."""
        for task in self.tasks:
            task.created_at -= timedelta(seconds=by_s)

    def arrival(self, token: str, *, gone: Callable[[], bool]) -> Post | None:
        """Wait for the POST with this token; None when it is *gone* without having arrived."""
        with self._arrived:
            while not self._arrived.wait_for(lambda: token in self.posts, 0.5):
                if gone():
                    break
            return self.posts.get(token)

    def gate(self, asker: str) -> Gate:
        """Hold this asker's questions from now on."""
        self.gates[asker] = Gate()
        return self.gates[asker]

    def handle(self, request: Request, connection: socket.socket) -> None:
        """Serve one request; called in a thread of its connection."""
        target = urlsplit(request.target)
        _, asker, path = target.path.split("/", 2)
        path = path.removeprefix("api/v3/")
        if path == "balance":
            answer: bytes | None = http(200, _enveloped({"balance": 10})) if self.key_works else http(401, b"no key")
        elif path == "predictions":
            answer = self._list(json.loads(request.body), self.gates.get(asker))
        elif found := re.fullmatch(r"predictions/(\w+)/result", path):
            answer = self._result(found[1], self.gates.get(asker))
        else:
            (webhook,) = parse_qs(target.query)["webhook"]
            post = Post(webhook.rpartition("/")[2], path, json.loads(request.body))
            with self._arrived:
                self.posts[post.token] = post
                self._arrived.notify_all()
            post.answered.wait(PATIENCE_S)
            answer = post.answer
        if answer is None:
            hang_up(request, connection)
        else:
            connection.sendall(answer)

    def _result(self, task_id: str, gate: Gate | None) -> bytes:
        if gate:
            gate.arrived.set()
            gate.opened.wait(PATIENCE_S)
        how = gate.how if gate else "truth"
        task = self.find(task_id)
        if how == "busy":
            return http(503, b"busy")
        if how == "missing" or task is None:
            return http(404, _enveloped(None, "task not found"))
        return http(200, _enveloped(task.shown(status="processing" if how == "running" else None)))

    def _list(self, query: dict[str, Any], gate: Gate | None) -> bytes:
        """Newest first, as it was when it was asked for. Who asks for one item asks for the clock, and is not held."""
        now = datetime.now(UTC)
        when = {"Date": format_datetime(now.replace(microsecond=0), usegmt=True)}
        listed = [task for task in self.tasks if task.created_at <= now - timedelta(seconds=self.list_lag_s)]
        if query["page_size"] == 1:
            newest = sorted(listed, key=lambda task: task.created_at)[-1:]
            return http(200, _enveloped({"items": [task.shown() for task in newest]}), **when)
        first, last = (datetime.fromisoformat(query[name]) for name in ("created_after", "created_before"))
        seen = [task for task in listed if task.model == query["model"] and first <= task.created_at <= last]
        start = (query["page"] - 1) * query["page_size"]
        page = sorted(seen, key=lambda task: task.created_at, reverse=True)[start : start + query["page_size"]]
        items = [task.shown(with_input=self.list_shows_input) for task in page]
        if gate:
            gate.arrived.set()
            gate.opened.wait(PATIENCE_S)
            if gate.how == "busy":
                return http(503, b"busy")
        return http(200, _enveloped({"items": items}), **when)


def accepted(task: Task) -> bytes:
    """The answer to a POST that made this task."""
    return http(200, _enveloped(task.shown()))


def _enveloped(data: object, message: str = "success") -> dict[str, object]:
    return {"code": 200 if data is not None else 404, "message": message, "data": data}


@contextmanager
def running() -> Iterator[Provider]:
    """Run such a provider on loopback."""
    provider = Provider()
    with wire(provider.handle) as server:
        provider.url = server.url
        try:
            yield provider
        finally:
            _let_go(provider, server)


def _let_go(provider: Provider, server: Wire) -> None:
    """Nobody waits any longer, or the server's threads would."""
    for post in provider.posts.values():
        post.answered.set()
    for gate in provider.gates.values():
        gate.opened.set()
    del server.requests[:]
