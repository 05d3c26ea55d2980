"""What is asked of the product, measure by measure, and whether the results give it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.harness import Result

Results = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Target:
    """One measure: how it is read from the results, what it must be at least, and what it should be."""

    measure: str
    read: Callable[[Results], float | None]
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


def figure(case: str, side: str, name: str) -> Callable[[Results], float | None]:
    """The median of one figure."""

    def read(results: Results) -> float | None:
        return results[case].median(side, name) if case in results else None

    return read


def ratio(case: str, side: str, other: str, name: str) -> Callable[[Results], float | None]:
    """How many times one side's median is another's."""

    def read(results: Results) -> float | None:
        if case not in results:
            return None
        one, two = results[case].median(side, name), results[case].median(other, name)
        return one / two if one is not None and two else None

    return read


def best_of(case: str, sides: tuple[str, ...], name: str) -> Callable[[Results], float | None]:
    """The highest median of one figure over several sides."""

    def read(results: Results) -> float | None:
        found = [results[case].median(side, name) for side in sides] if case in results else []
        return max((value for value in found if value is not None), default=None)

    return read


def _against_polling(results: Results) -> float | None:
    polling = best_of("instead", tuple(f"Celery + SDK, {pool}, {_WAIT}" for pool in _POOLS), "jobs/s")(results)
    ours = figure("instead", f"ours, {_WAIT}", "jobs/s")(results)
    return ours / polling if ours is not None and polling else None


_POOLS = ("prefork", "threads", "gevent")
_WAIT = "5 s"
_ALL = "settled, archived, notified"
_LARGE, _SMALL = "10,000,000 jobs", "10,000 jobs"

TARGETS = (
    Target("receiver against a minimal one, saturation", ratio("receiver", "ours", "minimal", "requests/s"), 0.75, 0.9),
    Target(
        "receiver, p99 at 200/s",
        figure("receiver", "ours", "p99 ms at 200/s"),
        50,
        25,
        more_is_better=False,
        unit=" ms",
    ),
    Target("end to end, settled by webhooks", figure("pipeline", "settled", "jobs/s"), 250, 450, unit=" jobs/s"),
    Target(
        "the same, files of 100 KB archived and callers told",
        figure("pipeline", _ALL, "jobs/s"),
        80,
        150,
        unit=" jobs/s",
    ),
    Target("against Celery and the SDK's polling, 5 s a generation, equal memory", _against_polling, 5, 20, unit=" ×"),
    Target(
        "due → POST at 20 jobs/s, p50",
        figure("latency", "20 jobs/s", "due → POST, p50 ms"),
        20,
        10,
        more_is_better=False,
        unit=" ms",
    ),
    Target(
        "due → POST at 20 jobs/s, p95",
        figure("latency", "20 jobs/s", "due → POST, p95 ms"),
        50,
        25,
        more_is_better=False,
        unit=" ms",
    ),
    Target(
        "enqueued by batches over HTTP",
        figure("enqueue", "batch of 10,000 over HTTP", "jobs/s"),
        5_000,
        15_000,
        unit="/s",
    ),
    Target(
        "claim of 50 at 10 million rows against 10 thousand",
        ratio("sizes", _LARGE, _SMALL, "claim of 50 ms"),
        1.5,
        1.1,
        more_is_better=False,
        unit=" ×",
    ),
    Target(
        "Celery messages a job under load",
        figure("pipeline", _ALL, "Celery messages/job"),
        0.5,
        0.1,
        more_is_better=False,
    ),
    Target(
        "SQL statements a job, BEGIN and COMMIT too, enqueued to notified",
        figure("pipeline", _ALL, "SQL statements/job"),
        8,
        5,
        more_is_better=False,
    ),
    Target(
        "polls a job with healthy webhooks",
        figure("pipeline", _ALL, "polls/job"),
        0.05,
        0,
        more_is_better=False,
    ),
    *(
        Target(
            f"memory under load (PSS): {line}",
            figure("memory", "under load", f"PSS MB, {line}"),
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
        value = target.read(results)
        if value is not None:
            yield Verdict(target, value)
