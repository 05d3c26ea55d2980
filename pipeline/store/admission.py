"""Jobs that were queued unchecked: who waits to be admitted, and the admission."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.store.plans import READ_IN_ORDER, locked
from pipeline.store.tables import UNADMITTED


@dataclass(frozen=True, slots=True)
class Applicant:
    """A queued job that nobody has checked and priced yet."""

    job_id: UUID
    service_id: UUID
    model: str
    input: Mapping[str, Any]
    callback_url: str | None


# Each service's own, along one index: rows that are compared whole fit no other.
_WAITING = text(f"""
    SELECT j.id, j.service_id, j.model, j.input, j.callback_url
    FROM (
        SELECT w.id, w.place, w.due_at FROM services s CROSS JOIN LATERAL (
            SELECT id, due_at, row_number() OVER (ORDER BY due_at) AS place FROM (
                SELECT id, due_at FROM jobs
                WHERE {UNADMITTED} AND (service_id, due_at) >= (s.id, '-infinity')
                  AND (service_id, due_at) <= (s.id, statement_timestamp())
                ORDER BY service_id, due_at LIMIT :at_most
            ) first
        ) w
        ORDER BY w.place, w.due_at LIMIT :at_most
    ) w CROSS JOIN LATERAL (SELECT * FROM jobs WHERE jobs.id = w.id LIMIT 1) j
    ORDER BY w.place, w.due_at
""")

_LOCK = text(locked("SELECT unnest(CAST(:ids AS uuid[])) AS id", still=UNADMITTED))

# A claim looks for what is due since a few seconds before the last sweep, see `alarms`: what waited longer than that to
# be admitted is due from now on, one after the other.
_ADMIT = text("""
    UPDATE jobs j SET admitted = true, price = n.usd, reserved = coalesce(n.usd, 0),
        model = n.model, input = n.input, options = j.options || n.options,
        due_at = CASE WHEN j.due_at > statement_timestamp() - make_interval(secs => :found_s) THEN j.due_at
                      ELSE statement_timestamp() + n.place * interval '1 microsecond' END
    FROM jsonb_to_recordset(CAST(:jobs AS jsonb)) AS n(
        id uuid, place int, usd numeric, model text, input jsonb, options jsonb)
    WHERE j.id = n.id
""")

_FOUND_S = 5.0
"""What became due so long ago, in seconds, is found by a claim before the next sweep: less than LONGEST_WRITE_S."""


def waiting(tx: Connection, *, at_most: int) -> list[Applicant]:
    """Those whose time has come: of each service in turn, the longest waiting first."""
    tx.execute(READ_IN_ORDER)
    return [Applicant(*row) for row in tx.execute(_WAITING, {"at_most": at_most})]


def lock(tx: Connection, applicants: Sequence[Applicant]) -> set[UUID]:
    """The ids of those of *applicants* that still wait, and that nobody else is just admitting."""
    tx.execute(text("LOCK TABLE budgets IN ROW SHARE MODE"))  # before any job is locked, see `budgets`
    return set(tx.execute(_LOCK, {"ids": [str(one.job_id) for one in applicants]}).scalars())


@dataclass(frozen=True, slots=True)
class Admission:
    """What a locked job is admitted with: what is sent, what we honour ourselves, and its price in USD if known."""

    job_id: UUID
    usd: Decimal | None
    model: str
    input: Mapping[str, Any]
    options: Mapping[str, Any]


def admit(tx: Connection, admissions: Sequence[Admission]) -> None:
    """From now on these jobs may be claimed."""
    rows = [
        {
            "id": str(one.job_id),
            "place": place,
            "model": one.model,
            "usd": None if one.usd is None else str(one.usd),
            "input": one.input,
            "options": one.options,
        }
        for place, one in enumerate(admissions)
    ]
    if rows:
        tx.execute(_ADMIT, {"jobs": json.dumps(rows), "found_s": _FOUND_S})


def postpone(tx: Connection, job_ids: Sequence[UUID], wait_s: float) -> None:
    """Look at these locked jobs again in *wait_s* seconds; others are not to wait behind them."""
    statement = text("""
        UPDATE jobs SET due_at = clock_timestamp() + make_interval(secs => :wait_s)
        WHERE id = ANY(CAST(:ids AS uuid[]))
    """)
    if job_ids:
        tx.execute(statement, {"ids": [str(job_id) for job_id in job_ids], "wait_s": wait_s})
