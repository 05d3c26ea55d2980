"""
Connections to addresses that others chose: each socket is checked as it is made, each answer's head is bounded.

Beneath `outbound`, which says what it is for; here is what aiohttp has to be told for it.
"""

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from pipeline.addresses import Network, ip_problem

HEAD_BYTES = 65_536
"""How much may come before an answer's body: its headers, and whatever 1xx answers go ahead of it."""

LOOKUPS_AT_ONCE = 64
"""A name whose servers are silent holds one of them for as long as the system's resolver tries."""

Infos = Sequence[tuple[Any, ...]]
"""What `socket.getaddrinfo` answers: family, type, protocol, canonical name, socket address."""

Lookup = Callable[[str, int], Infos]


class Refused(OSError):
    """An address that must not be called; an OSError, for aiohttp passes no other on as it is."""


class EndlessHead(aiohttp.ClientError):
    """The peer sends and sends, and does not come to the point."""


class Connector(aiohttp.TCPConnector):
    """
    Connects to public addresses, and to those of *allow*; one connection a request.

    The address a name has is looked up, checked and connected to in one go: there is no second lookup that could
    answer otherwise. A connection that is kept could be filled by its peer, or its next answer be sent beforehand.
    """

    def __init__(self, allow: Sequence[Network], lookup: Lookup, tls: ssl.SSLContext | bool) -> None:
        super().__init__(
            resolver=_Resolver(allow, lookup),
            socket_factory=functools.partial(_socket, allow),
            ssl=tls,
            limit=0,  # callers have limits of their own; one in here would let slow peers hold up the others
            force_close=True,
        )
        self._factory = functools.partial(_handler, self._loop)


def system_lookup(host: str, port: int) -> Infos:
    """Ask the system for a name's addresses; blocks."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


class _Resolver(AbstractResolver):
    """Looks names up in threads of its own: the slow name servers of a stranger hold up no other lookup."""

    def __init__(self, allow: Sequence[Network], lookup: Lookup) -> None:
        self._allow = allow
        self._lookup = lookup
        self._room = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Find a name's addresses; refused when one of them must not be called, whatever the others are."""
        async with self._room:
            found = await self._find(host, port)
        for *_, place in found:
            _check(self._allow, place)
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=place[0], port=port, family=family, proto=proto, flags=numeric)
            for family, _, proto, _, place in found
        ]

    async def close(self) -> None:
        """Nothing to close: the threads end when the system gives up."""

    async def _find(self, host: str, port: int) -> Infos:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Infos | OSError] = loop.create_future()

        def find() -> None:
            found: Infos | OSError
            try:
                found = self._lookup(host, port) or OSError("The name has no address.")
            except OSError as error:
                found = error
            except UnicodeError:  # Python's own, before it asks anybody
                found = OSError("This can be no name.")
            with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
                loop.call_soon_threadsafe(tell, found)

        def tell(found: Infos | OSError) -> None:
            if not answer.done():
                answer.set_result(found)

        threading.Thread(target=find, name="lookup", daemon=True).start()  # a daemon: nobody waits for it at the end
        found = await answer
        if isinstance(found, OSError):
            raise found
        return found


class _Handler(ResponseHandler):
    """Reads the answer of one connection, and hangs up on a peer that sends `HEAD_BYTES` ahead of its body."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._room = HEAD_BYTES
        self._begun = False

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take one message's head: that of the answer, or of a 1xx before it."""
        self._begun = self._begun or data[0].code >= 200 or data[0].code == 101
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Take bytes, before the answer no more at a time than may still come."""
        while data and not self._begun:
            if self.exception() is not None:
                return
            if self._room == 0:
                if self.transport is not None:
                    self.transport.close()
                self.set_exception(EndlessHead())
                return
            head, data = data[: self._room], data[self._room :]
            self._room -= len(head)
            super().data_received(head)
            if not data:
                return
        super().data_received(data)  # also without bytes: then it goes on unpacking


def _handler(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _Handler(loop)


def _socket(allow: Sequence[Network], info: tuple[Any, ...]) -> socket.socket:
    """Make the socket of one attempt, at the very address that is then connected to: the check nothing gets around."""
    family, kind, proto, _, place = info
    _check(allow, place)
    return socket.socket(family, kind, proto)


def _check(allow: Sequence[Network], place: tuple[Any, ...]) -> None:
    if problem := ip_problem(ip_address(place[0]), allow):
        raise Refused(problem)
