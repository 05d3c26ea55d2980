"""The logs of a stack: one file for each program, and all of them together on one terminal."""

import contextlib
import os
import sys
from pathlib import Path
from typing import TextIO

COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join("  " + line for line in text.splitlines()[-lines:]) or "  (empty)"


class Logs:
    """The directory of log files, and the terminal that follows them (a stack in the foreground does)."""

    def __init__(self, directory: Path, *, follow: bool, stream: TextIO | None = None) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self._follow = follow
        self._stream = stream or sys.stderr
        self._colourful = self._stream.isatty() and not os.environ.get("NO_COLOR")
        self._read: dict[str, int] = {}  # bytes shown so far, by name

    def file(self, name: str) -> Path:
        """Begin the log of a program; that of the last run is kept beside it."""
        path = self.directory / f"{name}.log"
        if name not in self._read:
            self._read[name] = 0
            with contextlib.suppress(FileNotFoundError):
                path.replace(path.with_suffix(".log.old"))
        return path

    def say(self, text: str) -> None:
        """Say something in the stack's own name."""
        with self.file("stack").open("a") as log:
            log.write(text + "\n")
        self.show()

    def show(self) -> None:
        """Show what the logs have gained since the last time; never fails, the terminal may be gone."""
        for name, start in self._read.items() if self._follow else ():
            with contextlib.suppress(OSError), (self.directory / f"{name}.log").open("rb") as log:
                log.seek(start)
                whole, newline, _ = log.read().rpartition(b"\n")
                self._read[name] = start + len(whole) + len(newline)
                for line in whole.decode(errors="replace").splitlines() if newline else ():
                    self._stream.write(self._prefix(name) + line + "\n")
        with contextlib.suppress(OSError):
            self._stream.flush()

    def ends(self) -> str:
        """The last lines of every log, for when something went wrong."""
        return "\n".join(f"{name}:\n{tail(self.directory / f'{name}.log')}" for name in self._read)

    def _prefix(self, name: str) -> str:
        prefix = f"{name:<9}| "
        colour = COLOURS[list(self._read).index(name) % len(COLOURS)]
        return f"\033[{colour}m{prefix}\033[0m" if self._colourful else prefix
