"""
Free ports on this machine, held until their servers are gone.

A port found free may be taken a moment later: by a second stack, or as the local end of any connection. While a server
is down its clients try again and again, and one may even be given the server's own port and meet itself there. So we
keep a socket bound to the port: Linux lets a server with SO_REUSEADDR (all of ours) listen beside it, and gives the
number to nobody else. Two holders could do that, too; a name only one of them can have keeps stacks apart.
Elsewhere the port is only looked up.
"""

import contextlib
import socket
import sys

from pipeline.errors import ConfigError


class Port:
    """
    A port that is ours while this object is open.

    Raises:
        OSError: Somebody listens there, or another stack holds it.
    """

    def __init__(self, number: int) -> None:
        with contextlib.ExitStack() as sockets:
            holder = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # forgives connections in TIME_WAIT, too
            holder.bind(("0.0.0.0", number))  # noqa: S104  # never listens; every address, as the web server will
            self.number: int = holder.getsockname()[1]
            if sys.platform == "linux":
                name = sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                name.bind(f"\0wavespeed-port-{self.number}")  # abstract: no file, gone with us
                self._sockets = sockets.pop_all()
            else:
                self._sockets = contextlib.ExitStack()

    def close(self) -> None:
        """Let others have it."""
        self._sockets.close()


def hold(*wishes: int | None) -> Port:
    """Hold the first port of *wishes* that is free, or any free one."""
    for wish in wishes:
        if wish:
            with contextlib.suppress(OSError):
                return Port(wish)
    return Port(0)


def hold_exactly(number: int) -> Port:
    """
    Hold this port.

    Raises:
        ConfigError: Another program has it.
    """
    try:
        return Port(number)
    except OSError as error:
        raise ConfigError(f"Port {number} is not free ({error.strerror}): choose another.") from None
