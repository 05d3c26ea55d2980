"""
Prune: what has had its time goes, in small transactions with pauses between them, so that nobody notices.

A worker does it when a sweep says so; `pipeline prune` does it all at once. Two at a time do no harm.
"""

import time
from collections import Counter
from collections.abc import Callable

from pipeline import telemetry
from pipeline.retention import Kind
from pipeline.runtime import Runtime
from pipeline.store import pruning, retention
from pipeline.store.pruning import BATCH, Old

log = telemetry.get(__name__)

RUN_S = 50.0
"""How long one process prunes before it lets the next sweep say who goes on, in seconds."""

REST = 1.0
"""How long a pruner rests between two batches, as a multiple of what the last one took."""


def remove(rt: Runtime, *, at_most: int = BATCH) -> Counter[Kind]:
    """Remove one batch of each kind, each in a transaction of its own, and give how many went."""
    gone: Counter[Kind] = Counter()
    with rt.db.transaction() as tx:
        rules = retention.rules(tx)
    with rt.db.transaction() as tx:
        gone.update(Kind(job.state) for job in pruning.jobs(tx, rules, at_most=at_most))
    with rt.db.transaction() as tx:
        gone[Kind.KEYS] += pruning.keys(tx, rules, at_most=at_most)
    for kind in (Kind.REFUSALS, Kind.ORPHANS, Kind.NOTICES):
        with rt.db.transaction() as tx:
            gone[kind] += pruning.rows(tx, rules, kind, at_most=at_most)
    return +gone


def everything(rt: Runtime, *, progress: Callable[[Counter[Kind]], None]) -> Counter[Kind]:
    """Remove all that has had its time; *progress* is told how many went so far. What somebody holds stays."""
    gone: Counter[Kind] = Counter()
    while batch := remove(rt):
        gone += batch
        progress(gone)
    if gone:
        log.info("prune.done", **{str(kind): count for kind, count in gone.items()})
    return gone


def due(rt: Runtime) -> list[Old]:
    """What would go now; nothing is removed."""
    with rt.db.transaction() as tx:
        return pruning.count(tx, retention.rules(tx))


class Pruner:
    """A worker's duty. One process at a time does it, for the sake of economy and not of safety."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt
        self._until = float("-inf")  # by the monotonic clock: when this process's turn ends
        self._gone: Counter[Kind] = Counter()

    def look(self) -> float | None:
        """Remove one batch of each kind, if it is our turn; gives how long to rest, or None when there is no more."""
        began = time.monotonic()
        if began >= self._until and not self._claim(began):
            return None
        batch = remove(self._rt)
        self._gone += batch
        now = time.monotonic()
        if batch and now < self._until:
            return REST * (now - began)
        self._until = float("-inf")
        if self._gone:
            log.info("prune.done", **{str(kind): count for kind, count in self._gone.items()})
            self._gone = Counter()
        return None

    def _claim(self, now: float) -> bool:
        with self._rt.db.transaction() as tx:
            if not pruning.claim(tx):
                return False
        self._until = now + RUN_S
        return True
