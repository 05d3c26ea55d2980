"""Structured logs: one JSON object a line, a constant event name, units in the keys, never a secret or a prompt."""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog

_OURS = f"{Path(__file__).parent}/"
_SECRET_WORDS = ("secret", "token", "password", "authorization", "api_key", "prompt", "body", "signature")


_text = json.JSONEncoder(default=repr).encode


def _no_secrets(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """The last net: a field so named is a mistake, and must not cost anybody a secret."""
    for name in event:
        if _is_secret(name):
            event[name] = "[removed]"
    return event


@lru_cache(1000)
def _is_secret(name: str) -> bool:
    return any(word in name for word in _SECRET_WORDS)


def configure(level: str = "info") -> None:
    """Log to standard error: JSON for machines, coloured lines for a person at a terminal."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _no_secrets,
        _bare_exceptions,
    ]
    human = sys.stderr.isatty()
    structlog.configure(
        processors=[
            *shared,
            structlog.dev.ConsoleRenderer() if human else _json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer() if human else _json,
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _json(_: Any, __: str, event: structlog.types.EventDict) -> str:
    return _text(event)


def _bare_exceptions(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """
    An exception is told as its type and where it was raised: our own lines on the way, then the innermost of all.

    Its message and its frames' variables may hold a prompt, a body or a signed URL, so they stay out.
    """
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        frames = [(step.tb_frame.f_code.co_filename, step.tb_lineno) for step in _steps(error.__traceback__)]
        ours = [frame for frame in frames[:-1] if frame[0].startswith(_OURS)]
        told = [*ours[-8:], *frames[-1:]]
        event["raised_at"] = " > ".join(f"{file.removeprefix(_OURS)}:{line}" for file, line in told)
    return event


def _steps(step: TracebackType | None) -> Iterator[TracebackType]:
    while step:
        yield step
        step = step.tb_next


def get(name: str) -> Any:
    """A logger; `log.info("job.settled", job_id=…, via="webhook")`."""
    return structlog.get_logger(name)


def bind(**facts: object) -> None:
    """Have *facts* in every line that this thread, or this task of an event loop, logs from now on."""
    structlog.contextvars.bind_contextvars(**facts)


def bound() -> dict[str, Any]:
    """What is in every line of this thread, or task."""
    return structlog.contextvars.get_contextvars()


def forget() -> None:
    """Have nothing of it in the lines from now on: the thread goes on to something else."""
    structlog.contextvars.clear_contextvars()


class Tally:
    """Counts what anybody may provoke at any rate, and logs the count at most once in EVERY_S seconds."""

    EVERY_S = 10.0

    def __init__(self, event: str) -> None:
        self._event = event
        self._lock = threading.Lock()
        self._said_at = float("-inf")
        self._since_then = 0
        self._taken = 0
        self.total = 0
        """All of this process."""

    def take(self) -> int:
        """How many there were since this was last asked."""
        with self._lock:
            new, self._taken = self.total - self._taken, self.total
            return new

    def count(self, **facts: object) -> None:
        """Count one; *facts* are those of the newest."""
        with self._lock:
            self.total += 1
            self._since_then += 1
            if time.monotonic() - self._said_at < self.EVERY_S:
                return
            since, self._since_then, self._said_at = self._since_then, 0, time.monotonic()
        get(__name__).warning(self._event, count=since, total=self.total, **facts)
