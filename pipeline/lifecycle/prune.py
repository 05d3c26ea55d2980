"""
Prune: what has had its time goes, in small transactions with pauses between them, so that nobody notices.

A worker does it when a sweep says so; `pipeline prune` does it all at once. Two at a time do no harm.
"""

import time
from collections import Counter
from collections.abc import Callable

from pipeline import telemetry
from pipeline.errors import StorageFailed
from pipeline.lifecycle.discard import discard
from pipeline.retention import BESIDE, Kind
from pipeline.runtime import Runtime
from pipeline.store import pruning, retention
from pipeline.store.pruning import BATCH, Old

log = telemetry.get(__name__)

RUN_S = 50.0
"""How long one process prunes before it lets the next sweep say who goes on, in seconds."""

REST = 3.0
"""How long a pruner rests between two batches, as a multiple of what the last one took."""


FILES = "files"
"""What stored files are counted as, beside the kinds."""

FILES_AT_ONCE = 50
"""How many files are removed between two batches: each may be a request to a bucket."""


def remove(rt: Runtime, *, at_most: int = BATCH) -> Counter[str]:
    """Remove one batch of each kind, each in a transaction of its own, and give how many went."""
    gone: Counter[str] = Counter()
    with rt.db.transaction() as tx:
        rules = retention.rules(tx)
    with rt.db.transaction() as tx:
        gone.update(str(job.state) for job in pruning.jobs(tx, rules, at_most=at_most))
    with rt.db.transaction() as tx:
        gone[Kind.KEYS] += pruning.keys(tx, rules, at_most=at_most)
    for kind in BESIDE:
        with rt.db.transaction() as tx:
            gone[kind] += pruning.rows(tx, rules, kind, at_most=at_most)
    gone[FILES] += _remove_files(rt)
    return +gone


def _remove_files(rt: Runtime) -> int:
    """Remove some of the files that no output has any more. While storage is away they wait."""
    with rt.db.transaction() as tx:
        left = pruning.leftovers(tx, at_most=FILES_AT_ONCE)
    removed = 0
    for one in left:
        try:
            removed += discard(rt, [one.storage_key])
        except StorageFailed as error:
            log.warning("prune.files_wait", why=error.detail)
            break
        with rt.db.transaction() as tx:
            pruning.forget_leftover(tx, one.storage_key, since=one.since)
    return removed


def everything(rt: Runtime, *, progress: Callable[[Counter[str]], None]) -> Counter[str]:
    """Remove all that has had its time; *progress* is told how many went so far. What somebody holds stays."""
    gone: Counter[str] = Counter()
    while batch := remove(rt):
        gone += batch
        progress(gone)
    if gone:
        log.info("prune.done", **gone)
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
        self._gone: Counter[str] = Counter()

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
            log.info("prune.done", **self._gone)
            self._gone = Counter()
        return None

    def _claim(self, now: float) -> bool:
        with self._rt.db.transaction() as tx:
            if not pruning.claim(tx):
                return False
        self._until = now + RUN_S
        return True
