"""The trail: what people do is written down before it is done, and what came of it after."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline import telemetry
from pipeline.errors import PipelineError
from pipeline.runtime import Runtime
from pipeline.store import audit

log = telemetry.get(__name__)


@dataclass
class Entry:
    """One line of the trail, while the thing is being done. `target` may be set when it is known only then."""

    target: str | None


@contextmanager
def trail(
    rt: Runtime, who: str, door: str, action: str, target: object = None, **data: str | int | float | bool | None
) -> Iterator[Entry]:
    """
    Have one thing done under *who*'s name, within the block.

        with trail(rt, "Ann", "dashboard", "job.cancel", job_id):
            again.cancel(…)

    *data* is what was asked for, and holds no secret and no prompt. What raises is written down by its code; what
    breaks off stays without an outcome.

    Raises:
        Unavailable: The database is away, so it is not done either.
    """
    entry = Entry(None if target is None else str(target))
    with rt.db.transaction() as tx:
        entry_id = audit.begin(tx, who=who, door=door, action=action, target=entry.target, data=data)
    try:
        yield entry
    except PipelineError as error:
        with rt.db.transaction() as tx:
            audit.end(tx, entry_id, error.code)
        raise
    with rt.db.transaction() as tx:
        audit.end(tx, entry_id, target=entry.target)
    log.info("person.acted", who=who, door=door, action=action, target=entry.target)
