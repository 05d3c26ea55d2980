"""What became of each paid POST: first on its own attempt, whatever happened since; then on its job."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.jobs import Outcome, State
from pipeline.store import budgets
from pipeline.store.moves import Move, advance, flag_double_charges


@dataclass(frozen=True, slots=True)
class Answer:
    """How one attempt ended, and where that takes its job."""

    attempt_id: UUID
    outcome: Outcome
    move: Move
    prediction_id: str | None = None
    http_status: int | None = None
    error: str | None = None  # the provider's words, cut


# What is known to be accepted stays so; 'lost' and 'absent' are only what we believed until better evidence came.
# An id that another attempt holds was adopted there from the list, for an equal job: this one looks for the other's. So
# does the second of two answers that name one task, or nothing of their group could ever be written.
_RECORD = text("""
    WITH answered AS (
        SELECT w.*, w.prediction_id IS NOT NULL AND (
                row_number() OVER (PARTITION BY w.prediction_id ORDER BY w.attempt_id) > 1
                OR EXISTS (SELECT 1 FROM attempts o WHERE o.prediction_id = w.prediction_id AND o.id <> w.attempt_id)
            ) AS taken
        FROM jsonb_to_recordset(CAST(:answers AS jsonb)) AS w(
            attempt_id uuid, outcome text, prediction_id text, http_status int, error text)
    ), locked AS (  -- attempts before jobs, as everywhere, and in the order of ids: nobody waits in a circle
        SELECT a.id FROM attempts a WHERE a.id IN (SELECT attempt_id FROM answered) ORDER BY a.id FOR UPDATE
    )
    UPDATE attempts a SET
        outcome = CASE WHEN w.taken THEN 'lost' ELSE w.outcome END,
        prediction_id = CASE WHEN w.taken THEN a.prediction_id ELSE coalesce(a.prediction_id, w.prediction_id) END,
        http_status = coalesce(w.http_status, a.http_status),
        error = w.error,
        ended_at = clock_timestamp()
    FROM answered w JOIN locked l ON l.id = w.attempt_id
    WHERE a.id = l.id AND (a.outcome IS NULL OR a.outcome IN ('lost', 'absent'))
    RETURNING a.id, w.taken
""")


def record(tx: Connection, answers: Sequence[Answer]) -> set[UUID]:
    """
    Record *answers*, each on its own attempt, and move the jobs that still wait for them.

    A late answer of an attempt that is not the job's current one is kept, and moves nothing; when it was
    accepted beside another, that is a double charge, and said so in the job's history.

    Returns:
        The ids of the jobs that moved.
    """
    rows = [
        {
            "attempt_id": str(answer.attempt_id),
            "outcome": answer.outcome,
            "prediction_id": answer.prediction_id,
            "http_status": answer.http_status,
            "error": answer.error,
        }
        for answer in answers
    ]
    taken = {row.id for row in tx.execute(_RECORD, {"answers": json.dumps(rows)}) if row.taken}
    twice = flag_double_charges(
        tx, [one.attempt_id for one in answers if one.outcome is Outcome.ACCEPTED and one.attempt_id not in taken]
    )
    moved = advance(tx, [_look_again(one.move) if one.attempt_id in taken else one.move for one in answers])
    budgets.spend(tx, twice)
    return moved


def _look_again(move: Move) -> Move:
    return Move(
        move.job_id,
        State.UNKNOWN,
        attempt_id=move.attempt_id,
        due_s=0,
        data={"why": "the answer names a task that an equal job adopted; one of the two is still to be found"},
    )
