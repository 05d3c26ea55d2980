"""When a call is made again, and when not: only what cannot do harm twice, and only a few times."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from pipeline.client.errors import ApiError, ClientError, ConnectionFailed, FieldError, kind_of

PASSING = frozenset({429, 502, 503, 504})
"""Statuses that say: not now."""

_MAX_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a safe call is repeated: after 0.5 s, 1 s, 2 s, … with full jitter, never before a Retry-After."""

    times: int = 5
    base_s: float = 0.5
    longest_s: float = 20.0
    longest_retry_after_s: float = 60.0

    def pause_s(self, tried: int, reply: httpx2.Response | httpx2.RequestError) -> float | None:
        """How long to wait when *tried* calls have failed, the last one so; None: give up."""
        if tried > self.times:
            return None
        least = 0.0
        if isinstance(reply, httpx2.Response):
            if reply.status_code not in PASSING:
                return None
            least = retry_after_s(reply) or 0.0
            if least > self.longest_retry_after_s:
                return None
        elif not isinstance(reply, httpx2.TransportError) or isinstance(reply, httpx2.UnsupportedProtocol):
            return None
        return least + random.uniform(0, min(self.longest_s, self.base_s * 2 ** (tried - 1)))  # noqa: S311


def failure(reply: httpx2.Response | httpx2.RequestError) -> ClientError:
    """The error that an answer is, or the want of one."""
    if isinstance(reply, httpx2.RequestError):
        return ConnectionFailed(
            f"{reply.request.method} {reply.request.url.path}: {str(reply) or type(reply).__name__}"
        )
    try:
        problem = reply.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):  # a router's own page
        problem = {"detail": reply.reason_phrase or reply.text[:_MAX_SHOWN]}
    return kind_of(reply.status_code)(
        reply.status_code,
        str(problem.get("code") or f"http_{reply.status_code}"),
        str(problem.get("detail") or problem.get("title") or reply.reason_phrase),
        errors=[_field_error(each) for each in problem.get("errors") or () if isinstance(each, dict)],
        retry_after_s=retry_after_s(reply),
    )


def passing(error: ClientError) -> bool:
    """Whether the same call may succeed later."""
    return isinstance(error, ConnectionFailed) or (isinstance(error, ApiError) and error.status in PASSING)


def retry_after_s(response: httpx2.Response) -> float | None:
    """The header Retry-After, in seconds from now, be it a number or a date."""
    said = response.headers.get("retry-after", "")
    if said.isascii() and said.isdigit():
        return float(said[:9])
    try:
        at = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _field_error(value: dict[str, object]) -> FieldError:
    line = value.get("line")
    return FieldError(
        str(value.get("field", "")), str(value.get("message", "")), line if isinstance(line, int) else None
    )
