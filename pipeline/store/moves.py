"""The one guarded UPDATE through which every job changes its state, and the one INSERT into its history."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.jobs import FINAL, TOLD, TRANSITIONS, State, Via
from pipeline.store import assets, budgets, notifications
from pipeline.store.budgets import Charge
from pipeline.store.tables import new_id

LEGAL = sorted(f"{source}>{target}" for source, targets in TRANSITIONS.items() for target in targets)
"""The table of states as the guard reads it: `queued>submitting`, …"""


@dataclass(frozen=True, slots=True)
class Move:
    """
    One job to be moved, if the row still allows it.

    `attempt_id` fences: the job moves only while that attempt is its current one. `due_s` sets the alarm
    clock, in seconds from now (for a processing job the deadline, when that is earlier); None stops it.
    Every other None leaves what is there.
    """

    job_id: UUID
    to: State
    attempt_id: UUID | None = None
    due_s: float | None = None
    via: Via | None = None
    prediction_id: str | None = None
    outputs: Sequence[Mapping[str, Any]] | None = None
    error: Mapping[str, Any] | None = None
    inference_ms: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)  # goes into the event
    kind: str | None = None  # of the event; `job.<state>` unless given


_ADVANCE = text(f"""
    WITH wanted AS (
        SELECT * FROM jsonb_to_recordset(CAST(:moves AS jsonb)) AS w(
            job_id uuid, "to" text, attempt_id uuid, due_s float8, via text, prediction_id text,
            outputs jsonb, error jsonb, inference_ms int, data jsonb, kind text, notice_id uuid,
            asset_ids uuid[])
    ), locked AS (  -- in the order of ids, so that two batches never wait for one another in a circle
        SELECT j.id, j.state AS "from", j.reserved, j.admitted FROM jobs j WHERE j.id IN (SELECT job_id FROM wanted)
        ORDER BY j.id FOR UPDATE
    ), moved AS (
        UPDATE jobs j SET
            state = w."to",
            due_at = CASE WHEN w."to" = :processing
                THEN least(clock_timestamp() + make_interval(secs => w.due_s),
                           greatest(j.deadline_at, clock_timestamp()))  -- never into the past, see `alarms`
                ELSE clock_timestamp() + make_interval(secs => w.due_s) END,
            finished_at = CASE WHEN w."to" = ANY(:final) THEN clock_timestamp() END,
            settled_by = coalesce(w.via, j.settled_by),
            prediction_id = coalesce(w.prediction_id, j.prediction_id),
            outputs = coalesce(w.outputs, j.outputs),
            error = coalesce(w.error, j.error),
            inference_ms = coalesce(w.inference_ms, j.inference_ms),
            reserved = CASE WHEN w."to" = ANY(:final) OR (l."from", w."to") = (:queued, :expired)
                THEN 0 ELSE j.reserved END,
            admitted = j.admitted AND (l."from", w."to") <> (:queued, :expired),
            held_at = NULL, held_reason = NULL,
            last_seq = j.last_seq + 1
        FROM wanted w JOIN locked l ON l.id = w.job_id
        WHERE j.id = l.id
          AND (l."from" || '>' || w."to") = ANY(:legal)
          AND (w.attempt_id IS NULL OR w.attempt_id = j.current_attempt)
        RETURNING j.id, j.service_id, j.last_seq, l."from", w.kind, w.data, w.notice_id,
                  w."to" = :completed AS completed, j.outputs, w.asset_ids, j.callback_url, j.callback_task,
                  l.reserved - j.reserved AS freed,
                  CASE WHEN w."to" = :completed OR l."from" = :unknown AND w."to" = :failed AND w.via = :operator
                       THEN CASE WHEN l.admitted THEN l.reserved ELSE coalesce(j.price, 0) END ELSE 0 END AS spent
    ), {budgets.FREED}, {assets.PLANNED}, {notifications.PLANNED}, told AS (
        INSERT INTO events (job_id, seq, at, kind, data)
        SELECT id, last_seq, clock_timestamp(), kind, jsonb_build_object('from', "from") || data FROM moved
    )
    SELECT id FROM moved
