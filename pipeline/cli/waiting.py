"""Wait for jobs, with a progress bar, for as long as whoever waits likes."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline.cli.common import err
from pipeline.jobs import TOLD, State
from pipeline.runtime import Runtime
from pipeline.store import reading

LOOK_S = 0.2
"""How often the jobs are looked at; less often when there are so many that looking takes long."""

SHARE = 10
"""Of so much time, one part is spent looking."""

AT_ONCE = 1000
NAMED = 5


@dataclass(frozen=True)
class Waited:
    """What came of waiting: how many ended how, and which have not ended."""

    ended: Counter[str]
    open: Sequence[UUID]

    @property
    def well(self) -> bool:
        """All are completed."""
        return not self.open and set(self.ended) <= {State.COMPLETED}

    def say(self) -> None:
        """Name the jobs that go on without us, on standard error."""
        if not self.open:
            return
        named = ", ".join(map(str, self.open[:NAMED]))
        more = f" and {len(self.open) - NAMED:,} more" if len(self.open) > NAMED else ""
        one = len(self.open) == 1
        err.print(f"{len(self.open):,} {'job goes' if one else 'jobs go'} on: {named}{more} (see `pipeline jobs`)")


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error; what is given is called with how many are done, and what is done now."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=err) as shown:
        task = shown.add_task(what, total=total)

        def tell(done: int, now: str = what) -> None:
            shown.update(task, completed=done, description=now)

        yield tell


def wait_for(rt: Runtime, ids: Sequence[UUID], *, timeout_s: float | None = None) -> Waited:
    """Show progress until every job has ended, or *timeout_s* seconds are over."""
    ended: Counter[str] = Counter()
    left = list(ids)
    end = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    with progress("waiting", len(ids)) as shown:
        while True:
            begun = time.monotonic()
            left, moving = _look(rt, left, ended)
            shown(sum(ended.values()), ", ".join(f"{n:,} {state}" for state, n in sorted((ended + moving).items())))
            if not left or time.monotonic() >= end:
                return Waited(ended, left)
            took = time.monotonic() - begun
            time.sleep(max(0.0, min(max(LOOK_S, SHARE * took), end - time.monotonic())))


def _look(rt: Runtime, ids: Sequence[UUID], ended: Counter[str]) -> tuple[list[UUID], Counter[str]]:
    """Count those that have ended, and give the others, and in which states they are."""
    left: list[UUID] = []
    moving: Counter[str] = Counter()
    for start in range(0, len(ids), AT_ONCE):
        with rt.db.transaction() as tx:
            now = reading.states(tx, ids[start : start + AT_ONCE])
        for job_id, state in now.items():
            (ended if state in TOLD else moving)[state] += 1
            if state not in TOLD:
                left.append(job_id)
    return left, moving
