"""
The environment of a stack's programs.

What the user has set wins over our defaults for development, but not over where the stack's own servers are.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

SANDBOX_KEY = "sandbox"
LOOPBACK = "127.0.0.0/8,::1/128"
MARK = "STACK_ENV"  # names the file that set up a shell by `. DIR/env`
PLACES = (
    "DATABASE_URL",
    "BROKER_URL",
    "REDIS_URL",
    "CLOUDAMQP_URL",
    "PORT",
)  # where servers are: ours, never the user's


@dataclass(frozen=True)
class Places:
    """Where the servers of a stack are."""

    url: str
    database_url: str
    broker_url: str
    sandbox_url: str | None  # None: the real service

    def through(self, ports: Mapping[str, int]) -> "Places":
        """Give the places as they are reached through proxies on this machine, whose ports stand by server."""
        return replace(
            self,
            database_url=_at_port(self.database_url, ports.get("postgres")),
            broker_url=_at_port(self.broker_url, ports.get("valkey")),
            sandbox_url=self.sandbox_url and _at_port(self.sandbox_url, ports.get("sandbox")),
        )


def users_own(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Give the user's environment, without what a stack's `env` file put there and without what is empty."""
    own = {name: value for name, value in environ.items() if value}
    file = Path(own.pop(MARK, ""))
    exports = [line for line in file.read_text().splitlines() if line.startswith("export ")] if file.is_file() else ()
    for line in exports:
        name, _, value = shlex.split(line)[1].partition("=")
        if own.get(name) == value:
            del own[name]
    return own


def real_service(own: Mapping[str, str]) -> bool:
    """Tell whether jobs go to the real provider and cost money."""
    return own.get("WAVESPEED_API_KEY", SANDBOX_KEY) != SANDBOX_KEY


def ignored(own: Mapping[str, str]) -> list[str]:
    """Name the variables of the user that a stack does not use, since it brings the server itself."""
    return [name for name in _places(own) if name in own]


def chosen(own: Mapping[str, str], places: Places, *, public_url: bool, mild: Mapping[str, str]) -> dict[str, str]:
    """Choose the variables a stack sets, which a second terminal needs too; of *mild* ones the user's win."""
    mild = {"OUTBOUND_ALLOW": LOOPBACK, **mild}
    firm = {"DATABASE_URL": places.database_url, "BROKER_URL": places.broker_url}
    if places.sandbox_url:
        firm |= {"WAVESPEED_BASE_URL": places.sandbox_url, "WAVESPEED_API_KEY": SANDBOX_KEY}
        mild |= {"WAVESPEED_LEVEL": "gold", "UNKNOWN_PATIENCE_S": "20"}  # the sandbox's, not those of a real account
    provider = urlsplit(places.sandbox_url or own.get("WAVESPEED_BASE_URL", ""))
    if provider.hostname in {"127.0.0.1", "localhost", "::1"}:  # nobody else could call us back here
        mild |= {"PUBLIC_URL": places.url}
    chosen = {name: own.get(name, value) for name, value in mild.items()} | firm
    if not public_url:
        chosen.pop("PUBLIC_URL", None)
    return chosen


def complete(own: Mapping[str, str], chosen: Mapping[str, str], *, public_url: bool) -> dict[str, str]:
    """Build a child's whole environment: the user's, ours over it, and the programs beside our Python found first."""
    hidden = (*_places(own), *(() if public_url else ("PUBLIC_URL",)))
    kept = {name: value for name, value in own.items() if name not in hidden}
    path = os.pathsep.join([_bin_dir(), own.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", **chosen}


def script(chosen: Mapping[str, str], file: Path, pid: int) -> str:
    """
    Write the lines that set up a second terminal: `. DIR/env`, while the process *pid* keeps the stack running.

    After that they set nothing and say why. The file stays: `users_own` knows by it what a terminal still has.
    """
    gone = _quoted(f"{file}: that stack has stopped. Start it again, then source this again.")
    check = f"kill -0 {pid} 2>/dev/null || {{ echo {gone} >&2; return 1; }}"
    lines = [f"export {name}={_quoted(value)}" for name, value in {**chosen, MARK: str(file)}.items()]
    return "\n".join([check, *lines, f'export PATH={_quoted(_bin_dir())}:"$PATH"']) + "\n"


def _at_port(url: str, port: int | None) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl() if port else url


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def _places(own: Mapping[str, str]) -> tuple[str, ...]:
    return PLACES if real_service(own) else (*PLACES, "WAVESPEED_BASE_URL")


def _bin_dir() -> str:
    return str(Path(sys.executable).parent)
