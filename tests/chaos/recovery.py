"""
How soon the jobs of a killed worker are looked after.

From the kill to the first rung: each job it held has left `submitting`, and the provider's list was read for it, or its
callback came, or somebody else learnt how it went. The patience that follows a look is not part of it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.evidence import Evidence, Row
from tests.chaos.troubles import Kill

P95_S = 30.0
WORST_S = 60.0
MANY = 20
"""Of so many kills some must have hit a process with work in hand, or the measurement is blind."""

_RUNGS = {"attempt.looked_for", "attempt.look_failed", "job.processing", "job.completed", "job.failed", "job.queued"}


@dataclass(frozen=True)
class Recovery:
    """Seconds from each kill that left jobs behind; `kills` counts the others, too."""

    kills: int
    jobs: int
    seconds: Sequence[float]  # the slowest job's, kill by kill, ascending

    def quantile(self, share: float) -> float:
        """The time within which that share of the kills was recovered from."""
        if not self.seconds:
            return 0.0
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    @property
    def breaches(self) -> list[str]:
        """What took too long."""
        found = []
        if self.kills >= MANY and not self.seconds:
            found.append(f"of {self.kills} kills none was measured")
        if self.quantile(0.95) > P95_S:
            found.append(f"p95 is {self.quantile(0.95):.1f} s, not {P95_S:g} s")
        if self.quantile(1.0) > WORST_S:
            found.append(f"the worst is {self.quantile(1.0):.1f} s, not {WORST_S:g} s")
        return found


def measure(evidence: Evidence, kills: Sequence[Kill]) -> Recovery:
    """Measure every kill, from the rows that stand in the database."""
    events: defaultdict[str, list[Row]] = defaultdict(list)
    for event in evidence.events:
        events[event["job_id"]].append(event)
    seconds, jobs = [], 0
    for kill in kills:
        held = list(_held(evidence, kill))
        jobs += len(held)
        if held:
            seconds.append(max(_looked_after(events[job_id], kill.at) for job_id in held))
    return Recovery(len(kills), jobs, sorted(seconds))


def _held(evidence: Evidence, kill: Kill) -> Iterator[str]:
    """The jobs whose POST was under way, as far as anybody knew, in a worker that was killed."""
    dead = set()
    for pid in kill.pids:
        mine = [row for row in evidence.workers if row["pid"] == pid and row["started"] <= kill.at]
        dead |= {row["id"] for row in sorted(mine, key=lambda row: row["started"])[-1:]}
    for attempt in evidence.attempts:
        open_then = attempt["ended"] is None or attempt["ended"] > kill.at
        if attempt["worker_id"] in dead and open_then:
            yield attempt["job_id"]


def _looked_after(history: Sequence[Row], killed_at: float) -> float:
    """Seconds until the first rung; infinite if nobody ever looked."""
    return min(
        (event["at"] - killed_at for event in history if event["at"] > killed_at and event["kind"] in _RUNGS),
        default=float("inf"),
    )
