"""Alarm clocks: whose time has come. What the sweep plans, and the claims of those who look."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline import measures
from pipeline.jobs import State, Via
from pipeline.outputs import Policy
from pipeline.store import budgets, stats
from pipeline.store.catalogue import MODELS_AGE_S
from pipeline.store.moves import Move, advance
from pipeline.store.plans import READ_IN_ORDER, unseen
from pipeline.store.pruning import EVERY_S as PRUNE_EVERY_S
from pipeline.store.tables import UNADMITTED
from pipeline.store.workers import DEAD

DEAD_AFTER_S = 12.0
"""A worker that has not renewed its heartbeat for so long is taken for dead. False suspicion is harmless."""


SECRET_AGE_S = 3600.0
"""How old the webhook secret may grow before it is fetched again unasked, in seconds."""


ASK_EXPIRED_FOR_S = 86_400.0
"""How long after its deadline an expired job's task is still asked about, in seconds: its result was paid for."""


LONGEST_WRITE_S = 15.0
"""A job that came by a transaction longer than this may be claimed only after the next sweep."""

# The first in an index's order, and not EXISTS: of a table where half the rows are due, that expects to find one on the
# first page, and reads them all when they happen to lie at the end. Rows that are compared whole fit no other index.
#
# While somebody holds a snapshot, an index keeps an entry for whatever was due since. So what is found here is noted:
# who looks need not step over what was due before, as alarms are never set into the past. Once a minute everything is
# looked at all the same: a transaction that took long, or a person, may have written an alarm before the mark.
_DUE = text(f"""
    WITH mark AS MATERIALIZED (
        SELECT CASE WHEN whole THEN '-infinity' ELSE queued_from END AS queued,
               CASE WHEN whole THEN '-infinity' ELSE in_flight_from END AS in_flight
        FROM (
            SELECT queued_from, in_flight_from, date_trunc('minute', swept_at) IS DISTINCT FROM
                                                date_trunc('minute', statement_timestamp()) AS whole
            FROM account WHERE id = 1
        ) a
    ), first AS MATERIALIZED (
        SELECT (SELECT due_at FROM jobs WHERE {UNADMITTED} ORDER BY due_at LIMIT 1) AS unadmitted,
               (SELECT due_at FROM jobs
                WHERE due_at IS NOT NULL AND (state, due_at) >= ('queued', m.queued)
                  AND (state, due_at) <= ('queued', 'infinity') AND admitted
                ORDER BY state, due_at LIMIT 1) AS queued,
               (SELECT min(due_at) FROM jobs WHERE state = 'submitting' AND due_at >= m.in_flight) AS submitting,
               (SELECT min(due_at) FROM jobs WHERE state = 'processing' AND due_at >= m.in_flight) AS processing,
               (SELECT min(due_at) FROM jobs WHERE state = 'unknown' AND due_at >= m.in_flight) AS unknown,
               (SELECT min(due_at) FROM jobs WHERE state = 'expired') AS expired,
               (SELECT min(due_at) FROM assets WHERE due_at IS NOT NULL) AS unarchived,
               statement_timestamp() - make_interval(secs => :longest_write_s) AS known_until
        FROM mark m
    )
    UPDATE account SET swept_at = clock_timestamp(),
        queued_from = least(first.queued, known_until),
        in_flight_from = least(first.submitting, first.processing, first.unknown, known_until)
    FROM first WHERE id = 1
    RETURNING
        first.unadmitted <= statement_timestamp() IS TRUE AS admit,
        first.queued <= statement_timestamp() IS TRUE AS submit,
        least(first.processing, first.expired) <= statement_timestamp() IS TRUE AS poll,
        first.unknown <= statement_timestamp() IS TRUE AS reconcile,
        first.unarchived <= statement_timestamp() IS TRUE AS archive,
        halted_reason IS NOT NULL AND probe_at <= statement_timestamp() AS probe,
        webhook_secrets = '[]' OR secrets_fetched_at IS NULL
            OR secrets_fetched_at < statement_timestamp() - make_interval(secs => :secret_age_s) AS secrets,
        halted_reason IS NULL AND (models_fetched_at IS NULL
            OR models_fetched_at < statement_timestamp() - make_interval(secs => :models_age_s)) AS models,
        pruned_at <= statement_timestamp() - make_interval(secs => :prune_every_s) AS prune
""")


