"""The Procfile's own lines: what runs here is what runs in production."""

import re
from pathlib import Path

from pipeline.errors import ConfigError

PROCFILE = Path(__file__).parents[2] / "Procfile"

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_-]+):\s*(?P<command>\S.*)")
_NOT_SIMPLE = re.compile(r"^\w+=|[;&|<>]")  # the shell has to stay, or `exec` would mean something else


def read(path: Path = PROCFILE) -> dict[str, str]:
    """
    Read a Procfile: its commands by process name, in its order.

    Raises:
        ConfigError: There is none, or a line of it is not `name: command`.
    """
    if not path.exists():
        raise ConfigError(f"There is no {path}: this command runs from a checkout, not from an installed package.")
    return parse(path.read_text())


def parse(text: str) -> dict[str, str]:
    """Parse the text of a Procfile; blank lines and comments are skipped."""
    commands: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if not match or match["name"] in commands:
            raise ConfigError(f"Procfile, line {number}: expected `name: command`, each name once.")
        commands[match["name"]] = match["command"]
    return commands


def shell(command: str) -> tuple[str, ...]:
    """Give the argument vector of a line, as the platform runs it: by the shell, which a simple command replaces."""
    return "/bin/sh", "-c", command if _NOT_SIMPLE.search(command) else f"exec {command}"
