"""Replay: callbacks that were kept are judged by today's code, and do what they may now; or it is only foretold."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pipeline import telemetry
from pipeline.errors import BadSignature, NotAllowedNow
from pipeline.lifecycle.hear import said, take, wake
from pipeline.predictions import Prediction
from pipeline.runtime import Runtime
from pipeline.signatures import Freshness, freshness
from pipeline.store import callbacks, inbox
from pipeline.store.callbacks import Kept, Wanted
from pipeline.store.inbox import Delivery, Said
from pipeline.store.tables import Verdict

log = telemetry.get(__name__)

AT_MOST = 1000
"""So many are replayed, or foretold, at a time."""

_READ_AT_A_TIME = 100
"""A body may have a mebibyte."""

_UNDERSTOOD = frozenset({Verdict.APPLIED, Verdict.DUPLICATE, Verdict.LATE})
"""Of a job of ours, believed, and known by now if it moved that."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One callback: the verdict it got when it came, and the one of today."""

    id: UUID
    received_at: datetime
    job_id: UUID | None
    then: str
    replayed: str | None  # what came of the last replay before
    now: str

    @property
    def moves(self) -> bool:
        """Whether it moves its job, today."""
        return self.now == Verdict.APPLIED

    @property
    def differs(self) -> bool:
        """Whether it is taken otherwise. What moved its job is known by now: that it is a repeat is no difference."""
        before = self.replayed or self.then
        return self.moves or (before != self.now and not {before, self.now} <= _UNDERSTOOD)


@dataclass(frozen=True, slots=True)
class Judgements:
    """What became of some, the oldest first; `next`, of the last of them, when there may be more."""

    all: list[Judged]
    next: UUID | None

    @property
    def different(self) -> list[Judged]:
        """Those that are taken otherwise than when they came."""
        return [one for one in self.all if one.differs]

    @property
    def same(self) -> list[Judged]:
        """All others."""
        return [one for one in self.all if not one.differs]

    def counts(self) -> dict[str, int]:
        """How many got which verdict today."""
        found = [one.now for one in self.all]
        return {verdict: found.count(verdict) for verdict in Verdict.ALL if verdict in found}


def replay(rt: Runtime, wanted: Wanted, *, after: UUID | None = None, at_most: int = AT_MOST) -> Judgements:
    """
    Have callbacks judged again, and let each do what it may now, as if it came: one short transaction each.

    Its signature was verified when it came, and it is as fresh as it was then. Replayed twice, it does nothing the
    second time. The verdict of old stays; what came of the replay stands beside it.

    Raises:
        NotAllowedNow: One of the ids is no callback's; none is replayed.
    """
    taken, found = 0, []
    for kept in _chosen(rt, wanted, after=after, at_most=at_most):
        taken, after = taken + 1, kept.id
        judged = _again(rt, kept.id)
        if judged:
            found.append(judged)
    return Judgements(found, after if taken == at_most else None)


def foretell(rt: Runtime, wanted: Wanted, *, after: UUID | None = None, at_most: int = AT_MOST) -> Judgements:
    """
    Say what `replay` would make of each of them, were it the only one. Nothing is changed, and nobody waits for it.

    Raises:
        NotAllowedNow: One of the ids is no callback's.
    """
    found: list[Judged] = []
    batch: list[tuple[Kept, Said]] = []

    def judge() -> None:
        with rt.db.transaction() as tx:
            verdicts = inbox.foretell(tx, [what for _, what in batch])
        for (kept, _), (verdict, job_id) in zip(batch, verdicts, strict=True):
            found.append(Judged(kept.id, kept.received_at, job_id, kept.verdict, kept.replayed_verdict, verdict))
        batch.clear()

    for kept in _chosen(rt, wanted, after=after, at_most=at_most):
        prediction, _ = said(kept.body)
        batch.append((kept, Said(kept.token, prediction, _disbelieved(kept, prediction))))
        if len(batch) == _READ_AT_A_TIME:
            judge()
    if batch:
        judge()
    return Judgements(found, found[-1].id if len(found) == at_most else None)


def _chosen(rt: Runtime, wanted: Wanted, *, after: UUID | None, at_most: int) -> Iterator[Kept]:
    if wanted.ids is not None:
        with rt.db.transaction() as tx:
            known = callbacks.known(tx, wanted.ids)
        if missing := [one for one in wanted.ids if one not in known]:
            raise NotAllowedNow(f"There is no callback {missing[0]}. None is replayed.")
    left = at_most
    while left:
        with rt.db.transaction() as tx:
            some = callbacks.oldest(tx, wanted, after=after, at_most=min(left, _READ_AT_A_TIME))
        yield from some
        if len(some) < min(left, _READ_AT_A_TIME):
            return
        left -= len(some)
        after = some[-1].id


def _again(rt: Runtime, callback_id: UUID) -> Judged | None:
    with rt.db.transaction() as tx:
        kept = callbacks.locked(tx, callback_id)
        if kept is None:  # pruned meanwhile
            return None
        prediction, _ = said(kept.body)
        delivery = Delivery(kept.token, kept.headers, kept.body, kept.id, kept=True)
        heard = take(rt, tx, delivery, prediction, _freshness(kept))
    job_id = str(heard.job_id) if heard.job_id else None
    log.info("callback.replayed", verdict=heard.verdict, job_id=job_id, before=heard.before)
    wake(rt, heard, prediction)
    return Judged(kept.id, kept.received_at, heard.job_id, kept.verdict, kept.replayed_verdict, heard.verdict)


def _disbelieved(kept: Kept, prediction: Prediction | None) -> str | None:
    if prediction is None:
        return Verdict.UNREADABLE
    return Verdict.STALE if _freshness(kept) is Freshness.STALE else None


def _freshness(kept: Kept) -> Freshness:
    """How fresh it was when it came."""
    try:
        return freshness(kept.headers, at=kept.received_at.timestamp())
    except BadSignature:  # its headers are not as they were: it is a hint at most
        return Freshness.STALE
