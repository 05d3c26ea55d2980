"""
Attempts whose answer was lost: what was sent, what the provider's list may hold, and the two ways out of doubt.

An attempt that was proven absent is looked for on, for as long as its job is in doubt again: the list may be late.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.jobs import State, Via
from pipeline.predictions import Prediction, Status
from pipeline.store import budgets
from pipeline.store.moves import Move, advance, flag_double_charges, note
from pipeline.store.tables import new_id

LATE_FOR_DAYS = 7
"""For so long the list is known to be late that showed one of our tasks after its absence had been seen."""

KNOWN_FOR_DAYS = 6
"""What was made since then must be in the list, with a day to spare: the provider keeps tasks for seven days."""


@dataclass(frozen=True, slots=True)
class Missing:
    """An attempt whose answer was lost: what was sent, and when by the database's clock."""

    job_id: UUID
    attempt_id: UUID
    model: str
    input: Mapping[str, Any]
    started_at: datetime
    ended_at: datetime
    age_s: float  # since it ended
    absent_s: float | None  # since the first complete list without it
    hint_id: str | None
    current_id: UUID  # its job's newest attempt
    absences: int  # how many attempts of its job before that one were proven absent
    past_deadline: bool  # its job is not submitted again, whatever is proven

    @property
    def earlier(self) -> bool:
        """Whether it was proven absent, and its job submitted again since."""
        return self.attempt_id != self.current_id


_MISSING_IS = """
    j.id, a.id, j.model, j.input, a.started_at, coalesce(a.ended_at, a.started_at),
    extract(epoch FROM clock_timestamp() - coalesce(a.ended_at, a.started_at))::float8,
    extract(epoch FROM clock_timestamp() - a.absent_at)::float8, a.hint_id, j.current_attempt,
    (SELECT count(*) FROM attempts e
     WHERE e.job_id = j.id AND e.id <> j.current_attempt AND e.outcome = 'absent')::int,
    j.deadline_at <= clock_timestamp()
"""

_MISSING = text(f"""
    WITH due AS MATERIALIZED (  -- as a subquery it may be run once for each job, and its limit be none
        SELECT id FROM jobs WHERE state = 'unknown' AND due_at <= statement_timestamp()
        ORDER BY due_at LIMIT :at_most FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE jobs j SET due_at = clock_timestamp() + make_interval(secs => :lease_s)
        FROM due d WHERE j.id = d.id
        RETURNING j.id, j.current_attempt, j.model, j.input, j.deadline_at
    )
    SELECT {_MISSING_IS}
    FROM taken j JOIN attempts a ON a.job_id = j.id AND (a.id = j.current_attempt OR a.outcome = 'absent')
""")


def claim_missing(tx: Connection, *, at_most: int, lease_s: float) -> list[Missing]:
    """
    Take up to *at_most* unknown jobs whose time has come, for *lease_s* seconds.

    Returns:
        The newest attempt of each, and those before that were proven absent.
    """
    return [Missing(*row) for row in tx.execute(_MISSING, {"at_most": at_most, "lease_s": lease_s})]


_ONE = text(f"""
    SELECT {_MISSING_IS}
    FROM jobs j JOIN attempts a ON a.id = j.current_attempt WHERE j.id = :job_id AND j.state = 'unknown'
""")


def one(tx: Connection, job_id: UUID) -> Missing | None:
    """The lost attempt of one job; None unless the job is unknown."""
    row = tx.execute(_ONE, {"job_id": job_id}).first()
    return Missing(*row) if row else None


def now(tx: Connection) -> datetime:
    """The database's clock."""
    return tx.execute(text("SELECT clock_timestamp()")).scalar_one()  # type: ignore[no-any-return]


def known_ids(tx: Connection, prediction_ids: Sequence[str]) -> set[str]:
    """Which of these tasks an attempt of ours already holds."""
    statement = text("SELECT prediction_id FROM attempts WHERE prediction_id = ANY(:ids)")
    return set(tx.execute(statement, {"ids": list(prediction_ids)}).scalars())


_LATENESS_S = text(f"""
    SELECT extract(epoch FROM max(absent_at - started_at))::float8 FROM attempts
    WHERE outcome = 'accepted' AND absent_at > statement_timestamp() - interval '{LATE_FOR_DAYS} days'
""")


def lateness_s(tx: Connection) -> float | None:
    """
    How long after its POST a task of ours was not yet in the list, at most, in the last days; None: all were in time.

    Whatever brought it in the end: the list, its callback, or the answer itself.
    """
    found: float | None = tx.execute(_LATENESS_S).scalar_one()
    return found