def due(tx: Connection) -> list[str]:
    """Which duties have something to do now, by name; remembers when the sweep last ran."""
    ages = {
        "secret_age_s": SECRET_AGE_S,
        "models_age_s": MODELS_AGE_S,
        "longest_write_s": LONGEST_WRITE_S,
        "prune_every_s": PRUNE_EVERY_S,
    }
    tx.execute(READ_IN_ORDER)
    found = tx.execute(_DUE, ages).one()
    return [duty for duty, is_due in found._mapping.items() if is_due]


def tell_settings(
    tx: Connection, *, default_model: str, deadline_s: float, archiving: bool, nsfw_policy: Policy
) -> None:
    """Let the database know what a job gets that is queued by SQL and does not say, and what becomes of its outputs."""
    statement = text("""
        UPDATE account
        SET default_model = :default_model, deadline_s = :deadline_s, archiving = :archiving, nsfw_policy = :nsfw_policy
        WHERE id = 1 AND (default_model, deadline_s, archiving, nsfw_policy)
            <> (:default_model, CAST(:deadline_s AS float8), :archiving, :nsfw_policy)
    """)
    told = {
        "default_model": default_model,
        "deadline_s": deadline_s,
        "archiving": archiving,
        "nsfw_policy": nsfw_policy,
    }
    tx.execute(statement, told)


_LOST_CLAIMS = text(f"""
    WITH dead AS (
        SELECT a.id AS attempt_id, j.id AS job_id, a.outcome,
               j.due_at <= statement_timestamp() AS lease_over
        FROM jobs j
        JOIN attempts a ON a.id = j.current_attempt
        LEFT JOIN workers w ON w.id = a.worker_id
        WHERE j.state = 'submitting' AND j.due_at >= (SELECT in_flight_from FROM account WHERE id = 1)
          AND (j.due_at <= statement_timestamp() OR w.id IS NULL OR {DEAD})
        ORDER BY j.id LIMIT 1000 FOR UPDATE OF a SKIP LOCKED  -- whose answer is just being recorded is not dead
    ), ended AS (
        UPDATE attempts a SET outcome = 'lost', ended_at = clock_timestamp(),
            error = CASE WHEN d.lease_over THEN 'the lease ran out' ELSE 'the worker died' END
        FROM dead d WHERE a.id = d.attempt_id AND a.outcome IS NULL
    )
    SELECT attempt_id, job_id, lease_over FROM dead
""")


def give_up_claims(tx: Connection, *, dead_after_s: float = DEAD_AFTER_S) -> list[UUID]:
    """Make `unknown` of the submitting jobs whose worker is dead, or whose lease is over. Returns their ids."""
    rows = tx.execute(_LOST_CLAIMS, {"dead_after_s": dead_after_s}).all()
    moves = [
        Move(
            row.job_id,
            State.UNKNOWN,
            attempt_id=row.attempt_id,
            due_s=0,
            data={"why": "lease over" if row.lease_over else "worker dead"},
        )
        for row in rows
    ]
    return sorted(advance(tx, moves))


def expire_queued(tx: Connection) -> list[UUID]:
    """Expire the jobs that waited past their deadline without having been paid for. Returns their ids."""
    statement = text("""
        SELECT id FROM jobs WHERE state = 'queued' AND deadline_at <= statement_timestamp()
        ORDER BY deadline_at LIMIT 1000 FOR UPDATE SKIP LOCKED
    """)
    ids = tx.execute(statement).scalars()
    why = {"why": "the deadline passed before it was submitted"}
    moves = [Move(job_id, State.EXPIRED, via=Via.DEADLINE, data=why) for job_id in ids]
    return sorted(advance(tx, moves))


_STOP_ASKING = text(f"""
    WITH old AS (
        SELECT id, reserved FROM jobs
        WHERE state = 'expired' AND due_at IS NOT NULL
          AND deadline_at < statement_timestamp() - make_interval(secs => :asked_for_s)
        ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
    ), moved AS (
        UPDATE jobs j SET due_at = NULL, reserved = 0 FROM old o WHERE j.id = o.id
        RETURNING j.id, j.service_id, o.reserved AS freed, o.reserved AS spent
    ), {budgets.FREED}
    SELECT id, service_id, spent FROM moved
""")


