"""Claims: which due jobs this process may now pay for, never more than the account allows all processes together."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.jobs import IN_FLIGHT
from pipeline.settings import Limits
from pipeline.store.plans import IN_ORDER_FROM_NOW, READ_IN_ORDER, locked
from pipeline.store.tables import new_id, one_of

BATCH = 100
"""The most jobs one claim takes. Written into the statement, so that the planner knows how few it needs."""

_CAP_REGAINED_S = 10
"""How often the in-flight cap that a concurrency refusal taught is raised, in seconds."""


@dataclass(frozen=True, slots=True)
class Start:
    """One POST to be made: the attempt is committed, its token is secret."""

    attempt_id: UUID
    job_id: UUID
    number: int
    token: str
    model: str
    input: Mapping[str, Any]
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Claim:
    """
    What a claim brought.

    `again` when there may be more to take at once; `wait_s` when this process is the one that comes back
    for the next free start, in seconds. `calm` when no brake is on, so that success need not be reported.
    """

    starts: tuple[Start, ...] = ()
    again: bool = False
    wait_s: float | None = None
    calm: bool = True


# Whether there is a backlog is read off one index: rows that are compared whole fit no other.
_LOCK = text(f"""
    SELECT a.halted_reason IS NOT NULL AS halted, a.trial, a.recent, a.in_flight_cap,
           extract(epoch FROM a.backoff_until - clock_timestamp())::float8 AS backoff_s,
           a.pacer IS NULL OR a.pacer = :worker_id OR a.pacer_until < clock_timestamp() AS may_pace,
           a.cap_changed_at < clock_timestamp() - make_interval(secs => :cap_regained_s) AS cap_may_grow,
           a.backoff_at > clock_timestamp() - make_interval(secs => :cap_regained_s) IS TRUE AS just_refused,
           a.queued_from, a.in_flight_from, {IN_ORDER_FROM_NOW} AS in_order,
           (SELECT due_at FROM jobs
            WHERE due_at IS NOT NULL AND (state, due_at) >= ('queued', a.queued_from)
              AND (state, due_at) <= ('queued', 'infinity') AND admitted
            ORDER BY state, due_at LIMIT 1) <= statement_timestamp() IS TRUE AS backlog
    FROM account a WHERE a.id = 1 FOR UPDATE
""")

# What is due of a paused model is soon parked by the sweep, so that few are passed over here.
_HEAD = f"""
    SELECT id, price, priority, due_at FROM jobs
    WHERE service_id = s.id AND state = 'queued' AND admitted
      AND due_at BETWEEN :queued_from AND statement_timestamp() AND deadline_at > statement_timestamp()
      AND model NOT IN (SELECT id FROM models WHERE paused_at IS NOT NULL)
    ORDER BY priority DESC, due_at LIMIT {BATCH}
