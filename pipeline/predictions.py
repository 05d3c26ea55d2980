"""
What the provider says of one task, read from JSON that may come from anyone.

Pure: used on answers and on callbacks alike, so that both doors understand the same thing.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar, cast

T = TypeVar("T")

_MAX_ID_LENGTH = 200
_MAX_DEPTH = 32
_SURROGATES_AND_NUL = re.compile("[\x00\ud800-\udfff]")
_FRACTION = re.compile(r"\.(\d{1,6})\d*")


class Status(StrEnum):
    """The three things a task can be, whatever the provider calls them."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


_STATUSES = {
    "completed": Status.COMPLETED,
    "failed": Status.FAILED,
    "cancelled": Status.FAILED,
    "timeout": Status.FAILED,
    "deleted": Status.FAILED,
}
"""Everything else, known or not, means: keep waiting. That is what the provider's own clients do."""


class Unreadable(ValueError):
    """Not a prediction: the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One task at the provider. Times of day are UTC by the provider's clock, durations in milliseconds."""

    id: str
    status: Status
    said: str  # the status in the provider's word
    model: str | None = None
    outputs: tuple[Any, ...] = ()  # URLs, texts or objects
    nsfw: tuple[bool, ...] = ()  # one for each output, or empty
    created_at: datetime | None = None
    error: str = ""
    error_code: int | None = None
    inference_ms: int | None = None
    input: Mapping[str, Any] | None = None  # only where the provider echoes it

    @property
    def files(self) -> list[dict[str, Any]]:
        """The outputs as a job keeps them: `[{"url", "nsfw"}]`; what is not a URL stands under "value"."""
        return [
            {
                ("url" if isinstance(output, str) and output.startswith(("http://", "https://")) else "value"): output,
                "nsfw": self.nsfw[index] if index < len(self.nsfw) else None,
            }
            for index, output in enumerate(self.outputs)
        ]

    @property
    def problem(self) -> dict[str, Any] | None:
        """Why it failed, as a job keeps it; None unless it did."""
        if self.status is not Status.FAILED:
            return None
        code = _ERROR_CODES.get(self.error_code or 0, "generation_failed")
        message = self.error or f"The provider reports the task as {self.said}."
        return {"code": code, "message": cut(message), "provider_code": self.error_code}


_ERROR_CODES = {
    1200: "content_moderation",
    1400: "invalid_parameter",
    1401: "invalid_parameter",
    1402: "media_access_failed",
}
"""Source: https://wavespeed.ai/docs/error-codes; the other codes all mean that generating failed."""


def read(body: bytes) -> Prediction:
    """
    Read a prediction from the raw body of a callback.

    Raises:
        Unreadable: It is not a JSON object with an id and a status.
    """
    try:
        return parse(json.loads(body))
    except (ValueError, RecursionError) as error:  # ValueError covers bad JSON, bad UTF-8 and endless digits
        raise error if isinstance(error, Unreadable) else Unreadable("The body is not JSON.") from None


def parse(value: object) -> Prediction:
    """
    Read a prediction from decoded JSON; optional fields of the wrong type count as absent.

    Raises:
        Unreadable: It is not an object with an id and a status.
    """
    if not isinstance(value, dict):
        raise Unreadable("It is not an object.")
    said = value.get("status")
    if not isinstance(said, str) or not said:
        raise Unreadable("It has no status.")
    return Prediction(
        id=task_id(value),
        status=_STATUSES.get(said, Status.RUNNING),
        said=storable(said),
        model=storable(_typed(value.get("model"), str)),
        outputs=tuple(storable(output, 2) for output in _typed(value.get("outputs"), list) or ()),
        nsfw=tuple(flag is True for flag in _typed(value.get("has_nsfw_contents"), list) or ()),
        created_at=parse_time(value.get("created_at")),
        error=storable(_words(value.get("error"))),
        error_code=_whole(value.get("code")) or None,
        inference_ms=_whole((_typed(value.get("timings"), dict) or {}).get("inference"))
        or _whole(value.get("executionTime")),
        input=storable(_typed(value.get("input"), dict), 1),
    )


def task_id(data: Mapping[str, Any]) -> str:
    """
    The task's id, an opaque text.

    Raises:
        Unreadable: There is none, or it is longer than any id ever seen.
    """
    found = data.get("id")
    if not isinstance(found, str) or not 0 < len(found) <= _MAX_ID_LENGTH:
        raise Unreadable("It has no id.")
    return cast("str", storable(found))


def parse_time(value: object) -> datetime | None:
    """RFC 3339 with up to nine digits after the point, as UTC; None when it is something else."""
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(_FRACTION.sub(lambda found: f".{found[1]:0<6}", value.replace("Z", "+00:00")))
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def storable(value: Any, depth: int = 0) -> Any:
    """
    The same JSON value with whatever Postgres cannot keep replaced by U+FFFD (NUL, lone surrogates) or by
    null (infinities, bottomless nesting): a stranger's odd byte must not turn a verdict into an error.
    """
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, str):
        return _SURROGATES_AND_NUL.sub("\ufffd", value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [storable(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item, depth + 1) for key, item in value.items()}
    return value


def cut(words: str, length: int = 500) -> str:
    """One line of at most *length* characters."""
    line = " ".join(storable(words).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _typed(value: object, kind: type[T]) -> T | None:
    return value if isinstance(value, kind) else None


def _words(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("message")
    return value if isinstance(value, str) else ""


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31 else None
