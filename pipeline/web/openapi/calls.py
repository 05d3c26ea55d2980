"""
What a view promises its callers, written beside the view.

Flask-openapi3 and spectree take over the checking of requests, which is ours here (`lifecycle.accept`), and know one
media type and no headers; so a view says what it takes and answers in these few words, and `document` makes OpenAPI of
them. That it is true is tested: every example, and every answer that schemathesis can think of a request for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from pipeline.errors import PipelineError

View = TypeVar("View", bound=Callable[..., Any])
Schema = Mapping[str, Any]  # JSON Schema 2020-12
Shape = type[BaseModel] | Schema

JSON = "application/json"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Parameter:
    """Something a caller may send beside the body; in examples it has the value *example*, or is left out."""

    name: str
    place: Literal["path", "query", "header"]
    meaning: str
    schema: Schema
    example: Any = None
    style: Mapping[str, Any] = field(default_factory=dict)  # how OpenAPI says that it is written, if not plainly


@dataclass(frozen=True)
class Header:
    """A header of an answer."""

    name: str
    meaning: str
    schema: Schema


@dataclass(frozen=True)
class Body:
    """A body, asked for or answered: its media type, its shape, and examples of it by name."""

    shape: Shape
    examples: Mapping[str, Any]
    media_type: str = JSON
    item: type[BaseModel] | None = None  # what each line or event is, of a body that is text


@dataclass(frozen=True)
class Answer:
    """One way in which a call succeeds."""

    status: int
    meaning: str
    bodies: Sequence[Body] = ()
    headers: Sequence[Header] = ()


@dataclass(frozen=True)
class Call:
    """All that a caller may know of one view; *errors* are those beyond the ones that every call has."""

    summary: str
    meaning: str
    answers: Sequence[Answer]
    tag: str = "Jobs"
    parameters: Sequence[Parameter] = ()
    body: Body | None = None
    errors: Sequence[type[PipelineError]] = ()
    needs_key: bool = True
    place: int = 100  # among the calls of its tag, as they are read


_CALLS: dict[Callable[..., Any], Call] = {}


def described(call: Call) -> Callable[[View], View]:
    """Say what a view promises. Stands below the route's decorator."""

    def keep(view: View) -> View:
        _CALLS[view] = call
        return view

    return keep


def call_of(view: Callable[..., Any]) -> Call | None:
    """What was said of a view; None when it is not for callers."""
    return _CALLS.get(view)


KEY = r"^[\x21-\x7e][\x20-\x7e]*$"

IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "Names this request. The same request with the same key, however often it comes, is the same job and the same"
    " answer; another request with it is refused. Send one, and it is safe to repeat whatever failed. A key is kept"
    " until its job has ended, and for 30 days, unless the operator chose another time.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": KEY},
    "order-4711",
)

PREFER = Parameter(
    "Prefer",
    "header",
    "`wait=20` waits up to so many seconds, at most 25, for the end of the job, and answers as soon as it has ended;"
    " the answer is the job as it is then. Other preferences are ignored (RFC 7240).",
    {"type": "string"},
    "wait=20",
)

LOCATION = Header("Location", "The job's address.", {"type": "string", "format": "uri-reference"})
PREFERENCE_APPLIED = Header("Preference-Applied", "The waiting that was granted.", {"type": "string"})
RETRY_AFTER = Header("Retry-After", "In how many seconds to ask again.", {"type": "integer", "minimum": 0})
WWW_AUTHENTICATE = Header("WWW-Authenticate", "The scheme that is asked for.", {"type": "string", "const": "Bearer"})
RATE_LIMIT = Header(
    "RateLimit",
    "If the service has a limit: `r` requests are left, to be spread over `t` seconds.",
    {"type": "string", "pattern": r'^"service";r=\d+;t=\d+$'},
)
RATE_LIMIT_POLICY = Header(
    "RateLimit-Policy",
    "If the service has a limit: it is `q` requests in `w` seconds.",
    {"type": "string", "pattern": r'^"service";q=\d+;w=\d+$'},
)