"""

# Counting is a statement of its own: one that locks and counts would count by a snapshot older than its lock.
# statement_timestamp() where an index is searched, because clock_timestamp() may change from row to row.
_CLAIM = text(f"""
    WITH recent AS MATERIALIZED (
        -- A sliding log. A POST arrives somewhere between its claim and its answer, so it counts from the answer on:
        -- however slow the way there was, the provider never sees more starts in its window than we count.
        SELECT service_id, count(*) AS n, min(ended_at) AS oldest FROM attempts
        WHERE started_at > statement_timestamp() - make_interval(secs => :window_s + :lease_s)
          AND (ended_at IS NULL OR ended_at > statement_timestamp() - make_interval(secs => :window_s))
          AND outcome IS DISTINCT FROM 'not_sent'
        GROUP BY service_id
    ), flying AS MATERIALIZED (  -- what waits for a person must not block the others
        SELECT service_id, count(*)::int AS n, (count(*) FILTER (WHERE state = 'submitting'))::int AS submitting
        FROM jobs WHERE {one_of("state", IN_FLIGHT)} AND due_at >= :in_flight_from AND held_at IS NULL
        GROUP BY service_id
    ), used AS MATERIALIZED (
        SELECT coalesce(sum(n), 0)::int AS starts,
               extract(epoch FROM min(oldest) - statement_timestamp())::float8 AS oldest_s,
               (SELECT coalesce(sum(n), 0) FROM flying)::int AS in_flight,
               (SELECT coalesce(sum(submitting), 0) FROM flying)::int AS submitting
        FROM recent
    ), turns AS (  -- fair by weight over the last minute's starts; priority orders a service's own jobs only
        SELECT q.id, q.price, (coalesce(r.n, 0) + q.place)::float8 / s.weight AS turn
        FROM services s
        LEFT JOIN recent r ON r.service_id = s.id
        LEFT JOIN flying f ON f.service_id = s.id
        CROSS JOIN LATERAL (
            SELECT id, price, row_number() OVER (ORDER BY priority DESC, due_at) AS place
            FROM ({_HEAD}) queue
        ) q
        WHERE s.paused_at IS NULL
          AND (s.max_in_flight IS NULL OR q.place <= s.max_in_flight - coalesce(f.n, 0))
    ), first AS MATERIALIZED (
        SELECT id FROM turns ORDER BY CASE WHEN :trial THEN price END, turn, id  -- a trial risks little
        LIMIT (SELECT greatest(0, least(:at_most, :quota - starts, :cap - in_flight,
                                        CASE WHEN :trial THEN 1 - submitting ELSE :at_most END)) FROM used)
    ), chosen AS (
        {locked("SELECT id FROM first", still="state = 'queued'")}
    ), tickets AS (
        SELECT c.id, t.attempt_id, t.token
        FROM (SELECT id, row_number() OVER () AS n FROM chosen) c
        JOIN unnest(CAST(:attempt_ids AS uuid[]), CAST(:tokens AS text[])) WITH ORDINALITY AS t(attempt_id, token, n)
          USING (n)
    ), moved AS (
        UPDATE jobs j SET state = 'submitting', current_attempt = t.attempt_id, attempts = j.attempts + 1,
            due_at = clock_timestamp() + make_interval(secs => :lease_s),
            submitted_at = clock_timestamp(), last_seq = j.last_seq + 1
        FROM tickets t WHERE j.id = t.id
        RETURNING j.id, j.service_id, j.attempts AS number, j.last_seq, j.model, j.input, j.submitted_at,
                  t.attempt_id, t.token
    ), intents AS (
        INSERT INTO attempts (id, job_id, service_id, number, token, worker_id, started_at)
        SELECT attempt_id, id, service_id, number, token, :worker_id, submitted_at FROM moved
    ), told AS (
        INSERT INTO events (job_id, seq, at, kind, data)
        SELECT id, last_seq, clock_timestamp(), 'job.submitting',
               jsonb_build_object('from', 'queued', 'attempt', number) FROM moved
    )
    SELECT u.starts, u.oldest_s, u.in_flight, m.attempt_id, m.id, m.number, m.token, m.model, m.input, m.submitted_at
    FROM used u LEFT JOIN moved m ON true