""")


def advance(tx: Connection, moves: Iterable[Move]) -> set[UUID]:
    """
    Move each job, if the state it is in now allows that; write the move to its history, and plan what follows from it.

    Who is to be told, and which outputs are to be archived: all in one statement.

    A job may stand in *moves* once. Losing is normal and raises nothing: a repeat, a late callback, a
    worker that lost the race.

    Returns:
        The ids of the jobs that this call moved.
    """
    wanted = [
        {
            "job_id": str(move.job_id),
            "to": move.to,
            "attempt_id": move.attempt_id and str(move.attempt_id),
            "due_s": move.due_s,
            "via": move.via,
            "prediction_id": move.prediction_id,
            "outputs": move.outputs,
            "error": move.error,
            "inference_ms": move.inference_ms,
            "data": move.data,
            "kind": move.kind or f"job.{move.to}",
            "notice_id": str(new_id()) if move.to in TOLD else None,
            "asset_ids": assets.ids_for(move.outputs),
        }
        for move in moves
    ]
    if not wanted:
        return set()
    parameters = {
        "moves": json.dumps(wanted),
        "legal": LEGAL,
        "final": sorted(FINAL),
        "processing": State.PROCESSING,
        "completed": State.COMPLETED,
        # A job that expires in the queue is not to be paid for: its money comes back. Should a verdict of an earlier
        # attempt come after all, it was; and so, for all we know, was one in doubt that a person gives up.
        "queued": State.QUEUED,
        "expired": State.EXPIRED,
        "unknown": State.UNKNOWN,
        "failed": State.FAILED,
        "operator": Via.OPERATOR,
    }
    return set(tx.execute(_ADVANCE, parameters).scalars())


_NOTE = text("""
    WITH noted AS (
        UPDATE jobs SET last_seq = last_seq + 1 WHERE id = :job_id RETURNING id, last_seq
    )
    INSERT INTO events (job_id, seq, at, kind, data)
    SELECT id, last_seq, clock_timestamp(), :kind, CAST(:data AS jsonb) FROM noted
""")


def note(tx: Connection, job_id: UUID, kind: str, **data: object) -> None:
    """Write something that happened to a job without moving it."""
    tx.execute(_NOTE, {"job_id": job_id, "kind": kind, "data": json.dumps(data)})


# What ended without a task (cancelled, or refused), though one was made after all. What a person gave up is paid for.
_IN_VAIN = "(j.finished_at IS NOT NULL AND j.prediction_id IS NULL AND j.settled_by IS DISTINCT FROM 'operator')"

_CHARGED = text(f"""
    SELECT DISTINCT a.job_id FROM attempts a JOIN jobs j ON j.id = a.job_id
    WHERE a.id = ANY(CAST(:ids AS uuid[])) AND a.outcome = 'accepted' AND ({_IN_VAIN}
      OR EXISTS (SELECT 1 FROM attempts o WHERE o.job_id = a.job_id AND o.id <> a.id AND o.outcome = 'accepted'))
    ORDER BY 1
""")

_UNFLAGGED = text(f"""
    SELECT j.service_id, j.price, {_IN_VAIN} AND NOT EXISTS (
               SELECT FROM events e WHERE e.job_id = j.id AND e.kind = 'job.charged_in_vain') AS in_vain,
           (SELECT array_agg(a.prediction_id ORDER BY a.number) FROM attempts a
            WHERE a.job_id = j.id AND a.outcome = 'accepted') AS charged,
           (SELECT count(*) FROM events e WHERE e.job_id = j.id AND e.kind = 'job.charged_twice') AS flagged
    FROM jobs j WHERE j.id = :job_id
""")


def flag_double_charges(tx: Connection, attempt_ids: Iterable[UUID]) -> list[Charge]:
    """
    Say so in the history of each job that one of these accepted attempts is not the only one of: once for each.

    And of each that had ended without a task: its money was given back, and was spent after all.

    Returns:
        The charges newly flagged, for `budgets.spend`; not done here, because jobs are locked before budgets.
    """
    ids = [str(attempt_id) for attempt_id in attempt_ids]
    found = []
    for job_id in tx.execute(_CHARGED, {"ids": ids}).scalars().all() if ids else ():
        tx.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": job_id})  # one counts at a time
        job = tx.execute(_UNFLAGGED, {"job_id": job_id}).one()
        if job.in_vain:
            note(tx, job_id, "job.charged_in_vain", prediction_ids=job.charged)
            found.append(Charge(job.service_id, job.price, in_vain=True))
        for number in range(job.flagged + 1, len(job.charged)):
            note(tx, job_id, "job.charged_twice", prediction_ids=job.charged, charges=number + 1)
            found.append(Charge(job.service_id, job.price))
    return found
