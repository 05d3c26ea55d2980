"""
What the API answers, as models: `views` makes the answers, these describe them, and tests hold the two together.

A client should ignore fields that it does not know: others may be added in version 1, and none is taken away.
"""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, Field

from pipeline.errors import FAILURES
from pipeline.jobs import Outcome, State, Via
from pipeline.lifecycle.accept import JobRequest
from pipeline.outputs import Review
from pipeline.web.openapi.calls import KEY

Milliseconds = Annotated[int, Field(ge=0)]
Code = Annotated[str, Field(json_schema_extra={"enum": sorted(FAILURES)})]


class Output(BaseModel):
    """One result of a job, in the provider's order."""

    index: int = Field(ge=0)
    url: str | None = Field(
        description="Where to download it: with your key from us, once it is stored; until then from the provider."
        " `null` of a text that is not stored, see `value`; and of what is under quarantine."
    )
    source_url: str | None = Field(description="Where the provider keeps it, for seven days; `null` under quarantine.")
    content_type: str | None = Field(description="As of our copy; `null` while there is none, as the next five.")
    bytes: int | None = Field(ge=0)
    sha256: str | None
    width: int | None = Field(ge=0, description="In pixels.")
    height: int | None = Field(ge=0, description="In pixels.")
    nsfw: bool | None = Field(description="Whether the provider flagged it; `null` when it does not say.")
    review: Review | None = Field(
        description="How a flagged result stands: `flagged` (it is served), `quarantined` (not served until a person"
        " releases it), `released` or `purged` (removed). `null` of all others."
    )
    stored: bool = Field(description="Whether we have a copy of our own.")
    lost: bool = Field(False, description="Whether there will be no copy: it could not be had from the provider.")
    value: Any = Field(default=None, description="A result that is no file, such as a text. Absent otherwise.")


class JobError(BaseModel):
    """Why a job failed."""

    code: Code = Field(description="One of a stable list.")
    message: str = Field(description="For people; often the provider's own words.")
    provider_code: int | str | None = Field(description="The provider's own code, if it gave one.")


class NeedsDecision(BaseModel):
    """A job whose submission got lost, and that a person has to decide about: see `pipeline decide`."""

    since: AwareDatetime
    reason: str | None


class Timings(BaseModel):
    """How long it took, in milliseconds; `null` while it is not known."""

    queued_ms: Milliseconds | None = Field(description="From `run_at` to the submission.")
    provider_ms: Milliseconds | None = Field(description="From the submission to the end.")
    inference_ms: Milliseconds | None = Field(description="Of that, what the model took, as the provider says.")
    total_ms: Milliseconds | None = Field(description="From the request to the end.")


class Links(BaseModel):
    """Addresses of the job's own."""

    this: str = Field(alias="self", description="The job.")
    events: str = Field(description="What happens to it, as it happens.")
    evidence: str = Field(description="Everything that is known of it.")
    cancel: str | None = Field(None, description="Take it back. Absent when that is not possible.")
    retry: str | None = Field(None, description="Have it done again. Absent when that is not possible.")


class Job(BaseModel):
    """One generation: asked for, paid once, and what became of it."""

    id: UUID
    state: State = Field(
        description="`completed`, `failed` and `cancelled` are final; an `expired` job may still get its result."
    )
    model: str
    input: dict[str, Any] = Field(description="What the model was asked, as it was sent.")
    outputs: list[Output]
    error: JobError | None = Field(description="Why it failed; `null` unless it did.")
    service: str = Field(description="Whose job it is.")
    metadata: dict[str, str] = Field(description="The caller's own labels.")
    priority: int = Field(ge=-10, le=10)
    run_at: AwareDatetime = Field(description="Not submitted before.")
    deadline_at: AwareDatetime = Field(description="Then it expires.")
    attempts: int = Field(ge=0, description="How often it was submitted.")
    prediction_id: str | None = Field(description="The provider's id of the task.")
    needs_decision: NeedsDecision | None
    settled_by: Via | None = Field(description="How its outcome was learnt.")
    created_at: AwareDatetime
    submitted_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    outputs_expire_at: AwareDatetime | None = Field(
        description="Until when the provider keeps the outputs that we have no copy of; `null` when we have them all."
    )
    timings: Timings
    price: float | None = Field(ge=0, description="In USD, as reserved or paid; `null` while it is not known.")
    retry_of: UUID | None = Field(description="The job that this one repeats.")
    links: Links


class JobList(BaseModel):
    """One page of jobs, the newest first."""

    items: list[Job]
    next: str | None = Field(description="What `after` is for the next page; `null` on the last.")


class BatchLine(JobRequest, frozen=True):
    """One line of a batch: a job, and its own key if you like."""

    idempotency_key: Annotated[str, Field(min_length=1, max_length=255, pattern=KEY)] = Field(
        default_factory=str, description="As the header `Idempotency-Key` of a single request."
    )


