"""What really happened, beside what the rows say; and the ways to move rows in time, not clocks."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.runtime import Runtime
from pipeline.store import budgets
from tests.factories import execute, scalar
from tests.stateful.provider import Provider, Task

_TIMES = {
    "jobs": ("created_at", "run_at", "due_at", "deadline_at", "submitted_at", "held_at"),
    "attempts": ("started_at", "ended_at", "hinted_at", "absent_at", "missing_at"),
    "workers": ("started_at", "beat_at"),
    "account": (
        *("backoff_until", "backoff_at", "cap_changed_at", "probe_at", "polls_paid_until"),
        *("pacer_until", "reconciler_until", "swept_at", "queued_from", "in_flight_from"),
    ),
}


def age(rt: Runtime, by_s: float) -> None:
    """Let *by_s* seconds pass for all rows. What is written once, and final, keeps its time."""
    with rt.db.transaction() as tx:
        for table, columns in _TIMES.items():
            moved = ", ".join(f"{column} = {column} - make_interval(secs => :by_s)" for column in columns)
            tx.execute(text(f"UPDATE {table} SET {moved}"), {"by_s": by_s})


def empty(rt: Runtime, service_id: UUID) -> None:
    """No job, and an account that nothing ever happened to. The service stays, with budgets that nothing exceeds."""
    with rt.db.transaction() as tx:
        for table in (
            "budgets",
            "callbacks",
            "notifications",
            "events",
            "idempotency_keys",
            "attempts",
            "jobs",
            "workers",
        ):
            tx.execute(text(f"DELETE FROM {table}"))
        tx.execute(text("DELETE FROM account"))
        tx.execute(text("INSERT INTO account (id) VALUES (1)"))
        budgets.open_(tx, budgets.ACCOUNT, "month", Decimal(1000))
        budgets.open_(tx, str(service_id), "day", Decimal(1000))


def allow_one_start(rt: Runtime) -> None:
    """Set the account's brakes so that the next claim takes one job: brakes have tests of their own."""
    execute(
        rt,
        """
        UPDATE account SET trial = false, recent = '', backoff_until = NULL, cap_changed_at = clock_timestamp(),
            in_flight_cap = 1 + (SELECT count(*) FROM jobs WHERE state IN ('submitting', 'processing', 'unknown')
                                                             AND held_at IS NULL)
        """,
    )


def finals(tx: Connection) -> dict[UUID, Any]:
    """All that a final job says, by its id."""
    statement = text("""
        SELECT id, state, outputs, error, settled_by, finished_at, prediction_id, current_attempt FROM jobs
        WHERE finished_at IS NOT NULL
    """)
    return {row.id: row for row in tx.execute(statement)}


def callbacks(tx: Connection) -> int:
    """How many callbacks are in the inbox."""
    return int(tx.execute(text("SELECT count(*) FROM callbacks")).scalar_one())


def strangers_outputs(tx: Connection, provider: Provider) -> list[tuple[UUID, str]]:
    """The jobs that hold a task, or outputs, of another request than theirs, or of none that exists."""
    statement = text("SELECT id, input, prediction_id FROM jobs WHERE prediction_id IS NOT NULL")
    rows = tx.execute(statement).all()
    tasks = {task.id: task for task in provider.tasks}
    return [
        (row.id, row.prediction_id)
        for row in rows
        if row.prediction_id not in tasks or tasks[row.prediction_id].input != row.input
    ]


def unknown(rt: Runtime, jobs: Sequence[UUID]) -> list[UUID]:
    """Those of the jobs of which nobody knows whether they were paid for, in the same order."""
    with rt.db.transaction() as tx:
        doubtful = set(tx.execute(text("SELECT id FROM jobs WHERE state = 'unknown'")).scalars())
    return [job_id for job_id in jobs if job_id in doubtful]


def equal_tasks(rt: Runtime, provider: Provider, job_id: UUID) -> list[Task]:
    """The tasks that were made from the same input as a job's."""
    wanted = scalar(rt, "SELECT input FROM jobs WHERE id = :id", id=job_id)
    return [task for task in provider.tasks if task.input == wanted]


def is_known_to_be_elsewhere(rt: Runtime, task_id: str, token: str) -> bool:
    """Whether the rows already say that a task is not that of the attempt with this token."""
    return bool(
        scalar(
            rt,
            """
            SELECT a.prediction_id <> :task_id OR EXISTS (
                SELECT 1 FROM attempts o WHERE o.prediction_id = :task_id AND o.id <> a.id)
            FROM attempts a WHERE a.token = :token
            """,
            task_id=task_id,
            token=token,
        )
    )


MOST_FALSE_PROOFS = 2
"""So often a list that is late, and looks like that of a provider that is down, may have a job paid for again."""


class Ledger:
    """Who was paid for, POST by POST. Where the list is late, proofs of absence may be false, but few of one job."""

    def __init__(self) -> None:
        self.false_proofs = 0  # so many of one job may be
        self.tokens: dict[UUID, list[str]] = defaultdict(list)
        self.forgiven: set[str] = set()
        self.resubmitted: Counter[UUID] = Counter()
        self.paid_twice: list[tuple[UUID, str]] = []

    def posted(self, rt: Runtime, provider: Provider, job_id: UUID, token: str) -> None:
        """A POST for a job has arrived: no earlier one may have a task that waits to be found."""
        paid = []
        for earlier in self.tokens[job_id]:
            task = provider.made_by(earlier)
            if task and earlier not in self.forgiven and not self._is_anothers(rt, job_id, task):
                paid.append((job_id, task.id))
        if len(paid) > self.false_proofs:
            self.paid_twice += paid
        self.tokens[job_id].append(token)

    def forgive(self, job_id: UUID) -> None:
        """A person wants another, whatever became of those before."""
        self.resubmitted[job_id] += 1
        self.forgiven.update(self.tokens[job_id])

    def too_often_accepted(self, tx: Connection) -> dict[UUID, int]:
        """The jobs with more accepted attempts than one, one more each time a person asked, and the false proofs."""
        statement = text("SELECT job_id, count(*) FROM attempts WHERE outcome = 'accepted' GROUP BY 1")
        counts = {row[0]: row[1] for row in tx.execute(statement)}
        free = 1 + self.false_proofs
        return {job_id: count for job_id, count in counts.items() if count > free + self.resubmitted[job_id]}

    def _is_anothers(self, rt: Runtime, job_id: UUID, task: Task) -> bool:
        """An equal job whose answer was lost too may have been given the task: one of the two is still owed one."""
        holder = scalar(rt, "SELECT job_id FROM attempts WHERE prediction_id = :id", id=task.id)
        return holder is not None and holder != job_id
