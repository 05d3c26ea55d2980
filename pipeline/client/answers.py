"""What the pipeline answers: jobs, their outputs, their events. What a newer server adds is passed over."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

ENDED = frozenset({"completed", "failed", "cancelled", "expired"})
"""`expired`: the deadline passed without a verdict. One that comes later is still taken, so it may become another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """
    One file of a job. `source_url` is the provider's, for some days; `url` leads to the pipeline's own copy once it is
    `stored`, and to the provider's until then: send your key only to the former. `lost`: there will be no copy.

    Of some models a result is no file, such as a text: it has no address, and is the `value`.
    """

    index: int
    url: str | None = None
    source_url: str | None = None
    content_type: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    nsfw: bool | None = None
    review: str | None = None
    stored: bool | None = None
    lost: bool | None = None
    value: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed: a stable code, the provider's words, the provider's own code."""

    code: str
    message: str = ""
    provider_code: int | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long a job took, in milliseconds."""

    queued_ms: int | None = None
    provider_ms: int | None = None
    inference_ms: int | None = None
    total_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it was when it was asked for. The price is in USD."""

    id: str
    state: str
    model: str
    input: Mapping[str, Any]
    outputs: tuple[Output, ...] = ()
    error: JobError | None = None
    service: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    run_at: datetime | None = None
    deadline_at: datetime | None = None
    attempts: int = 0
    prediction_id: str | None = None
    needs_decision: Mapping[str, Any] | None = None
    settled_by: str | None = None
    created_at: datetime | None = None
    submitted_at: datetime | None = None
    finished_at: datetime | None = None
    outputs_expire_at: datetime | None = None
    timings: Timings = field(default_factory=Timings)
    price: float | None = None
    retry_of: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Nobody need wait for it any longer."""
        return self.state in ENDED

    @property
    def completed(self) -> bool:
        """It ended well: it has outputs."""
        return self.state == "completed"

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Self:
        """Read a job from decoded JSON."""
        known = _known(cls, value)
        known |= {name: _time(known.get(name)) for name in _TIMES}
        known["outputs"] = tuple(Output(**_known(Output, item)) for item in known.get("outputs") or ())
        known["error"] = JobError(**_known(JobError, known["error"])) if known.get("error") else None
        known["timings"] = Timings(**_known(Timings, known.get("timings") or {}))
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to a job; the last one carries the job as it ended."""

    seq: int
    kind: str
    job_id: str
    at: datetime | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    job: Job | None = None

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Self:
        """Read an event from decoded JSON."""
        known = _known(cls, value)
        job = known.get("job")
        return cls(**known | {"at": _time(known.get("at")), "job": Job.read(job) if job else None})


_TIMES = ("run_at", "deadline_at", "created_at", "submitted_at", "finished_at", "outputs_expire_at")


def _known(kind: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: value[each.name] for each in fields(kind) if each.name in value}


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
