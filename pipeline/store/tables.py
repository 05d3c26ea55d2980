"""
The schema. What must never break is repeated here as constraints, made from the table of states.

Everything lives in the Postgres schema `pipeline`. Ids are UUIDv7, made by us, so they sort by time on
every Postgres from 14 on. Times are `timestamptz`, by the database's clock.
"""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import uuid_utils.compat
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pipeline.jobs import ALARMED, FINAL, IN_FLIGHT, Outcome, State, Via
from pipeline.outputs import Kept, Policy, Review

SCHEMA = "pipeline"

Json = dict[str, Any]


def new_id() -> UUID:
    """A UUIDv7: unique, and ordered by the time it was made."""
    return uuid_utils.compat.uuid7()


def id_from(unix_s: float) -> UUID:
    """The least id that `new_id` can have made at that time, in seconds since 1970."""
    return UUID(int=int(unix_s * 1000) << 80)


def spelled(time: str) -> str:
    """A *time* in SQL, as all doors spell it: ISO 8601 in UTC with a Z, whatever the session's time zone."""
    return rf"""to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\:MI\:SS.US"Z"')"""


def one_of(column: str, values: Iterable[str]) -> str:
    """An SQL condition: *column* is one of *values*, in an order that does not change between runs."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in sorted(values))})"


class Verdict:
    """What became of an authentic callback."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    LATE = "late"
    STALE = "stale"
    ORPHAN = "orphan"
    SUSPICIOUS = "suspicious"
    UNREADABLE = "unreadable"
    ALL = (APPLIED, DUPLICATE, LATE, STALE, ORPHAN, SUSPICIOUS, UNREADABLE)


