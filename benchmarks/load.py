"""
Load for an HTTP server on loopback: requests made beforehand, and sent by a process of its own.

    told = closed_loop(url, requests, connections=32)    each connection sends its next request when one is answered
    told = open_loop(url, requests, per_s=200)           one after the other on schedule, however long the answers take
    assert told.statuses == {204: len(requests)}

A request costs the sender about 0.05 ms of CPU (`told.cpu_s`): on a machine that it shares with the server it must be
cheap, or it would be what is measured. So it speaks as much of HTTP/1.1 as our servers do, on asyncio's own sockets.
"""

import asyncio
import pickle
import selectors
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE_S = 30.0
"""How long an answer is waited for after the last request was to be sent."""

AT_MOST = 256
"""So many connections are opened to keep to a schedule; then a request waits for one, and its latency tells."""


@dataclass(frozen=True, slots=True)
class Told:
    """What came of the requests. Status 0: no answer came. Latencies are of those that were answered."""

    statuses: Mapping[int, int]
    latencies_s: Sequence[float]
    seconds: float  # from the first request to the last answer
    cpu_s: float  # the sender's own
    odd: bytes = b""  # the beginning of an answer that was no success

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return len(self.latencies_s) / self.seconds

    def ms(self, quantile: float) -> float:
        """The latency within which this share was answered, in milliseconds."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


def request(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """One request, as it is sent."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def closed_loop(url: str, requests: Sequence[bytes], *, connections: int) -> Told:
    """Send *requests* over so many connections that are never idle: as fast as the server answers."""
    return _sent(_Work(url, requests, connections))


def open_loop(url: str, requests: Sequence[bytes], *, per_s: float) -> Told:
    """Send *requests* on schedule, *per_s* in each second; latencies count from when each was to be sent."""
    return _sent(_Work(url, requests, AT_MOST, per_s))


@dataclass(frozen=True, slots=True)
class _Work:
    url: str
    requests: Sequence[bytes]
    connections: int
    per_s: float | None = None

    @property
    def seconds(self) -> float:
        """How long the sending takes, or should at worst."""
        return len(self.requests) / (self.per_s or 50)


def _sent(work: _Work) -> Told:
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks import load; load.main()"],
        input=pickle.dumps(work),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        timeout=work.seconds + 2 * PATIENCE_S,
        check=True,
    )
    told: Told = pickle.loads(done.stdout)
    return told


class _Sender:
    """Sends what there is to send over a number of connections."""

    def __init__(self, work: _Work) -> None:
        parts = urlsplit(work.url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._work = work
        self._idle: deque[_Wire] = deque()
        self._waiting: deque[tuple[float, bytes]] = deque()  # on schedule, without a connection
        self._wires = 0
        self._left = len(work.requests)
        self._done = asyncio.Event()
        self.statuses: Counter[int] = Counter()
        self.latencies_s: list[float] = []
        self.odd = b""

    async def run(self) -> Told:
        for _ in range(min(self._work.connections, 16 if self._work.per_s else len(self._work.requests))):
            self._idle.append(await self._connect())
        began = time.perf_counter()
        used = time.process_time()
        try:
            async with asyncio.timeout(self._work.seconds + PATIENCE_S):
                await (self._on_schedule(self._work.per_s) if self._work.per_s else self._as_answered())
                await self._done.wait()
        except TimeoutError:
            self.statuses[0] += self._left
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - used
        return Told(dict(self.statuses), self.latencies_s, seconds, cpu_s, self.odd)

    async def _as_answered(self) -> None:
        self._requests: Iterator[bytes] = iter(self._work.requests)
        while self._idle:
            self._next(self._idle.popleft())

    async def _on_schedule(self, per_s: float) -> None:
        self._requests = iter(())
        first = time.perf_counter() + 0.01
        for number, raw in enumerate(self._work.requests):
            at = first + number / per_s
            if (pause_s := at - time.perf_counter()) > 0:
                await asyncio.sleep(pause_s)
            if self._idle:
                self._idle.pop().send(raw, at)
            elif self._wires < self._work.connections:
                (await self._connect()).send(raw, at)
            else:
                self._waiting.append((at, raw))

    def _next(self, wire: "_Wire") -> None:
        """Give a free connection something to do."""
        if self._waiting:
            at, raw = self._waiting.popleft()
            wire.send(raw, at)
        elif (raw := next(self._requests, b"")) != b"":
            wire.send(raw, time.perf_counter())
        else:
            self._idle.append(wire)

    async def _connect(self) -> "_Wire":
        self._wires += 1
        _, wire = await asyncio.get_running_loop().create_connection(lambda: _Wire(self), *self._address)
        return wire

    def answered(self, wire: "_Wire", status: int, took_s: float, answer: bytes) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        self.latencies_s.append(took_s)
        if status >= 300 and not self.odd:
            self.odd = answer[:2000]
        self._left -= 1
        if self._left:
            self._next(wire)
        else:
            self._done.set()

    def lost(self, wire: "_Wire", *, unanswered: bool) -> None:
        """Count a connection that the server closed, which it may while nothing is asked."""
        self._wires -= 1
        if wire in self._idle:
            self._idle.remove(wire)
        if unanswered:
            self.statuses[0] += 1
            self._left -= 1
            if not self._left:
                self._done.set()


@dataclass(eq=False, slots=True)
class _Wire(asyncio.Protocol):
    """One connection, with one request at a time."""

    sender: _Sender
    transport: asyncio.Transport | None = None
    since: float | None = None  # when what it asked was to be sent; None: it asks nothing
    heard: bytes = field(default=b"")

    def send(self, raw: bytes, since: float) -> None:
        assert self.transport
        self.since = since
        self.transport.write(raw)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if self.since is not None and _is_whole(self.heard):
            took_s, answer = time.perf_counter() - self.since, self.heard
            self.since, self.heard = None, b""
            self.sender.answered(self, int(answer[9:12]), took_s, answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.sender.lost(self, unanswered=self.since is not None)


def _is_whole(answer: bytes) -> bool:
    """Whether it is all there: by its length, or by its last chunk."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    head = head.lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return len(body) >= int(head[at + 17 :].partition(b"\r\n")[0])
    return b"\r\ntransfer-encoding: chunked" not in head or body.endswith(b"0\r\n\r\n")


def main() -> None:
    """Be the sender: standard input says what is to be sent, standard output is told what came of it."""
    work: _Work = pickle.load(sys.stdin.buffer)
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())  # to the microsecond, where epoll's clock has ms
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        told = runner.run(_Sender(work).run())
    sys.stdout.buffer.write(pickle.dumps(told))
