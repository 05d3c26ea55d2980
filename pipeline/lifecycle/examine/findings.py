"""What an examination finds: how each thing is, in plain words, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a thing is: in order, worth a look, or in the way of the work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing examined. `what` and `code` are stable names; `todo` says what to do, or to type."""

    what: str
    level: Level
    words: str
    code: str = "ok"
    todo: str | None = None


def ok(what: str, words: str) -> Finding:
    """It is in order."""
    return Finding(what, Level.OK, words)


def warn(what: str, code: str, words: str, todo: str) -> Finding:
    """It is worth a look."""
    return Finding(what, Level.WARN, words, code, todo)


def fail(what: str, code: str, words: str, todo: str) -> Finding:
    """It is in the way of the work."""
    return Finding(what, Level.FAIL, words, code, todo)