def newest_known_at(tx: Connection, *, older_than_s: float) -> datetime | None:
    """When we made the newest task that the list must show, *older_than_s* seconds ago or before."""
    statement = text(f"""
        SELECT started_at FROM attempts
        WHERE outcome = 'accepted' AND started_at > statement_timestamp() - interval '{KNOWN_FOR_DAYS} days'
          AND started_at <= statement_timestamp() - make_interval(secs => :older_than_s)
        ORDER BY started_at DESC LIMIT 1
    """)
    found: datetime | None = tx.execute(statement, {"older_than_s": older_than_s}).scalar()
    return found


def rivals(tx: Connection, missing: Missing, *, slack_s: float) -> int:
    """
    How many attempts of other jobs, for the same model and within *slack_s* seconds of this one, have no task yet.

    Each of them may own what the list shows without inputs, one that was proven absent too.
    """
    statement = text("""
        SELECT count(*) FROM attempts a JOIN jobs j ON j.id = a.job_id
        WHERE a.job_id <> :job_id AND j.model = :model AND a.prediction_id IS NULL
          AND (a.outcome IS NULL OR a.outcome IN ('lost', 'absent'))
          AND a.started_at <= CAST(:last AS timestamptz) + make_interval(secs => :slack_s)
          AND coalesce(a.ended_at, clock_timestamp()) >= CAST(:first AS timestamptz) - make_interval(secs => :slack_s)
          AND a.started_at >= CAST(:first AS timestamptz) - make_interval(secs => :slack_s + 300)  -- for the index
    """)
    parameters = {
        "job_id": missing.job_id,
        "model": missing.model,
        "first": missing.started_at,
        "last": missing.ended_at,
        "slack_s": slack_s,
    }
    return int(tx.execute(statement, parameters).scalar_one())


_ADOPT = text("""
    UPDATE attempts SET prediction_id = :prediction_id, outcome = 'accepted', error = NULL
    WHERE id = :attempt_id AND outcome IN ('lost', 'absent') AND prediction_id IS NULL
      AND NOT EXISTS (SELECT 1 FROM attempts o WHERE o.prediction_id = :prediction_id)
    RETURNING id
""")

_TURN_BACK = text("""
    UPDATE jobs SET current_attempt = :attempt_id
    WHERE id = :job_id AND current_attempt = :current_id AND state IN ('queued', 'unknown')
""")


def adopt(tx: Connection, missing: Missing, found: Prediction, *, poll_s: float, why: str, via: Via = Via.LIST) -> bool:
    """
    Give a found task to the attempt that lost it, and the job whatever verdict the task already has.

    That an earlier attempt's task failed does not end a job whose newest attempt may have one, too: it is only kept.

    Returns:
        False when it was another's already, or the job has moved on.
    """
    if not tx.execute(_ADOPT, {"prediction_id": found.id, "attempt_id": missing.attempt_id}).first():
        return False
    done = found.status is not Status.RUNNING
    to = {Status.COMPLETED: State.COMPLETED, Status.FAILED: State.FAILED}.get(found.status, State.PROCESSING)
    if missing.earlier:
        if to is State.FAILED:
            return True
        known = {"job_id": missing.job_id, "attempt_id": missing.attempt_id, "current_id": missing.current_id}
        tx.execute(_TURN_BACK, known)
    move = Move(
        missing.job_id,
        to,
        attempt_id=missing.attempt_id,
        due_s=None if done else poll_s,
        via=via if done else None,
        prediction_id=found.id,
        outputs=found.files if to is State.COMPLETED else None,
        error=found.problem,
        inference_ms=found.inference_ms,
        data={"via": via, "prediction_id": found.id, "why": why},
    )
    moved = bool(advance(tx, [move]))
    budgets.spend(tx, flag_double_charges(tx, [missing.attempt_id]))
    return moved


def drop_hint(tx: Connection, missing: Missing) -> None:
    """The id that a callback named is not this attempt's task."""
    tx.execute(
        text("UPDATE attempts SET hint_id = NULL WHERE id = :id AND hint_id = :hint_id"),
        {"id": missing.attempt_id, "hint_id": missing.hint_id},
    )


def requeue_absent(tx: Connection, missing: Missing, *, why: str) -> bool:
    """It is proven that the POST was never accepted: the job may be submitted again."""
    statement = text("UPDATE attempts SET outcome = 'absent' WHERE id = :id AND outcome = 'lost' RETURNING id")
    if not tx.execute(statement, {"id": missing.attempt_id}).first():
        return False
    move = Move(missing.job_id, State.QUEUED, attempt_id=missing.attempt_id, due_s=0, data={"why": why})
    return bool(advance(tx, [move]))


