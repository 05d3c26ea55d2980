"""The chaos suite's proxy: what it does to connections is what it says, or the suite would test nothing."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.chaos import proxy as proxies
from tests.chaos.proxy import Mood, Proxy


class Echo:
    """A server that sends back what it gets, and counts who has left."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.left = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            while data := connection.recv(1000):
                connection.sendall(data)
        self.left.release()


@pytest.fixture
def echo() -> Iterator[Echo]:
    """Run a server."""
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    """Run a proxy in front of it."""
    with proxies.running({"echo": echo.port}) as running:
        yield running


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    """Connect through the proxy, and say something."""
    with socket.create_connection(("127.0.0.1", proxy.ports["echo"]), timeout=10) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"
        yield connection


def silent(client: socket.socket) -> bool:
    """Nothing comes for a while, and nobody hangs up."""
    client.settimeout(0.3)
    with suppress(TimeoutError):
        client.recv(100)
        return False
    client.settimeout(10)
    return True


def test_what_is_held_is_delivered_afterwards(proxy: Proxy, client: socket.socket) -> None:
    """In order, and nothing is missing."""
    proxy.turn("echo", Mood.HELD)
    client.sendall(b"one ")
    client.sendall(b"two")
    assert silent(client)
    proxy.turn("echo", Mood.OPEN)
    heard = b""
    while len(heard) < 7:
        heard += client.recv(100)
    assert heard == b"one two"


def test_what_is_swallowed_costs_the_connection_in_the_end(proxy: Proxy, client: socket.socket) -> None:
    """Until then both ends believe in it."""
    proxy.turn("echo", Mood.SWALLOWING)
    client.sendall(b"hello?")
    assert silent(client)
    proxy.turn("echo", Mood.OPEN)
    with pytest.raises(ConnectionResetError):
        client.recv(100)


def test_an_end_is_not_told_while_the_way_is_half_open(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    """A dead client's transaction stays open at the server, as after a power cut."""
    proxy.turn("echo", Mood.HELD)
    client.close()
    assert not echo.left.acquire(timeout=0.3)
    proxy.turn("echo", Mood.OPEN)
    assert echo.left.acquire(timeout=10)


def test_a_cut_resets_every_connection(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    """Both sides hear of it at once; the next connection is fine."""
    assert proxy.cut("echo") == 1
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    assert echo.left.acquire(timeout=10)
    with socket.create_connection(("127.0.0.1", proxy.ports["echo"]), timeout=10) as again:
        again.sendall(b"again")
        assert again.recv(100) == b"again"


def test_a_server_that_is_away_refuses_through_the_proxy(proxy: Proxy, echo: Echo) -> None:
    """A connection that leads nowhere is not left open."""
    echo.close()
    proxy.ways["echo"].target = 1
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", proxy.ports["echo"]), timeout=10) as connection,
    ):
        connection.recv(100)
