"""
What a deployment is made of: the Procfile's lines, how many of each run, and what they take of the database. Pure.

The sizes of all pools stand here, and the sum that doctor makes of them, so that the two cannot differ.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import ConfigError

WEB_POOL = 10
"""Connections of one web process. Many threads share them: a request holds one for a millisecond."""

WORKER_POOL = 8
"""Of one worker process, whose duties share them."""

HEARTBEAT_POOL = 1
"""Of one worker process, too: a pool that is busy must not make it look dead."""

COMMAND_POOL = 4
"""Of `pipeline` on the command line; `sweep --loop` is a worker with these."""

RELEASE = 1
"""The migrations', while the processes of the former release still run."""

SPARE = 2
"""What should be left for a person: `pipeline doctor`, or psql, when it matters."""

_DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}|\$\{?(\w+)\}?")
_COUNT = re.compile(r"(\w+)=(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Deployment:
    """The lines of a Procfile, the environment they run in, and how many of each run: one, unless *formation* says."""

    lines: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    formation: Mapping[str, int] = field(default_factory=dict)
    cpus: int = 1  # Celery's own default for its processes

    def count(self, name: str) -> int:
        """How many of that line run."""
        return self.formation.get(name, 1)

    def words(self, name: str) -> Sequence[str]:
        """A line's words, with the environment's variables in them."""
        return shlex.split(_DEFAULT.sub(self._value, self.lines[name]))

    def number(self, name: str, *options: str, default: int) -> int:
        """The number that a line gives an option, under whichever of its names; *default* when it gives none."""
        given = self.option(name, *options)
        return int(given) if given and given.isascii() and given.isdigit() else default

    def option(self, name: str, *names: str) -> str | None:
        """What a line gives an option, under whichever of its names; the last, as programs take it."""
        words = self.words(name)
        values = [
            word.partition("=")[2] if "=" in word else after
            for word, after in zip(words, [*words[1:], ""], strict=True)
            if word.partition("=")[0] in names
        ]
        return values[-1] if values else None

    def kinds(self) -> Mapping[str, str]:
        """What each line starts: web, worker, beat, sweep or release. Lines that start nothing of ours are left out."""
        found = {name: _kind(self.words(name)) for name in self.lines}
        return {name: kind for name, kind in found.items() if kind}

    def processes(self, name: str) -> int:
        """How many processes with pools of their own one copy of a line is."""
        kind = self.kinds().get(name)
        if kind == "web":
            return self.number(name, "--workers", default=1)
        if kind == "worker" and self.option(name, "--pool", "-P") in {None, "prefork", "processes"}:
            return self.number(name, "--concurrency", "-c", default=self.cpus)
        return 1

    def connections(self) -> Mapping[str, int]:
        """How many connections to Postgres all copies of a line open together, at most."""
        each = {
            "web": WEB_POOL,
            "worker": WORKER_POOL + HEARTBEAT_POOL,
            "sweep": COMMAND_POOL + HEARTBEAT_POOL,
            "release": RELEASE,
            "beat": 0,
        }
        copies = {name: 1 if kind == "release" else self.count(name) for name, kind in self.kinds().items()}
        return {name: copies[name] * self.processes(name) * each[kind] for name, kind in self.kinds().items()}

    def _value(self, found: "re.Match[str]") -> str:
        name, default = found[1] or found[3], found[2] or ""
        return self.environ.get(name) or default


def formation(text: str, lines: Mapping[str, str]) -> Mapping[str, int]:
    """
    Read how many of each line run: `web=2,worker=3,beat=1`.

    Raises:
        ConfigError: It is written otherwise, or names a line that there is not.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _COUNT.fullmatch(part)
        if not match or match[1] not in lines:
            raise ConfigError(f"The formation is written as web=2,worker=3; the Procfile has {', '.join(lines)}.")
        found[match[1]] = int(match[2])
    return found


def _kind(words: Sequence[str]) -> str | None:
    if "pipeline.web.server:app" in words:
        return "web"
    if "pipeline.tasks" in words or "--app=pipeline.tasks" in words:
        return "worker" if "worker" in words else "beat" if "beat" in words else None
    if "pipeline" in words:
        return "release" if "migrate" in words else "sweep" if {"sweep", "--loop"} <= {*words} else None
    return None
