"""
A TCP proxy for each way between two programs, that can make its connections half open.

While a way is `HELD`, bytes wait and are delivered afterwards. While it is `SWALLOWING`, they vanish, and the
connections that lost some are reset at the end, as the kernel does when its patience is over. In both, the end of one
side is not told to the other: a dead client's transaction stays open at the server. `cut` resets all connections.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from enum import StrEnum
from typing import Any, cast

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, not with a farewell


class Mood(StrEnum):
    """What a way does with the bytes that come."""

    OPEN = "open"
    HELD = "held"
    SWALLOWING = "swallowing"


class _Side(asyncio.Protocol):
    """One end of a connection; what it receives goes to the other end."""

    def __init__(self, pair: "_Pair") -> None:
        self._pair = pair
        self.other: _Side
        self.transport: asyncio.Transport | None = None
        self.ended = False
        self.waiting = bytearray()  # for this end, until it may be delivered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pair.connected(self)

    def data_received(self, data: bytes) -> None:
        self._pair.passed(self.other, data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self._pair.ended()

    def deliver(self) -> None:
        if self.waiting and self.transport is not None:
            self.transport.write(bytes(self.waiting))
            self.waiting.clear()

    def reset(self) -> None:
        if self.transport is not None and not self.ended:
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


class _Pair:
    """A connection through the proxy: a client, and the server it wanted."""

    def __init__(self, way: "Way") -> None:
        self._way = way
        self.client, self.server = _Side(self), _Side(self)
        self.client.other, self.server.other = self.server, self.client
        self._lost_bytes = False

    def connected(self, side: _Side) -> None:
        if side is self.client:
            self._way.pairs.add(self)
            asyncio.get_running_loop().create_task(self._reach_the_server())
        elif self not in self._way.pairs:  # over before it was there
            self.reset()
        elif self._way.mood is Mood.OPEN:
            side.deliver()

    async def _reach_the_server(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, "127.0.0.1", self._way.target)
        except OSError:
            self.reset()

    def passed(self, to: _Side, data: bytes) -> None:
        if self._way.mood is Mood.SWALLOWING or self._lost_bytes:
            self._lost_bytes = True
            return
        to.waiting += data
        if self._way.mood is Mood.OPEN:
            to.deliver()

    def ended(self) -> None:
        if self._way.mood is Mood.OPEN:
            self._finish()

    def resume(self) -> None:
        """The way is open again."""
        if self._lost_bytes:
            self.reset()
        elif self.client.ended or self.server.ended:
            self._finish()
        else:
            self.client.deliver()
            self.server.deliver()

    def _finish(self) -> None:
        """One side has left: the other hears of it. What was held for a server is lost with its client."""
        if not self.client.ended:
            self.client.deliver()
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.close()
        self._way.pairs.discard(self)

    def reset(self) -> None:
        self.client.reset()
        self.server.reset()
        self._way.pairs.discard(self)


class Way:
    """One way: a port to connect to, and the port it leads to."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.mood = Mood.OPEN
        self.pairs: set[_Pair] = set()

    async def listen(self) -> None:
        """Take connections on a free port from now on."""
        server = await asyncio.get_running_loop().create_server(lambda: _Pair(self).client, "127.0.0.1", 0, backlog=512)
        self.port = server.sockets[0].getsockname()[1]

    async def turn(self, mood: Mood) -> None:
        """Change what becomes of bytes."""
        self.mood = mood
        if mood is Mood.OPEN:
            for pair in list(self.pairs):
                pair.resume()

    async def cut(self) -> None:
        """Reset every connection."""
        for pair in list(self.pairs):
            pair.reset()


class Proxy:
    """The ways by name, in an event loop of a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ways: dict[str, Way]) -> None:
        self._loop = loop
        self.ways = ways

    @property
    def ports(self) -> dict[str, int]:
        """Where to connect to instead of the server itself, by name."""
        return {name: way.port for name, way in self.ways.items()}

    def turn(self, name: str, mood: Mood) -> None:
        """Change what becomes of the bytes on a way."""
        self._run(self.ways[name].turn(mood))

    def cut(self, name: str) -> int:
        """Reset all connections on a way. Returns how many there were."""
        count = len(self.ways[name].pairs)
        self._run(self.ways[name].cut())
        return count

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.result(10.0)


@contextlib.contextmanager
def running(targets: dict[str, int]) -> Iterator[Proxy]:
    """Run a proxy with a way to each of *targets*, ports on this machine by name."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    proxy = Proxy(loop, {name: Way(port) for name, port in targets.items()})
    try:
        for way in proxy.ways.values():
            asyncio.run_coroutine_threadsafe(way.listen(), loop).result(10.0)
        yield proxy
    finally:
        for name in proxy.ways:
            proxy.cut(name)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10.0)
        loop.close()
