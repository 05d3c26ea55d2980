"""Our side of the account's bill: every paid POST, read for a comparison. Nothing here writes."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class Paid:
    """One attempt that the provider accepted, or whose answer was lost: then `prediction_id` is None."""

    prediction_id: str | None
    job_id: UUID
    model: str
    price: Decimal | None
    state: str  # of its job
    counts: bool  # its task is the one that the job's verdict came from
    started_at: datetime
    ended_at: datetime


_COLUMNS = """a.prediction_id, j.id, j.model, j.price, j.state, j.prediction_id IS NOT DISTINCT FROM a.prediction_id,
              a.started_at, coalesce(a.ended_at, clock_timestamp())"""

_STARTED = text(f"""
    SELECT {_COLUMNS} FROM attempts a JOIN jobs j ON j.id = a.job_id
    WHERE a.started_at >= :since AND a.started_at < :until
      AND (a.prediction_id IS NOT NULL OR a.outcome IS NULL OR a.outcome IN ('lost', 'absent'))
    ORDER BY a.started_at
""")

_OF_JOB = text(f"""
    SELECT {_COLUMNS} FROM attempts a JOIN jobs j ON j.id = a.job_id
    WHERE a.job_id = :job_id AND (a.prediction_id IS NOT NULL OR a.outcome IS NULL OR a.outcome = 'lost')
    ORDER BY a.number
""")

_OF = text(f"""
    SELECT {_COLUMNS} FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE a.prediction_id = ANY(:ids)
""")


def started(tx: Connection, since: datetime, until: datetime) -> list[Paid]:
    """All that may have been charged of what was started between two moments, the earliest first."""
    return [Paid(*row) for row in tx.execute(_STARTED, {"since": since, "until": until})]


def pruned_until(tx: Connection) -> datetime | None:
    """When the last POST of those began whose jobs were pruned: of what is older, attempts may be missing."""
    return tx.execute(text("SELECT max(last_start) FROM pruned")).scalar_one()  # type: ignore[no-any-return]


def of_job(tx: Connection, job_id: UUID) -> list[Paid]:
    """All that may have been charged for one job, first to last."""
    return [Paid(*row) for row in tx.execute(_OF_JOB, {"job_id": job_id})]


def of(tx: Connection, prediction_ids: Collection[str]) -> list[Paid]:
    """The attempts that hold these tasks, whenever they were started."""
    return [Paid(*row) for row in tx.execute(_OF, {"ids": list(prediction_ids)})]
