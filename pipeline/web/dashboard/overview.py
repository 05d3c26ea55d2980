"""Overview: whether all is well, and if not, what a person can do about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from flask import Blueprint, request, url_for
from flask.typing import ResponseReturnValue

from pipeline import measures
from pipeline.errors import FieldError, InvalidInput
from pipeline.jobs import Outcome, State, Via
from pipeline.measures import Latency
from pipeline.nudges import Nudger
from pipeline.outputs import SOURCE_DAYS
from pipeline.runtime import Runtime
from pipeline.settings import OFF
from pipeline.store import budgets, custody, gauges, stats, workers
from pipeline.store.alarms import DEAD_AFTER_S
from pipeline.store.budgets import Purse
from pipeline.store.custody import AT_MOST, LOST_SINCE_DAYS, Custody
from pipeline.store.gauges import Standing
from pipeline.web.dashboard import history, page
from pipeline.web.dashboard.words import count, duration, usd

bp = Blueprint("overview", __name__)

NEARLY = Decimal("0.9")
"""So much of a budget that is used is nearly all."""

LATE_S = 300.0
"""Minutes are counted half a minute after their end: later than this, the figures are old ones, and say so."""

_DAY = [measures.ENDED[state] for state in (State.COMPLETED, State.FAILED, State.EXPIRED)]
_HOUR = [
    *_DAY,
    measures.ATTEMPTS,
    *measures.OUTCOMES.values(),
    *measures.SETTLED.values(),
    *measures.intervals(Latency.TOTAL),
]


@bp.get("/")
def show() -> ResponseReturnValue:
    """Show how everything is; charts of the `period` that is asked for."""
    period = _period()
    rt = page.runtime()
    with rt.db.transaction() as tx:
        now = gauges.standing(tx, window_s=rt.settings.submit_window_s)
        upto = now.counted_upto or datetime.now(UTC).replace(second=0, microsecond=0)
        kept = custody.custody(tx)
        purses = budgets.named(tx)
        processes = workers.living(tx, dead_after_s=DEAD_AFTER_S)
        hour = Hour(stats.sums(tx, _HOUR, upto - timedelta(hours=1), upto))
        day = stats.sums(tx, _DAY, upto - timedelta(days=1), upto)
        found = history.read(tx, period, upto)
    return page.show(
        "overview.html",
        now=now,
        needs=list(needs(now, kept, purses, archive=rt.settings.archive_url != OFF)),
        hour=hour,
        day=[round(day[measures.ENDED[state]]) for state in (State.COMPLETED, State.FAILED)],
        upto=now.counted_upto,
        behind_s=now.counted_s if now.counted_s is not None and now.counted_s > LATE_S else None,
        period=period,
        periods=history.PERIODS,
        charts=history.drawn(found, period),
        limits=rt.settings.limits,
        places=min(now.in_flight_cap or rt.settings.limits.max_in_flight, rt.settings.limits.max_in_flight),
        purses=purses,
        nearly=NEARLY,
        custody=kept,
        days=SOURCE_DAYS,
        archive=_archive(rt),
        processes=processes,
        broker_fails=isinstance(rt.nudge, Nudger) and rt.nudge.failing,
        webhooks=rt.settings.public_url is not None,
        at_most=AT_MOST,
    )


def _period() -> history.Period:
    said = request.args.get("period", "1h")
    if said not in history.PERIODS:
        raise InvalidInput(errors=[FieldError("period", f"Must be one of {', '.join(history.PERIODS)}.")])
    return history.PERIODS[said]


def _archive(rt: Runtime) -> str | None:
    """Why this process keeps no outputs; None when it does."""
    if rt.storage is not None:
        return None
    if rt.settings.archive_url == OFF:
        return f"Outputs are not kept, by choice (ARCHIVE_URL=off): the provider deletes them after {SOURCE_DAYS} days."
    return f"Outputs are not kept: {rt.storage_problem}"


@dataclass(frozen=True, slots=True)
class Hour:
    """What happened in the last hour that was counted."""

    sums: Mapping[str, float]

    def ended(self, state: str) -> int:
        """How many jobs ended so."""
        return round(self.sums[measures.ENDED[State(state)]])

    @property
    def success(self) -> float | None:
        """The share of jobs that completed, of those that did, failed or expired."""
        return _share(self.sums[measures.ENDED[State.COMPLETED]], [self.sums[name] for name in _DAY])

    def took_s(self, q: float) -> float | None:
        """How long jobs took in all, as a quantile."""
        return measures.quantile(q, measures.counts(Latency.TOTAL, self.sums))

    @property
    def posts(self) -> int:
        """Paid POSTs begun."""
        return round(self.sums[measures.ATTEMPTS])

    @property
    def answers(self) -> list[tuple[Outcome, int]]:
        """How those were answered; what never was is left out."""
        counted = ((outcome, round(self.sums[measures.OUTCOMES[outcome]])) for outcome in Outcome)
        return [(outcome, many) for outcome, many in counted if many]

    @property
    def lost(self) -> float | None:
        """The share of POSTs whose answer was lost."""
        return _share(self.sums[measures.OUTCOMES[Outcome.LOST]], [self.sums[measures.ATTEMPTS]])

    @property
    def by_webhook(self) -> float | None:
        """The share of verdicts that webhooks brought, of all that the provider gave."""
        ways = (Via.WEBHOOK, Via.POLL, Via.LIST)
        return _share(self.sums[measures.SETTLED[Via.WEBHOOK]], [self.sums[measures.SETTLED[via]] for via in ways])


def _share(part: float, of: Sequence[float]) -> float | None:
    return part / sum(of) if sum(of) else None


@dataclass(frozen=True, slots=True)
class Need:
    """Something that needs a person: what it is, what to do about it, and where."""

    what: str
    do: str
    url: str
    link: str


def needs(
    now: Standing, kept: Custody, purses: Sequence[tuple[str | None, Purse]], *, archive: bool = True
) -> Iterator[Need]:
    """
    What needs a person now; that the account is halted, and that nobody sweeps, stands above every page.

    Whoever wants no *archive* knows that outputs are not kept.
    """
    if now.held:
        yield Need(
            f"{_many(now.held, 'job waits', 'jobs wait')} for a decision.",
            "Their POSTs were sent, and nobody knows whether they were paid: look at each, then adopt its task,"
            " submit it again, or give it up.",
            url_for("dashboard.jobs.show", held=1),
            "Jobs to decide",
        )
    if archive and kept.at_risk and kept.oldest_s is not None:
        left_s = SOURCE_DAYS * 86_400 - kept.oldest_s
        when = f"the first in {duration(left_s)}" if left_s > 0 else "at any moment"
        yield Need(
            f"Outputs are at risk: {_many(sum(kept.unarchived.values()), 'has', 'have')} no copy of ours,"
            f" and the provider deletes them, {when}.",
            "See why they are not copied: whether a worker runs, and whether the storage can be written.",
            "#custody",
            "Days that are left",
        )
    if now.endpoints_off:
        yield Need(
            f"{_many(now.endpoints_off, 'receiver is', 'receivers are')} switched off: nothing got through for days.",
            "Have their owners mend them, then switch them on again: what waits for them is sent.",
            url_for("dashboard.notifications.show"),
            "Receivers",
        )
    if kept.dead:
        yield Need(
            f"{_many(kept.dead, 'notification was', 'notifications were')} given up: nobody heard them.",
            "Send them again once the receiver works.",
            url_for("dashboard.notifications.show", state="dead"),
            "Dead letters",
        )
    if kept.quarantined:
        yield Need(
            f"{_many(kept.quarantined, 'output waits', 'outputs wait')} to be looked at, and nobody gets them before.",
            "Release them, or purge them.",
            url_for("dashboard.review.show"),
            "Review",
        )
    if kept.lost:
        yield Need(
            f"{_many(kept.lost, 'output was', 'outputs were')} lost in the last {LOST_SINCE_DAYS} days:"
            " the provider had deleted what was not copied yet.",
            "There will be no copy. Run those jobs again if they are needed.",
            url_for("dashboard.notifications.show", event="output.lost"),
            "Which they are",
        )
    for name, purse in purses:
        used = purse.spent + purse.reserved
        if used >= purse.limit_usd * NEARLY:
            whose = f"of {name}" if name else "of the account"
            yield Need(
                f"The {purse.period}'s budget {whose} is {'used up' if used >= purse.limit_usd else 'nearly used up'}:"
                f" {usd(used)} of {usd(purse.limit_usd)}.",
                "Jobs that it does not cover are refused. Raise it, or wait until it begins anew.",
                url_for("dashboard.services.show"),
                "Services and budgets",
            )


def _many(number: int, one: str, more: str) -> str:
    return f"{count(number, AT_MOST)} {one if number == 1 else more}"