def stop_asking(tx: Connection) -> list[UUID]:
    """
    Ask no more about jobs that expired a day ago. Returns their ids.

    Each was accepted by the provider, so its money counts as spent.
    """
    moved = tx.execute(_STOP_ASKING, {"asked_for_s": ASK_EXPIRED_FOR_S}).all()
    stats.add(tx, [(job.service_id, measures.SPENT_BESIDE, job.spent) for job in moved])
    return [job.id for job in moved]


@dataclass(frozen=True, slots=True)
class Question:
    """One job whose task is to be asked about. Times of day by the database's clock, `age_s` since its POST."""

    job_id: UUID
    state: str
    attempt_id: UUID
    prediction_id: str
    age_s: float
    past_deadline: bool
    number: int  # of its attempt


_QUESTIONS = text("""
    WITH due AS MATERIALIZED (  -- as a subquery it may be run once for each job, and its limit be none
        SELECT id FROM jobs
        WHERE due_at <= statement_timestamp() AND state IN ('processing', 'expired')
        ORDER BY due_at LIMIT :at_most FOR UPDATE SKIP LOCKED
    ), asked AS (
        UPDATE jobs j SET due_at = clock_timestamp() + make_interval(secs => :lease_s)
        FROM due d WHERE j.id = d.id
        RETURNING j.id, j.state, j.current_attempt, j.prediction_id, j.submitted_at, j.deadline_at
    )
    SELECT q.id, q.state, q.current_attempt, coalesce(q.prediction_id, a.prediction_id) AS prediction_id,
           extract(epoch FROM clock_timestamp() - q.submitted_at)::float8 AS age_s,
           q.deadline_at <= clock_timestamp() AS past_deadline, a.number
    FROM asked q JOIN attempts a ON a.id = q.current_attempt
""")


def claim_questions(tx: Connection, *, at_most: int, lease_s: float) -> list[Question]:
    """Take up to *at_most* jobs that are due to be polled; nobody else takes them for *lease_s* seconds."""
    return [Question(*row) for row in tx.execute(_QUESTIONS, {"at_most": at_most, "lease_s": lease_s})]


def ask_again(tx: Connection, job_ids: Mapping[UUID, float]) -> None:
    """Set the next poll of each running job, in seconds from now; its deadline, when that is earlier."""
    statement = text(f"""
        UPDATE jobs j SET due_at = CASE
            WHEN j.state = 'processing' AND j.deadline_at > clock_timestamp()
                THEN least(clock_timestamp() + make_interval(secs => w.s), j.deadline_at)
            ELSE clock_timestamp() + make_interval(secs => w.s) END
        FROM unnest(CAST(:ids AS uuid[]), CAST(:seconds AS float8[])) AS w(id, s)
        WHERE j.id = w.id AND {unseen("j.state IN ('processing', 'expired')")}
    """)
    if job_ids:
        tx.execute(statement, {"ids": [str(job_id) for job_id in job_ids], "seconds": list(job_ids.values())})


def count_missing(tx: Connection, attempt_id: UUID) -> tuple[int, float]:
    """Count one more 404 for an attempt's task. Returns how many in a row, and the seconds since the first."""
    statement = text("""
        UPDATE attempts SET missing_polls = missing_polls + 1, missing_at = coalesce(missing_at, clock_timestamp())
        WHERE id = :attempt_id
        RETURNING missing_polls, extract(epoch FROM clock_timestamp() - missing_at)::float8
    """)
    row = tx.execute(statement, {"attempt_id": attempt_id}).one()
    return row[0], row[1]


def found_again(tx: Connection, attempt_ids: list[UUID]) -> None:
    """The task answered: 404s before were a passing fault."""
    statement = text("""
        UPDATE attempts SET missing_polls = 0, missing_at = NULL
        WHERE id = ANY(CAST(:ids AS uuid[])) AND missing_polls > 0
    """)
    if attempt_ids:
        tx.execute(statement, {"ids": [str(attempt_id) for attempt_id in attempt_ids]})
