"""Redeliver: a person has notifications sent again, or a receiver tried that was switched off."""

import time
from dataclasses import dataclass
from uuid import UUID

from pipeline import telemetry
from pipeline.errors import NotAllowedNow
from pipeline.runtime import Runtime
from pipeline.store import deliveries, endpoints, notifications
from pipeline.store.deliveries import Wanted

log = telemetry.get(__name__)


@dataclass(frozen=True, slots=True)
class Resent:
    """How many are sent again, and which of their receivers are switched off: those are sent nothing but probes."""

    count: int
    switched_off: list[str]
    finished: bool = True  # there are no more of them


def redeliver(rt: Runtime, wanted: Wanted, *, within_s: float = 3600.0) -> Resent:
    """Send them again from the beginning of the schedule, as many as can be planned within so many seconds."""
    count, receivers = 0, set[str | None]()
    last: UUID | None = None
    end = time.monotonic() + within_s
    finished = False
    while not finished and time.monotonic() < end:
        with rt.db.transaction() as tx:
            batch = deliveries.replay(tx, wanted, after=last)
        count += len(batch)
        receivers.update(one.endpoint for one in batch)
        last = batch[-1].id if batch else last
        rt.nudge("notify")
        finished = len(batch) < deliveries.REPLAYED_AT_A_TIME
    with rt.db.transaction() as tx:
        off = {one.name for one in endpoints.troubled(tx) if one.off_at}
    log.info("notifications.replayed", count=count)
    return Resent(count, sorted(off.intersection(receivers)), finished)


def switch_on(rt: Runtime, endpoint: str) -> None:
    """
    Send to an endpoint again that was switched off because it failed for days.

    Raises:
        NotAllowedNow: There is none of that name that is switched off.
    """
    with rt.db.transaction() as tx:
        if not endpoints.switch_on(tx, endpoint):
            raise NotAllowedNow(f"There is no endpoint {endpoint!r} that is switched off.")
        notifications.tell_of_endpoint(tx, "endpoint.switched_on", endpoint, {"by": "a person"})
    rt.nudge("notify")