def give_back(tx: Connection, missing: Missing, to: State, *, why: str) -> bool:
    """A person ends the doubt: back to the queue, or failed. What the attempt's outcome was stays unknown."""
    failed = to is State.FAILED
    message = "Nobody knows whether the provider made it, and it was given up."
    move = Move(
        missing.job_id,
        to,
        attempt_id=missing.attempt_id,
        due_s=None if failed else 0,
        via=Via.OPERATOR if failed else None,
        error={"code": "given_up", "message": message, "provider_code": None} if failed else None,
        data={"via": Via.OPERATOR, "why": why},
    )
    return bool(advance(tx, [move]))


def looked(tx: Connection, missing: Missing, *, absent: bool, next_s: float, **seen: object) -> None:
    """
    Write down that the list was read: what it showed, and when to read it again, in seconds.

    *absent*: the read was complete and showed nothing that could be this attempt's task.
    """
    parameters = {"id": missing.attempt_id, "absent": absent}
    tx.execute(
        text("""
            UPDATE attempts SET absent_at = CASE WHEN :absent THEN coalesce(absent_at, clock_timestamp()) END
            WHERE id = :id AND outcome = 'lost'
        """),
        parameters,
    )
    statement = text("""
        UPDATE jobs SET due_at = clock_timestamp() + make_interval(secs => :next_s)
        WHERE id = :job_id AND state = 'unknown' AND current_attempt = :current_id
    """)
    tx.execute(statement, {"job_id": missing.job_id, "current_id": missing.current_id, "next_s": next_s})
    note(tx, missing.job_id, "attempt.looked_for", absent=absent, next_look_s=round(next_s, 1), **seen)


_HOLD = text("""
    WITH held AS (
        UPDATE jobs SET held_at = clock_timestamp(), held_reason = :reason, last_seq = last_seq + 1
        WHERE id = :job_id AND state = 'unknown' AND current_attempt = :attempt_id AND held_at IS NULL
        RETURNING id, last_seq
    ), told AS (
        INSERT INTO events (job_id, seq, at, kind, data)
        SELECT id, last_seq, clock_timestamp(), 'job.needs_decision', jsonb_build_object('why', CAST(:reason AS text))
        FROM held
    )
    INSERT INTO notifications (id, event, job_id, seq, audience, due_at)
    SELECT :notice_id, 'job.needs_decision', id, last_seq, 'operator', clock_timestamp() FROM held RETURNING job_id
""")


def hold(tx: Connection, missing: Missing, reason: str) -> bool:
    """Leave an unknown job to a person, and plan that the operator is told. True the first time only."""
    parameters = {
        "job_id": missing.job_id,
        "attempt_id": missing.current_id,
        "reason": reason,
        "notice_id": new_id(),
    }
    return tx.execute(_HOLD, parameters).first() is not None


_UNREAD = text("""
    WITH asked AS (
        SELECT j.id, NOT EXISTS (SELECT 1 FROM events e WHERE e.job_id = j.id AND e.seq = j.last_seq
                                                          AND e.kind = 'attempt.look_failed') AS news
        FROM jobs j WHERE j.id = ANY(CAST(:ids AS uuid[])) AND j.state = 'unknown' ORDER BY j.id FOR UPDATE
    ), later AS (
        UPDATE jobs j SET due_at = clock_timestamp() + make_interval(secs => :next_s),
                          last_seq = j.last_seq + a.news::int
        FROM asked a WHERE j.id = a.id RETURNING j.id, j.last_seq, a.news
    )
    INSERT INTO events (job_id, seq, at, kind, data)
    SELECT id, last_seq, clock_timestamp(), 'attempt.look_failed', jsonb_build_object('why', CAST(:why AS text))
    FROM later WHERE news
""")


def unread(tx: Connection, missing: Sequence[Missing], *, next_s: float, why: str) -> None:
    """
    The list could not be read: nothing is concluded, look again in *next_s* seconds.

    It stands in the history once, however often it fails in a row.
    """
    tx.execute(_UNREAD, {"ids": [str(one.job_id) for one in missing], "next_s": next_s, "why": why})


def next_look_s(tx: Connection) -> float | None:
    """In how many seconds the next unknown job is to be looked for; None when there is none."""
    statement = text("SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8 FROM jobs WHERE state = :s")
    wait_s: float | None = tx.execute(statement, {"s": State.UNKNOWN}).scalar_one()
    return wait_s
