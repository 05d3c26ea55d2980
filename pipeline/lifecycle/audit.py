"""
Audit: our ledger of paid POSTs against the provider's bill. It changes nothing; it says where the two differ.

Both are told apart by the task's id. A bill also has what others did with the account: a task that we do not know is a
difference when it was made with the key of tasks that are ours, or when nobody else uses the account.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from pipeline.errors import Transient
from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.store import ledger
from pipeline.store.ledger import Paid
from pipeline.wavespeed import Bill, WaveSpeed

REFUNDED_WITHIN = timedelta(hours=3)
"""Failed tasks are refunded by themselves. Source: https://wavespeed.ai/docs/refund-policy"""

PAGE_SIZE = 100
MAX_PAGES = 10_000
_NEAR = timedelta(seconds=5)


class Kind(StrEnum):
    """In what the two differ."""

    CHARGED_TWICE = "charged_twice"
    UNKNOWN_TO_US = "unknown_to_us"
    NEVER_CHARGED = "never_charged"
    CHARGED_IN_VAIN = "charged_in_vain"  # its job was cancelled: nobody thought that there was a task
    NOT_REFUNDED = "not_refunded"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be. `usd` is what the bill says was charged for it."""

    kind: Kind
    job_ids: tuple[UUID, ...]  # where the task is unknown to us: the jobs in doubt that it may belong to
    prediction_ids: tuple[str, ...]
    model: str | None
    usd: Decimal
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the bill of a time says, in USD, and where it differs from our ledger."""

    since: datetime
    until: datetime
    tasks: int
    usd: Decimal
    others: int  # tasks that somebody else made on this account
    others_usd: Decimal
    differences: Sequence[Difference]
    forgotten: int = 0  # tasks that nobody here knows, from the time of jobs that were pruned
    forgotten_usd: Decimal = Decimal()
    pruned_until: datetime | None = None  # what the bill has from before may be missing here

    @property
    def agrees(self) -> bool:
        """Whether nothing calls for a person. A refund that is late is the provider's to mend, and only shown."""
        return all(found.kind is Kind.NOT_REFUNDED for found in self.differences)


@dataclass(slots=True)
class Charged:
    """What the bill says of one task."""

    times: int = 0
    usd: Decimal = Decimal()
    model: str | None = None
    key_id: str | None = None
    at: datetime | None = None

    def add(self, bill: Bill) -> None:
        """Count one line."""
        sign = -1 if bill.refund else 1
        self.times += sign
        self.usd += sign * bill.usd
        self.model = bill.model or self.model
        self.key_id = bill.key_id or self.key_id
        self.at = bill.created_at or self.at


def audit(
    rt: Runtime, since: datetime, until: datetime, *, grace: timedelta, progress: Callable[[int], None]
) -> Comparison:
    """
    Compare what happened between two moments; *progress* is told how many lines of the bill were read.

    *grace* is how long a charge may take to show in the bill, or an answer to reach us: younger things are let be.

    Raises:
        ProviderError: The bill cannot be read.
    """
    with rt.db.transaction() as tx:
        ours = ledger.started(tx, since, until)
    bill = asyncio.run(_read(rt.provider(), since - grace, until, progress))
    known = {one.prediction_id for one in ours}
    with rt.db.transaction() as tx:  # also of tasks that were started a little before
        ours += ledger.of(tx, [task for task in bill if task not in known])
        pruned_until = ledger.pruned_until(tx)  # read last: what was pruned meanwhile is known to be
    return compare(
        bill,
        ours,
        since=since,
        until=until,
        grace=grace,
        exclusive=rt.settings.account_exclusive,
        pruned_until=pruned_until,
    )


