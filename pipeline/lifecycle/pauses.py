"""Pause and resume a model. What is in flight is never touched, and deadlines go on."""

from collections.abc import Callable
from uuid import UUID

from pipeline.runtime import Runtime
from pipeline.store import pauses
from pipeline.store.database import Transaction
from pipeline.store.pauses import Batch


def pause(rt: Runtime, model: str) -> bool:
    """Begin no job of *model* from now on; new ones are accepted, and wait. False when it was paused before."""
    with rt.db.transaction() as tx:
        fresh = pauses.pause(tx, model)
    _in_batches(rt, lambda tx, after: pauses.park(tx, after=after))  # should this break off, the sweep goes on with it
    return fresh


def resume(rt: Runtime, model: str) -> bool:
    """Let the jobs of *model* go on; should this break off, the same again does the rest. False: it was not paused."""
    with rt.db.transaction() as tx:
        fresh = pauses.resume(tx, model)
    _in_batches(rt, lambda tx, after: pauses.free(tx, model, after=after))
    rt.nudge("submit")
    return fresh


def _in_batches(rt: Runtime, work: Callable[[Transaction, UUID], Batch]) -> None:
    after: UUID | None = pauses.FIRST
    while after is not None:
        with rt.db.transaction() as tx:
            batch = work(tx, after)
        after = batch.last if batch.count == pauses.BATCH else None