""")


def claim(
    tx: Connection,
    *,
    worker_id: UUID,
    limits: Limits,
    window_s: float,
    lease_s: float,
    at_most: int,
    attempt_ids: Sequence[UUID] = (),
) -> Claim:
    """
    Take up to *at_most* due jobs, fairly between services, and write the intent to pay for each.

    *window_s* is the length of the provider's window. Who wants to know what was claimed though the answer to the
    COMMIT is lost (`unsent`) brings *attempt_ids*, as many as it takes at most.
    """
    account = tx.execute(_LOCK, {"worker_id": worker_id, "cap_regained_s": _CAP_REGAINED_S}).one()
    calm = not account.trial and not account.recent and account.backoff_s is None and account.in_flight_cap is None
    if account.halted or not account.backlog:
        return Claim(calm=calm and not account.halted)
    if account.backoff_s is not None and account.backoff_s > 0:
        return Claim(wait_s=_pace(tx, worker_id, account.backoff_s) if account.may_pace else None, calm=False)

    cap = limits.max_in_flight
    if account.in_flight_cap is not None:
        learnt = account.in_flight_cap
        cap = _regain(tx, learnt, cap, gently=account.just_refused) if account.cap_may_grow else min(cap, learnt)
    at_most = min(at_most, BATCH)
    attempt_ids = attempt_ids or [new_id() for _ in range(at_most)]
    rows = tx.execute(
        _CLAIM,
        {
            "worker_id": worker_id,
            "window_s": window_s,
            "at_most": at_most,
            "quota": limits.submits_per_minute,
            "cap": cap,
            "trial": account.trial,
            "queued_from": account.queued_from,
            "in_flight_from": account.in_flight_from,
            "lease_s": lease_s,
            "attempt_ids": [str(attempt_id) for attempt_id in attempt_ids],
            "tokens": [secrets.token_urlsafe(24) for _ in range(at_most)],
        },
    ).all()
    used = rows[0]
    starts = tuple(
        Start(row.attempt_id, row.id, row.number, row.token, row.model, row.input, row.submitted_at)
        for row in rows
        if row.attempt_id
    )
    wait_s = None
    quota_left = limits.submits_per_minute - used.starts - len(starts)
    if quota_left <= 0 and account.may_pace:
        # The oldest answered start leaves the window first; without one, those under way will, a window from now.
        wait_s = _pace(tx, worker_id, window_s + (used.oldest_s or 0.0))
    again = len(starts) == at_most and quota_left > 0 and not account.trial
    return Claim(starts, again=again, wait_s=wait_s, calm=calm)


def cheapest(tx: Connection) -> Decimal | None:
    """The lowest price, in USD, of the jobs that a claim would choose from; None when no price is known."""
    statement = text(
        f"SELECT min(queue.price) FROM services s CROSS JOIN LATERAL ({_HEAD}) queue WHERE s.paused_at IS NULL"
    )
    tx.execute(READ_IN_ORDER)
    found: Decimal | None = tx.execute(statement, {"queued_from": datetime.fromtimestamp(0, UTC)}).scalar_one()
    return found


_UNSENT = text("""
    SELECT a.id, a.job_id, a.number, a.token, j.model, j.input, a.started_at
    FROM attempts a JOIN jobs j ON j.id = a.job_id
    WHERE a.id = ANY(CAST(:ids AS uuid[])) AND (a.outcome IS NULL OR a.outcome = 'lost')
""")


def unsent(tx: Connection, attempt_ids: Sequence[UUID]) -> list[Start]:
    """Those of a claim's attempts that were committed after all, though the answer to the COMMIT was lost."""
    rows = tx.execute(_UNSENT, {"ids": [str(attempt_id) for attempt_id in attempt_ids]})
    return [Start(row.id, row.job_id, row.number, row.token, row.model, row.input, row.started_at) for row in rows]


def _pace(tx: Connection, worker_id: UUID, wait_s: float) -> float:
    """Make this worker the one that waits. It keeps the turn for 2 s longer, then another may take it."""
    wait_s = max(wait_s, 0.01)
    tx.execute(
        text("""
            UPDATE account SET pacer = :worker_id, pacer_until = clock_timestamp() + make_interval(secs => :turn_s)
            WHERE id = 1
        """),
        {"worker_id": worker_id, "turn_s": wait_s + 2},
    )
    return wait_s


def _regain(tx: Connection, learnt: int, full: int, *, gently: bool) -> int:
    """
    Double the learnt in-flight cap, or raise it *gently* by a quarter; forget it when it is the level's own again.

    By one only, one refusal while few tasks ran would keep an account of thousands slow for days.
    """
    cap = learnt + (max(1, learnt // 4) if gently else learnt)
    tx.execute(
        text("UPDATE account SET in_flight_cap = :cap, cap_changed_at = clock_timestamp() WHERE id = 1"),
        {"cap": cap if cap < full else None},
    )
    return min(cap, full)