class Base(DeclarativeBase):
    """Naming convention and column types of all tables."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "pk": "%(table_name)s_pk",
            "fk": "%(table_name)s_%(column_0_name)s_fk",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        },
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way
        str: Text,
        bytes: LargeBinary,
        datetime: TIMESTAMP(timezone=True),
        Decimal: Numeric(12, 6),  # US dollars
        Json: JSONB,
        list[Any]: JSONB,
        list[UUID]: ARRAY(Uuid),
    }


NOW = func.clock_timestamp()
LONG_AGO = text("to_timestamp(0)")


class ServiceRow(Base):
    """A caller. Its key is shown once and kept only as a hash."""

    __tablename__ = "services"
    __table_args__ = (
        CheckConstraint("name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'", name="name"),
        CheckConstraint("weight BETWEEN 1 AND 1000", name="weight"),
        CheckConstraint("max_in_flight > 0", name="max_in_flight"),
        CheckConstraint("requests_per_minute > 0", name="requests_per_minute"),
        CheckConstraint(one_of("nsfw_policy", Policy), name="nsfw_policy"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    key_hash: Mapped[bytes] = mapped_column(unique=True)  # SHA-256 of the key; the key itself has 256 random bits
    operator: Mapped[bool] = mapped_column(server_default=text("false"))  # sees every service's jobs
    weight: Mapped[int] = mapped_column(SmallInteger, server_default="1")  # its share under backlog
    max_in_flight: Mapped[int | None]  # its tasks at a time; NULL: what the account allows
    requests_per_minute: Mapped[int | None]  # what its key may ask of our API; NULL: any number
    paused_at: Mapped[datetime | None]  # since when its queue stands still
    callback_url: Mapped[str | None]  # where it is told, unless a job says otherwise
    callback_tasks: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))  # Celery tasks its jobs may name
    callback_secrets: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))  # sign what it is told, see `keys`
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    revoked_at: Mapped[datetime | None]
    nsfw_policy: Mapped[str | None]  # NULL: the setting


UNADMITTED = f"state = '{State.QUEUED}' AND NOT admitted"


class JobRow(Base):
    """One job, and all its truth: state, alarm clock, verdict. Nothing but the id is unique."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(one_of("state", State), name="state"),
        CheckConstraint(f"due_at IS NOT NULL OR NOT {one_of('state', ALARMED)}", name="live_has_alarm"),
        CheckConstraint(f"due_at IS NULL OR NOT {one_of('state', FINAL)}", name="final_has_no_alarm"),
        CheckConstraint(f"(finished_at IS NOT NULL) = ({one_of('state', FINAL)})", name="finished"),
        CheckConstraint(f"current_attempt IS NOT NULL OR NOT {one_of('state', IN_FLIGHT)}", name="attempted"),
        CheckConstraint(f"outputs IS NOT NULL OR state <> '{State.COMPLETED}'", name="completed_has_outputs"),
        CheckConstraint(f"error IS NOT NULL OR state <> '{State.FAILED}'", name="failed_has_error"),
        CheckConstraint(f"settled_by IS NULL OR {one_of('settled_by', Via)}", name="settled_by"),
        CheckConstraint("priority BETWEEN -10 AND 10", name="priority"),
        CheckConstraint("price >= 0", name="price"),
        CheckConstraint("jsonb_typeof(input) = 'object'", name="input"),
        CheckConstraint("jsonb_typeof(options) = 'object'", name="options"),
        CheckConstraint("jsonb_typeof(metadata) = 'object'", name="metadata"),
        # The sweep's: whose time has come, state by state.
        Index("jobs_due_idx", "state", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        # The fair claim's: each service's own queue, in order.
        Index(
            "jobs_ready_idx",
            "service_id",
            text("priority DESC"),
            "due_at",
            postgresql_where=text(f"state = '{State.QUEUED}' AND admitted"),
        ),
        # Those nobody has checked and priced yet.
        Index("jobs_admission_idx", "due_at", postgresql_where=text(UNADMITTED)),
        Index("jobs_unadmitted_idx", "service_id", "due_at", postgresql_where=text(UNADMITTED)),
        # The lists': each page of a service's jobs, by state, by model, or all of them, straight off an index.
        Index("jobs_state_idx", "service_id", "state", "id"),
        Index("jobs_model_idx", "service_id", "model", "state", "id"),
        # Waiting jobs are found dead on time wherever they stand in the queue; running ones by their alarm.
        Index("jobs_deadline_idx", "deadline_at", postgresql_where=text(f"state = '{State.QUEUED}'")),
        # Those that nobody looks after any more, by when they ended: the oldest are pruned.
        Index(
            "jobs_ended_idx",
            "service_id",
            "state",
            text("coalesce(finished_at, deadline_at)"),
            postgresql_where=text("due_at IS NULL"),
        ),
        {"postgresql_with": {"fillfactor": "80"}},  # a job is updated a few times in its first minute, in place
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    service_id: Mapped[UUID]  # no foreign key: a caller's open transaction would hold its service's row
    model: Mapped[str]  # '' until it is admitted: the default model
    input: Mapped[Json]  # exactly what is sent to the provider
    options: Mapped[Json] = mapped_column(server_default=text("'{}'"))  # what we honour ourselves
    caller_data: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'"))  # the caller's own
    state: Mapped[str] = mapped_column(server_default=State.QUEUED)
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    run_at: Mapped[datetime] = mapped_column(server_default=NOW)
    due_at: Mapped[datetime | None]  # when somebody must look, if nothing happens before
    deadline_at: Mapped[datetime]
    current_attempt: Mapped[UUID | None]
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    prediction_id: Mapped[str | None]  # of the attempt that counts
    outputs: Mapped[list[Any] | None]  # [{"url", "nsfw"}], in the provider's order
    error: Mapped[Json | None]  # {"code", "message", "provider_code"}
    settled_by: Mapped[str | None]
    inference_ms: Mapped[int | None]
    retry_of: Mapped[UUID | None]
    callback_url: Mapped[str | None]  # who is told of its end, and where; NULL: as its service says
    callback_task: Mapped[str | None]
    admitted: Mapped[bool] = mapped_column(
        server_default=text("false")
    )  # checked, priced, and within the budgets; false again when its money was given back
    price: Mapped[Decimal | None]  # what it is to cost, in USD; NULL: the provider names no price
    reserved: Mapped[Decimal] = mapped_column(server_default=text("0"))  # of the budgets, until it has ended
    held_at: Mapped[datetime | None]  # since when an unknown job waits for a person
    held_reason: Mapped[str | None]
    last_seq: Mapped[int] = mapped_column(server_default="1")  # of its newest event
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    submitted_at: Mapped[datetime | None]  # when the newest attempt started
    finished_at: Mapped[datetime | None]


class AttemptRow(Base):
    """One paid POST: the money ledger. Written before the POST, deleted only with its job."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint(f"outcome IS NULL OR {one_of('outcome', Outcome)}", name="outcome"),
        CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended"),
        UniqueConstraint("job_id", "number"),
        # The sliding log of the limiter: how many starts in the last minute, and whose.
        Index("attempts_started_at_idx", "started_at", postgresql_include=["service_id", "outcome", "ended_at"]),
        # Those whose tasks the provider's list showed late.
        Index(
            "attempts_late_idx",
            "absent_at",
            postgresql_where=text(f"outcome = '{Outcome.ACCEPTED}' AND absent_at IS NOT NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    service_id: Mapped[UUID]
    number: Mapped[int] = mapped_column(SmallInteger)
    token: Mapped[str] = mapped_column(unique=True)  # secret; travels in the webhook's URL
    worker_id: Mapped[UUID]
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    prediction_id: Mapped[str | None] = mapped_column(unique=True)
    http_status: Mapped[int | None] = mapped_column(SmallInteger)
    error: Mapped[str | None]
    hint_id: Mapped[str | None]  # an id to ask about: a callback named it, but may not be believed by itself
    hinted_at: Mapped[datetime | None]
    absent_at: Mapped[datetime | None]  # first complete read of the provider's list without it
    missing_polls: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # GETs answered 404 in a row
    missing_at: Mapped[datetime | None]  # the first of them


class EventRow(Base):
    """What happened to a job, in order; written by the statement that makes the move."""

    __tablename__ = "events"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)  # no foreign key: a check for every event would only cost
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    kind: Mapped[str]
    data: Mapped[Json] = mapped_column(server_default=text("'{}'"))


class AssetRow(Base):
    """One output of a job: where it came from, and our own copy. Planned in the commit of the job's completion."""

    __tablename__ = "assets"
    __table_args__ = (
        CheckConstraint(one_of("state", Kept), name="state"),
        CheckConstraint(one_of("review", Review), name="review"),
        CheckConstraint("due_at IS NULL OR state = 'pending'", name="due"),
        CheckConstraint("worker_id IS NULL OR due_at IS NOT NULL", name="worker"),
        CheckConstraint(
            "state <> 'stored' OR review = 'purged' OR"
            " num_nulls(storage_key, sha256, bytes, content_type, stored_at) = 0",
            name="stored",
        ),
        UniqueConstraint("job_id", "index"),
        Index("assets_due_at_idx", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        # Whose download died with its worker.
        Index("assets_worker_id_idx", "worker_id", postgresql_where=text("worker_id IS NOT NULL")),
        # What we have no copy of, the oldest first: the provider deletes it.
        Index("assets_pending_idx", "created_at", postgresql_where=text("state = 'pending'")),
        Index("assets_lost_idx", "created_at", postgresql_where=text("state = 'lost'")),
        Index("assets_stored_at_idx", "stored_at", postgresql_where=text("stored_at IS NOT NULL")),
        Index("assets_quarantined_idx", "id", postgresql_where=text("review = 'quarantined'")),
        # What people decided, the newest first.
        Index("assets_reviewed_at_idx", "reviewed_at", postgresql_where=text("reviewed_at IS NOT NULL")),
        # Whose bytes are still to be removed.
        Index("assets_purged_idx", "id", postgresql_where=text("review = 'purged' AND storage_key IS NOT NULL")),
        # Who shares a file.
        Index("assets_storage_key_idx", "storage_key", postgresql_where=text("storage_key IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    job_id: Mapped[UUID]  # no foreign key: a check for every output would only cost
    index: Mapped[int] = mapped_column(SmallInteger)  # from 0, in the provider's order
    service_id: Mapped[UUID]
    state: Mapped[str] = mapped_column(server_default=Kept.PENDING)
    source_url: Mapped[str | None]  # the provider's; NULL when the output itself is the content
    storage_key: Mapped[str | None]  # of our copy; equal content has equal keys
    sha256: Mapped[str | None]  # in hex
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    content_type: Mapped[str | None]
    width: Mapped[int | None]  # in pixels
    height: Mapped[int | None]
    nsfw: Mapped[bool | None]  # as the provider says
    review: Mapped[str | None]
    reviewed_by: Mapped[str | None]
    reviewed_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    gone: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # answers in a row that it is not there
    gone_at: Mapped[datetime | None]  # the first of them
    error: Mapped[str | None]  # why the last attempt failed
    worker_id: Mapped[UUID | None]  # who fetches it now
    due_at: Mapped[datetime | None]  # the next attempt, or the end of the lease; NULL of a pending one: nobody archives
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)  # when the provider had made it
    stored_at: Mapped[datetime | None]


class CallbackRow(Base):
    """The inbox: every authentic delivery, byte for byte, with what became of it."""

    __tablename__ = "callbacks"
    __table_args__ = (
        CheckConstraint(one_of("verdict", Verdict.ALL), name="verdict"),
        CheckConstraint(one_of("replayed_verdict", Verdict.ALL), name="replayed_verdict"),
        Index("callbacks_job_id_idx", "job_id"),
        Index("callbacks_prediction_id_idx", "prediction_id"),
        Index("callbacks_orphans_idx", "received_at", postgresql_where=text("job_id IS NULL")),
        # The inbox's, for those that did not simply apply.
        Index("callbacks_odd_idx", "verdict", "id", postgresql_where=text(f"verdict <> '{Verdict.APPLIED}'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    received_at: Mapped[datetime] = mapped_column(server_default=NOW)
    token: Mapped[str]
    attempt_id: Mapped[UUID | None]
    job_id: Mapped[UUID | None]
    prediction_id: Mapped[str | None]
    verdict: Mapped[str]
    headers: Mapped[Json]
    body: Mapped[bytes]
    replayed_at: Mapped[datetime | None]  # what came of it when a person had it judged again; once applied, it stays
    replayed_verdict: Mapped[str | None]


class LabelRow(Base):
    """The metadata of jobs once more, to list jobs by one of them straight off an index. Triggers on `jobs` keep it."""

    __tablename__ = "labels"

    service_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)


class IdempotencyKeyRow(Base):
    """One key of one service names one job, or the jobs of one batch; the fingerprint tells a repeat from a mistake."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint("(job_id IS NULL) <> (job_ids IS NULL)", name="names"),
        Index("idempotency_keys_age_idx", "service_id", "created_at"),
    )

    service_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]
    job_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"), index=True
    )
    job_ids: Mapped[list[UUID] | None]  # of a batch, in its order
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class AccountRow(Base):
    """The one provider account: its brakes, its leases, its webhook secrets. Always exactly one row."""

    __tablename__ = "account"
    __table_args__ = (
        CheckConstraint("id = 1", name="single"),
        CheckConstraint(one_of("nsfw_policy", Policy), name="nsfw_policy"),
    )

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    backoff_until: Mapped[datetime | None]  # no POST before
    backoff_s: Mapped[float] = mapped_column(server_default="0")  # the next one doubles it
    backoff_at: Mapped[datetime | None]  # answers to POSTs from before are of the same incident
    trial: Mapped[bool] = mapped_column(server_default=text("false"))  # one POST at a time until one is accepted
    recent: Mapped[str] = mapped_column(server_default="")  # the last 20 answers: '+' accepted, '-' lost
    in_flight_cap: Mapped[int | None]  # learnt from concurrency refusals; NULL: what the level allows
    cap_changed_at: Mapped[datetime | None]
    halted_reason: Mapped[str | None]
    halted_at: Mapped[datetime | None]
    halted_balance: Mapped[float | None]  # more than this must be there before we try again
    probe_at: Mapped[datetime | None]  # when to ask next whether the halt is over
    webhook_secrets: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))  # newest first, the former one too
    secrets_fetched_at: Mapped[datetime | None]
    polls_paid_until: Mapped[datetime | None]  # the poll budget, as the time up to which it is spent
    pacer: Mapped[UUID | None]  # the worker that waits for the next free start
    pacer_until: Mapped[datetime | None]
    reconciler: Mapped[UUID | None]  # the worker that reads the provider's list
    reconciler_until: Mapped[datetime | None]
    swept_at: Mapped[datetime | None]
    # Low-water marks of alarms: no claimable job, and none in flight, is due before. See `alarms.due`.
    queued_from: Mapped[datetime] = mapped_column(server_default=LONG_AGO)
    in_flight_from: Mapped[datetime] = mapped_column(server_default=LONG_AGO)
    models_fetched_at: Mapped[datetime | None]
    screens_changed_at: Mapped[datetime | None]  # processes that know older lists of terms read them again
    pruned_at: Mapped[datetime] = mapped_column(server_default=NOW)  # when somebody last began to prune
    at_risk_at: Mapped[datetime | None]  # when the operator was last told of outputs that may be lost
    # What jobs get that are queued by SQL and do not say: the settings, as the last sweep had them.
    default_model: Mapped[str] = mapped_column(server_default="openai/dall-e-2")
    deadline_s: Mapped[float] = mapped_column(server_default="3600")
    # Likewise what is done about the files of jobs as they complete.
    archiving: Mapped[bool] = mapped_column(server_default=text("false"))
    nsfw_policy: Mapped[str] = mapped_column(server_default=Policy.QUARANTINE)
    operator_secrets: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))  # sign what operators are told


class WorkerRow(Base):
    """One worker process; `beat_at` is renewed every 5 s from a thread and connection of its own."""

    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    place: Mapped[str | None]  # where that pid means something: boot and namespace
    gone_at: Mapped[datetime | None]  # when a neighbour saw that it had ended without leaving
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    beat_at: Mapped[datetime] = mapped_column(server_default=NOW)
    told_at: Mapped[datetime | None]  # when Celery's beat last told it to sweep