def compare(
    bill: Mapping[str, Charged],
    ours: Sequence[Paid],
    *,
    since: datetime,
    until: datetime,
    grace: timedelta,
    exclusive: bool,
    pruned_until: datetime | None = None,
) -> Comparison:
    """
    Find the differences between a bill by task and our attempts; *exclusive*: nobody else uses the account.

    A task that we do not know is no difference when it was made before *pruned_until*: its job may have been pruned.
    """
    known = {one.prediction_id: one for one in ours if one.prediction_id}
    keys = {bill[task].key_id for task in known if task in bill} - {None}
    strange = {task: charged for task, charged in bill.items() if task not in known and charged.times > 0}
    gone = {task: one for task, one in strange.items() if pruned_until and one.at and one.at <= pruned_until + grace}
    suspect = {task: one for task, one in strange.items() if task not in gone and (exclusive or one.key_id in keys)}
    differences = [
        *_charged_twice(bill, known.values()),
        *(_unknown(task, one, ours) for task, one in suspect.items() if not one.at or one.at < until - grace),
        *_not_as_paid(bill, known.values(), until, grace),
    ]
    others = [one for task, one in strange.items() if task not in suspect and task not in gone]
    return Comparison(
        since=since,
        until=until,
        tasks=len(bill),
        usd=sum((one.usd for one in bill.values()), Decimal()),
        others=len(others),
        others_usd=sum((one.usd for one in others), Decimal()),
        differences=differences,
        forgotten=len(gone),
        forgotten_usd=sum((one.usd for one in gone.values()), Decimal()),
        pruned_until=pruned_until if pruned_until and pruned_until > since else None,
    )


def _charged_twice(bill: Mapping[str, Charged], ours: Iterable[Paid]) -> Iterable[Difference]:
    tasks: dict[UUID, list[Paid]] = defaultdict(list)
    for one in ours:
        if one.prediction_id in bill:
            tasks[one.job_id].append(one)
    for job_id, paid in tasks.items():
        charges = {one.prediction_id: bill[one.prediction_id] for one in paid if one.prediction_id}
        if sum(max(charge.times, 0) for charge in charges.values()) > 1:
            usd = sum((charge.usd for charge in charges.values()), Decimal())
            at = paid[-1].started_at
            yield Difference(Kind.CHARGED_TWICE, (job_id,), tuple(sorted(charges)), paid[0].model, usd, at)


def _unknown(task: str, charged: Charged, ours: Iterable[Paid]) -> Difference:
    """A task that nobody here knows: perhaps of one of the jobs whose answer was lost just then."""
    doubtful = tuple(
        one.job_id
        for one in ours
        if one.prediction_id is None
        and one.model == charged.model
        and (charged.at is None or one.started_at - _NEAR <= charged.at <= one.ended_at + _NEAR)
    )
    return Difference(Kind.UNKNOWN_TO_US, doubtful, (task,), charged.model, charged.usd, charged.at)


def _not_as_paid(
    bill: Mapping[str, Charged], ours: Iterable[Paid], until: datetime, grace: timedelta
) -> Iterable[Difference]:
    for one in ours:
        task = one.prediction_id or ""
        charged = bill.get(task, Charged())
        if one.state == State.COMPLETED and one.counts and charged.times < 1 and one.started_at < until - grace:
            kind, usd = Kind.NEVER_CHARGED, one.price or Decimal()
        elif one.state == State.CANCELLED and charged.times > 0:
            kind, usd = Kind.CHARGED_IN_VAIN, charged.usd
        elif one.state == State.FAILED and charged.times > 0 and one.ended_at < until - REFUNDED_WITHIN - grace:
            kind, usd = Kind.NOT_REFUNDED, charged.usd
        else:
            continue
        yield Difference(kind, (one.job_id,), (task,), one.model, usd, one.started_at)


async def _read(
    provider: WaveSpeed, since: datetime, until: datetime, progress: Callable[[int], None]
) -> dict[str, Charged]:
    """The whole bill by task. While it is read nothing is added to it: its end lies in the past."""
    tasks: dict[str, Charged] = defaultdict(Charged)
    seen: set[str] = set()
    try:
        for page in range(1, MAX_PAGES + 1):
            bills: Collection[Bill] = await provider.bills(since, until, page=page, page_size=PAGE_SIZE)
            for bill in bills:
                if bill.id not in seen and bill.prediction_id:
                    tasks[bill.prediction_id].add(bill)
                seen.add(bill.id)
            progress(len(seen))
            if not bills:  # a page may well hold fewer than asked for
                return dict(tasks)
    finally:
        await provider.close()
    raise Transient(f"The bill has more than {MAX_PAGES * PAGE_SIZE:,} lines; choose a shorter time.")
