"""What is asked of the product, measure by measure, and whether the results give it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.harness import Result

Results = Mapping[str, Result]
"""By the names of their cases."""


@dataclass(frozen=True, slots=True)
class Target:
    """One measure: how it is read from the results, what it must be at least, and what it should be."""

    measure: str
    case: str
    read: Callable[[Result], float | None]
    at_least: float
    aim: float
    more_is_better: bool = True
    unit: str = ""

    def verdict(self, value: float) -> str:
        """`aim`, `met` or `short`."""
        if self._reaches(value, self.aim):
            return "aim"
        return "met" if self._reaches(value, self.at_least) else "short"

    def _reaches(self, value: float, wanted: float) -> bool:
        return value >= wanted if self.more_is_better else value <= wanted


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measure, measured."""

    target: Target
    value: float

    @property
    def word(self) -> str:
        """`aim`, `met` or `short`."""
        return self.target.verdict(self.value)


def figure(side: str, name: str) -> Callable[[Result], float | None]:
    """The median of one figure."""
    return lambda result: result.median(side, name)


def ratio(side: str, other: str, name: str) -> Callable[[Result], float | None]:
    """How many times one side's median is another's."""

    def read(result: Result) -> float | None:
        one, two = result.median(side, name), result.median(other, name)
        return one / two if one is not None and two else None

    return read


def _against_polling(result: Result) -> float | None:
    pools = [result.median(f"Celery + SDK, {pool}, {_WAIT}", "jobs/s") for pool in _POOLS]
    best = max((rate for rate in pools if rate is not None), default=None)
    ours = result.median(f"ours, {_WAIT}", "jobs/s")
    return ours / best if ours is not None and best else None


_POOLS = ("prefork", "threads", "gevent")
_WAIT = "5 s"
_ALL = "settled, archived, notified"
_LARGE, _SMALL = "10,000,000 jobs", "10,000 jobs"

TARGETS = (
    Target("receiver against a minimal one, saturation", "receiver", ratio("ours", "minimal", "requests/s"), 0.75, 0.9),
    Target(
        "receiver, p99 at 200/s",
        "receiver",
        figure("ours", "p99 ms at 200/s"),
        50,
        25,
        more_is_better=False,
        unit=" ms",
    ),
    Target("end to end, settled by webhooks", "pipeline", figure("settled", "jobs/s"), 250, 450, unit=" jobs/s"),
    Target(
        "the same, files of 100 KB archived and callers told",
        "pipeline",
        figure(_ALL, "jobs/s"),
        80,
        150,
        unit=" jobs/s",
    ),
    Target(
        "against Celery and the SDK's polling, 5 s a generation, equal memory",
        "instead",
        _against_polling,
        5,
        20,
        unit=" ×",
    ),
    Target(
        "due → POST at 20 jobs/s, p50",
        "latency",
        figure("20 jobs/s", "due → POST, p50 ms"),
        20,
        10,
        more_is_better=False,
        unit=" ms",
    ),
    Target(
        "due → POST at 20 jobs/s, p95",
        "latency",
        figure("20 jobs/s", "due → POST, p95 ms"),
        50,
        25,
        more_is_better=False,
        unit=" ms",
    ),
    Target(
        "enqueued by batches over HTTP",
        "enqueue",
        figure("batch of 10,000 over HTTP", "jobs/s"),
        5_000,
        15_000,
        unit="/s",
    ),
    Target(
        "claim of 50 at 10 million rows against 10 thousand",
        "sizes",
        ratio(_LARGE, _SMALL, "claim of 50 ms"),
        1.5,
        1.1,
        more_is_better=False,
        unit=" ×",
    ),
    Target(
        "Celery messages a job under load",
        "pipeline",
        figure(_ALL, "Celery messages/job"),
        0.5,
        0.1,
        more_is_better=False,
    ),
    Target(
        "SQL statements a job, BEGIN and COMMIT too, enqueued to notified",
        "pipeline",
        figure(_ALL, "SQL statements/job"),
        8,
        5,
        more_is_better=False,
    ),
    Target(
        "polls a job with healthy webhooks",
        "pipeline",
        figure(_ALL, "polls/job"),
        0.05,
        0,
        more_is_better=False,
    ),
    *(
        Target(
            f"memory under load (PSS): {line}",
            "memory",
            figure("under load", f"PSS MB, {line}"),
            at_most,
            aim,
            more_is_better=False,
            unit=" MB",
        )
        for line, at_most, aim in (("web", 200, 120), ("worker", 250, 150), ("beat", 100, 70))
    ),
)


def judged(results: Results) -> Iterator[Verdict]:
    """Each target of which the results know something."""
    for target in TARGETS:
        value = target.read(results[target.case]) if target.case in results else None
        if value is not None:
            yield Verdict(target, value)
