"""
The sweep: the one safety net. It finds the rows whose time has come and wakes who looks after them.

Beat runs it every 5 s; `pipeline sweep --loop` does it without a broker; a worker whose heartbeat finds that
nobody did for a while does it too. Any number of sweeps at once do no harm: each is a few guarded statements.
"""

import time
from collections.abc import Callable

from pipeline import telemetry
from pipeline.lifecycle.notify import PATIENCE_S
from pipeline.runtime import Runtime
from pipeline.settings import OFF
from pipeline.store import alarms, assets, custody, notifications, pauses, stats, workers
from pipeline.store.database import Transaction

log = telemetry.get(__name__)

MINUTES_AT_ONCE = 30
"""So many minutes are counted in one sweep, if that takes no longer than COUNTING_S seconds."""

COUNTING_S = 1.0


def sweep(rt: Runtime, wake: Callable[..., None]) -> list[str]:
    """
    Plan what is due and *wake* the duties for it, by name.

    Returns:
        The names of the duties woken.
    """
    with rt.db.transaction() as tx:
        workers.bury_neighbours(tx)
        abandoned = alarms.give_up_claims(tx)
        assets.give_up_claims(tx, dead_after_s=alarms.DEAD_AFTER_S)
        notifications.take_back(tx, dead_after_s=alarms.DEAD_AFTER_S)
    with rt.db.transaction() as tx:  # each by itself: budgets are locked after jobs, and not together with the account
        expired = alarms.expire_queued(tx)
    with rt.db.transaction() as tx:
        alarms.stop_asking(tx)
    with rt.db.transaction() as tx:
        pauses.park(tx)
    with rt.db.transaction() as tx:
        hopeless = notifications.bury(tx, patience_s=PATIENCE_S)
    with rt.db.transaction() as tx:
        at_risk = custody.tell_of_risk(tx) if rt.settings.archive_url != OFF else None
    with rt.db.transaction() as tx:
        due = alarms.due(tx)
        if notifications.are_due(tx):
            due.append("notify")
        tell_settings(rt, tx)
        workers.forget_dead(tx)
    if at_risk:
        log.error("outputs.at_risk", count=at_risk)
    if abandoned:
        log.warning("sweep.claims_given_up", count=len(abandoned))
    if expired:
        log.warning("sweep.jobs_expired", count=len(expired))
    if hopeless:
        log.warning("sweep.notifications_dead", count=hopeless)
    wake(*due)
    count_minutes(rt)  # last: nobody waits for it
    return due


def count_minutes(rt: Runtime) -> None:
    """Count what happened in the minutes that are over; after a time without sweeps some now, others next time."""
    until = time.monotonic() + COUNTING_S
    for _ in range(MINUTES_AT_ONCE):
        with rt.db.transaction() as tx:
            if stats.count_next(tx) is None:
                return
        if time.monotonic() > until:
            return


def tell_settings(rt: Runtime, tx: Transaction) -> None:
    """Let the database know what jobs get that do not say, and what becomes of their outputs."""
    alarms.tell_settings(
        tx,
        default_model=rt.settings.default_model,
        deadline_s=rt.settings.deadline_s,
        archiving=rt.storage is not None,
        nsfw_policy=rt.settings.nsfw_policy,
    )