class Batch(BaseModel):
    """The jobs of a batch."""

    count: int = Field(ge=1)
    ids: list[UUID] = Field(description="In the order of the lines.")


class Happening(BaseModel):
    """Something that happened to a job."""

    seq: int = Field(ge=1, description="Counts the job's events; the `id` in a stream.")
    at: AwareDatetime
    kind: str = Field(description="What happened, such as `job.completed`; the `event` in a stream.")
    data: dict[str, Any]


class Event(Happening):
    """Something that happened to a job, as it is told."""

    job_id: UUID
    job: Job | None = Field(None, description="The job, with the last event of a stream. Absent otherwise.")


class EventList(BaseModel):
    """The events so far."""

    items: list[Event]


class Attempt(BaseModel):
    """One submission to the provider."""

    number: int = Field(ge=1)
    started_at: AwareDatetime
    ended_at: AwareDatetime | None
    outcome: Outcome | None = Field(description="How it ended, as far as is known.")
    prediction_id: str | None
    http_status: int | None
    error: str | None


class Callback(BaseModel):
    """One callback of the provider's, as it came."""

    received_at: AwareDatetime
    verdict: str = Field(description="What was made of it, such as `applied` or `duplicate`.")
    prediction_id: str | None
    headers: dict[str, str] = Field(description="Those that its signature needs.")
    body: str
    body_encoding: Literal["utf-8", "base64", "withheld"] = Field(
        description="`withheld`: the body names the address of an output under quarantine, and is empty here."
    )


class Sent(BaseModel):
    """What one delivery carried."""

    headers: dict[str, str]
    body: str
    truncated: bool = Field(description="Whether `body` is only its beginning.")


class Delivery(BaseModel):
    """One try to deliver a notification."""

    number: int = Field(ge=1)
    at: AwareDatetime
    target: str = Field(description="The address without its query, or `task@queue`.")
    request: Sent | None = Field(description="`null` when nothing was sent.")
    status: int | None
    answer: str | None = Field(description="The first 2048 bytes of what was answered.")
    duration_ms: int | None
    error: str | None = Field(description="`null` when it was delivered.")


class Notification(BaseModel):
    """One message to whoever is to be told."""

    id: UUID = Field(description="The `webhook-id` of each of its deliveries.")
    event: str
    seq: int
    audience: str
    state: Literal["pending", "delivered", "dead", "unaddressed"] = Field(
        description="`dead`: given up. `unaddressed`: nobody had said where to send it."
    )
    endpoint: str | None = Field(description="Whom it is for: an origin, or a task.")
    attempts: int = Field(ge=0)
    error: str | None = Field(description="Why the last try failed.")
    due_at: AwareDatetime | None
    created_at: AwareDatetime
    ended_at: AwareDatetime | None
    deliveries: list[Delivery]


class Charge(BaseModel):
    """One submission that was paid, or may have been."""

    prediction_id: str | None
    certain: bool = Field(description="Whether the provider is known to have taken it.")
    counts: bool = Field(description="Whether it counts in budgets.")
    price: float | None = Field(ge=0, description="In USD.")
    started_at: AwareDatetime
    ended_at: AwareDatetime | None


class Evidence(BaseModel):
    """Everything that is known of one job."""

    job: Job
    callback_url: str | None
    callback_task: str | None
    attempts: list[Attempt]
    events: list[Happening]
    callbacks: list[Callback]
    notifications: list[Notification]
    charges: list[Charge]
    retries: list[UUID] = Field(description="The jobs that repeat this one.")


class FieldProblem(BaseModel):
    """One thing wrong with one field."""

    field: str = Field(description="Its dotted path in the body, or the name of the header or parameter.")
    message: str = Field(description="What to do about it.")
    line: int | None = Field(default=None, ge=1, description="The line of a batch. Absent otherwise.")


class Problem(BaseModel):
    """Every error, as RFC 9457 has it. Test for `code`: it is stable, the words are not."""

    type: str
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What went wrong this time, and what to do.")
    code: str = Field(description="The stable name of what went wrong.")
    errors: list[FieldProblem] = Field(description="Every wrong field, all of them at once.")


class Alive(BaseModel):
    """The process answers."""

    status: str = Field(json_schema_extra={"const": "ok"})


class Degradation(BaseModel):
    """Something that does not work as it should, while requests still succeed."""

    what: str = Field(
        description="The part that suffers, such as `broker`, `account`, `sweep`, `outputs` or `receivers`."
    )
    why: str


class Readiness(BaseModel):
    """The process can do its work; *degraded* names what cannot."""

    status: str = Field(json_schema_extra={"const": "ok"})
    degraded: list[Degradation]
