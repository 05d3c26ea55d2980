"""
Pauses of models: their queued jobs are parked until the deadline, so that claims need not step over them.

A service's pause needs nothing of the kind: a claim does not look into its queue.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.store.plans import READ_IN_ORDER, locked

BATCH = 1000
"""So many jobs are parked or freed in one transaction."""

FIRST, _LAST = UUID(int=0), UUID(int=2**128 - 1)


def pause(tx: Connection, model: str) -> bool:
    """From now on no job of *model* is begun. False when it was paused before."""
    statement = text("""
        INSERT INTO models (id, paused_at) VALUES (:model, clock_timestamp())
        ON CONFLICT (id) DO UPDATE SET paused_at = excluded.paused_at WHERE models.paused_at IS NULL
        RETURNING id
    """)
    return tx.execute(statement, {"model": model}).first() is not None


def resume(tx: Connection, model: str) -> bool:
    """From now on its jobs may be begun, those that `free` lets go. False when it was not paused."""
    statement = text("UPDATE models SET paused_at = NULL WHERE id = :model AND paused_at IS NOT NULL RETURNING id")
    return tx.execute(statement, {"model": model}).first() is not None


@dataclass(frozen=True, slots=True)
class Batch:
    """How many jobs were looked at, and the last of them; fewer than BATCH: there are no more."""

    count: int
    last: UUID | None


def _batch(whose: str, which: str, due_at: str) -> str:
    # By id, along the index of each service's jobs by model: what was done already is not read again. (Rows that are
    # compared whole fit no other.) The models are held, so that who resumes one waits for who is parking its jobs just
    # then: nobody would free them afterwards.
    return f"""
        WITH held AS MATERIALIZED (
            SELECT id FROM models WHERE {whose} ORDER BY id FOR SHARE
        ), chosen AS MATERIALIZED (
            SELECT q.id FROM held m CROSS JOIN services s CROSS JOIN LATERAL (
                SELECT id FROM jobs
                WHERE (service_id, model, state, id) > (s.id, m.id, 'queued', :after)
                  AND (service_id, model, state, id) <= (s.id, m.id, 'queued', :last) AND admitted AND {which}
                ORDER BY service_id, model, state, id LIMIT {BATCH}
            ) q
            ORDER BY q.id LIMIT {BATCH}
        ), locked AS (
            SELECT id, row_number() OVER (ORDER BY id) AS place FROM (
                {locked("SELECT id FROM chosen", still="state = 'queued'")}
            ) free
        ), changed AS (
            UPDATE jobs j SET due_at = {due_at} FROM locked l WHERE j.id = l.id
        )
        SELECT (SELECT count(*) FROM chosen), (SELECT id FROM chosen ORDER BY id DESC LIMIT 1)
    """


_PARK = text(_batch("paused_at IS NOT NULL", "due_at < deadline_at", "j.deadline_at"))

_FREE = text(
    _batch(
        "id = :model AND paused_at IS NULL",
        "due_at >= deadline_at AND deadline_at > statement_timestamp()",
        "greatest(j.run_at, statement_timestamp() + l.place * interval '1 microsecond')",  # in the order they came
    )
)


def park(tx: Connection, *, after: UUID = FIRST) -> Batch:
    """Let queued jobs of paused models wait for their deadline; those whose id comes after *after*."""
    tx.execute(READ_IN_ORDER)
    return Batch(*tx.execute(_PARK, {"after": after, "last": _LAST}).one())


def free(tx: Connection, model: str, *, after: UUID = FIRST) -> Batch:
    """Let parked jobs of a model that is not paused be due as they were before."""
    tx.execute(READ_IN_ORDER)
    return Batch(*tx.execute(_FREE, {"model": model, "after": after, "last": _LAST}).one())
