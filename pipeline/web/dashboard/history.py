"""What the overview's charts show: how it went over an hour, a day, a week or a month."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from sqlalchemy import Connection

from pipeline import measures
from pipeline.jobs import State, Via
from pipeline.measures import Latency
from pipeline.store import stats
from pipeline.store.stats import Series
from pipeline.store.tables import Verdict
from pipeline.web.dashboard import charts
from pipeline.web.dashboard.charts import Chart, Part
from pipeline.web.dashboard.words import duration, usd


@dataclass(frozen=True, slots=True)
class Period:
    """How far back charts go, and how far apart their points are, in seconds."""

    name: str
    long_s: int
    step_s: int
    each: str  # what a point is the sum of


PERIODS: Mapping[str, Period] = {
    one.name: one
    for one in (
        Period("1h", 3600, 60, "minute"),
        Period("24h", 86_400, 3600, "hour"),
        Period("7d", 7 * 86_400, 3 * 3600, "3 hours"),
        Period("30d", 30 * 86_400, 86_400, "day"),
    )
}

ODD = (*(one for one in Verdict.ALL if one not in {Verdict.APPLIED, Verdict.DUPLICATE}), "forged")
"""Callbacks that somebody may want to look at; that the provider repeats itself is nothing new."""

_LOOKS = ("a", "c", "d", "b", "e", "f")

_WANTED = (
    measures.ACCEPTED,
    *measures.ENDED.values(),
    *measures.SETTLED.values(),
    *measures.intervals(Latency.TOTAL),
    *measures.intervals(Latency.PROVIDER),
    *(measures.CALLBACKS + verdict for verdict in Verdict.ALL),
    measures.FORGED,
    measures.SPENT,
    measures.SPENT_BESIDE,
)


def read(tx: Connection, period: Period, until: datetime) -> Series:
    """All that the charts need, in one statement."""
    since = until - timedelta(seconds=period.long_s)
    return stats.series(tx, _WANTED, since, until, period.step_s)


def drawn(found: Series, period: Period) -> list[Chart]:
    """Give the charts of it; that of odd callbacks only if there were any."""
    odd = _callbacks(found, period)
    return [
        _throughput(found, period),
        _latency(found),
        _settled(found),
        _spent(found, period),
        *(() if odd.is_empty else (odd,)),
    ]


def _throughput(found: Series, period: Period) -> Chart:
    ended = measures.ENDED
    others = [found.points[ended[state]] for state in (State.EXPIRED, State.CANCELLED)]
    return Chart(
        f"Jobs per {period.each}",
        found.times,
        bars=[
            Part("completed", "a", found.points[ended[State.COMPLETED]]),
            Part("failed", "b", found.points[ended[State.FAILED]]),
            Part("expired or cancelled", "e", [sum(each) for each in zip(*others, strict=True)]),
        ],
        lines=[Part("accepted", "c", found.points[measures.ACCEPTED])],
        empty="No job came or ended.",
    )


def _latency(found: Series) -> Chart:
    lines = [
        Part(f"{name}, {label}", look, stats.quantiles_of(found, latency, q))
        for latency, name, looks in ((Latency.TOTAL, "in all", "ad"), (Latency.PROVIDER, "at the provider", "ce"))
        for (q, label), look in zip(((0.5, "p50"), (0.95, "p95")), looks, strict=True)
    ]
    return Chart(
        "How long jobs took",
        found.times,
        lines=lines,
        say=duration,
        scale=charts.durations,
        empty="No job was completed or failed by the provider.",
    )


def _settled(found: Series) -> Chart:
    """Tell what brought the verdicts, in per cent."""
    settled = {via: found.points[measures.SETTLED[via]] for via in (Via.WEBHOOK, Via.POLL, Via.LIST, Via.SUBMIT)}
    sums = [sum(each) for each in zip(*settled.values(), strict=True)]
    names = {Via.WEBHOOK: "webhook", Via.POLL: "poll", Via.LIST: "the provider's list", Via.SUBMIT: "refusal of a POST"}
    return Chart(
        "What brought the verdicts",
        found.times,
        bars=[Part(names[via], look, _shares(settled[via], sums)) for via, look in zip(settled, _LOOKS, strict=False)],
        say=lambda share: f"{share:.0f} %",
        scale=charts.percents,
        empty="No verdict came.",
    )


def _spent(found: Series, period: Period) -> Chart:
    return Chart(
        f"US dollars per {period.each}",
        found.times,
        bars=[
            Part("for completed jobs", "a", found.points[measures.SPENT]),
            Part("twice, or for nothing", "b", found.points[measures.SPENT_BESIDE]),
        ],
        say=lambda amount: usd(round(Decimal(amount), 2 if amount >= 1 else 4)),
        scale=charts.amounts,
        empty="Nothing was spent.",
    )


def _shares(values: Sequence[float], sums: Sequence[float]) -> list[float | None]:
    return [100 * value / whole if whole else None for value, whole in zip(values, sums, strict=True)]


def _callbacks(found: Series, period: Period) -> Chart:
    points = {verdict: found.points[measures.CALLBACKS + verdict] for verdict in Verdict.ALL}
    points["forged"] = found.points[measures.FORGED]
    bars = [Part(verdict, look, points[verdict]) for verdict, look in zip(ODD, _LOOKS, strict=True)]
    return Chart(f"Odd callbacks per {period.each}", found.times, bars=bars)
