"""
Metrics for Prometheus, read from the database at each scrape: whichever process answers, the figures are the same.

`GET /metrics` with `Authorization: Bearer METRICS_TOKEN`; there is no such page while that is unset. Gauges are of this
moment. Counters are `totals`: they run a minute and a half behind, never fall, and are kept through restarts.
"""

import hmac
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flask import Blueprint, Response, current_app, request
from flask.typing import ResponseReturnValue
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from pipeline import __version__, measures
from pipeline.errors import Unauthorized, UnknownPath
from pipeline.measures import BOUNDS, Latency
from pipeline.runtime import Runtime
from pipeline.settings import Limits
from pipeline.store import budgets, custody, gauges, services, stats
from pipeline.store.budgets import Purse
from pipeline.store.custody import AT_MOST, LOST_SINCE_DAYS, Custody
from pipeline.store.gauges import Standing

bp = Blueprint("metrics", __name__)


@bp.get("/metrics")
def metrics() -> ResponseReturnValue:
    """Give the figures in Prometheus's text format."""
    rt: Runtime = current_app.extensions["runtime"]
    token = rt.settings.metrics_token
    if token is None:
        raise UnknownPath
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not _same(given.strip(), token.get_secret_value()):
        raise Unauthorized("Send the header 'Authorization: Bearer <METRICS_TOKEN>'.")
    with rt.db.transaction() as tx:
        names = {str(one.id): one.name for one in services.everyone(tx)}
        by_measure: dict[str, dict[str, float]] = defaultdict(dict)
        for total in stats.totals(tx):
            by_measure[total.measure][total.service or ""] = total.value
        figures = Figures(
            custody=custody.custody(tx),
            now=gauges.standing(tx, window_s=rt.settings.submit_window_s),
            limits=rt.settings.limits,
            budgets=[(names.get(purse.scope, ""), purse) for purse in budgets.everything(tx)],
            totals=by_measure,
            services=sorted(names.values()),
        )
    registry = CollectorRegistry()
    registry.register(figures)
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter: its name, what it means, and its measure, or the family whose last word is the label."""

    name: str
    meaning: str
    measure: str
    label: str | None = None
    rare: bool = False  # zero is told of every service: an alarm hears of the first


COUNTERS = (
    Counter("pipeline_jobs_accepted", "Jobs accepted.", measures.ACCEPTED),
    Counter("pipeline_jobs_ended", "Jobs by how they ended; an expired one may end again.", "ended.", "state"),
    Counter("pipeline_jobs_settled", "Verdicts by what brought them.", "settled.", "via"),
    Counter("pipeline_attempts_started", "Paid POSTs begun.", measures.ATTEMPTS),
    Counter(
        "pipeline_attempts_answered",
        "Paid POSTs by what became of them; one that was lost and then found counts as both.",
        "attempts.",
        "outcome",
    ),
    Counter("pipeline_callbacks", "Authentic callbacks by verdict.", measures.CALLBACKS, "verdict"),
    Counter("pipeline_callbacks_forged", "Callbacks that the provider did not sign.", measures.FORGED, rare=True),
    Counter("pipeline_polls", "Tasks that the provider was asked about.", measures.POLLS),
    Counter(
        "pipeline_double_charges", "Charges beside another one of the same job.", measures.CHARGED_TWICE, rare=True
    ),
    Counter("pipeline_charges_in_vain", "Charges for jobs that had ended.", measures.CHARGED_IN_VAIN, rare=True),
    Counter("pipeline_spent_usd", "US dollars spent on jobs that completed.", measures.SPENT),
    Counter("pipeline_spent_beside_usd", "US dollars spent twice, in vain, or unheard of.", measures.SPENT_BESIDE),
    Counter("pipeline_archive_stored", "Outputs copied to storage of our own.", measures.OUTPUTS_STORED),
    Counter("pipeline_archive_stored_bytes", "Bytes of those.", measures.OUTPUTS_BYTES),
    Counter("pipeline_archive_lost", "Outputs that there will be no copy of.", measures.OUTPUTS_LOST, rare=True),
    Counter("pipeline_notifications_delivered", "Notifications delivered.", measures.NOTIFICATIONS_DELIVERED),
    Counter("pipeline_notifications_failed", "Tries to deliver that failed.", measures.NOTIFICATIONS_FAILED),
    Counter("pipeline_notifications_died", "Notifications given up.", measures.NOTIFICATIONS_DEAD, rare=True),
)

HISTOGRAMS = (
    ("pipeline_job_queued_seconds", "From when a job might run to its newest POST.", Latency.QUEUED),
    ("pipeline_job_provider_seconds", "From its newest POST to the verdict.", Latency.PROVIDER),
    ("pipeline_job_duration_seconds", "From when a job might run to the verdict.", Latency.TOTAL),
)


@dataclass(eq=False, slots=True)  # a registry knows its collectors by identity
class Figures(Collector):
    """All that is told."""

    custody: Custody
    now: Standing
    limits: Limits
    budgets: Sequence[tuple[str, Purse]]  # each with its service's name; '': the account's
    totals: Mapping[str, Mapping[str, float]]  # by measure and service; '': of none
    services: Sequence[str]

    def collect(self) -> Iterator[Metric]:
        """Give each figure with its name and meaning."""
        yield from self._of_custody()
        yield from self._of_now()
        yield from self._of_budgets()
        for counter in COUNTERS:
            yield self._counter(counter)
        for name, meaning, latency in HISTOGRAMS:
            yield self._histogram(name, meaning, latency)

    def _of_custody(self) -> Iterator[Metric]:
        now, counted = self.custody, f"counted up to {AT_MOST}"
        yield _by(
            "pipeline_outputs_unarchived",
            f"Outputs that only the provider has, by whole days until it deletes them; each {counted}.",
            "days_left",
            ((str(days), count) for days, count in now.unarchived.items()),
        )
        yield GaugeMetricFamily(
            "pipeline_outputs_unarchived_oldest_seconds",
            "Age of the oldest output that only the provider has; 0: there is none.",
            now.oldest_s or 0,
        )
        yield GaugeMetricFamily(
            "pipeline_outputs_lost",
            f"Outputs of the last {LOST_SINCE_DAYS} days of which there is no copy, and will be none; {counted}.",
            now.lost,
        )
        yield GaugeMetricFamily(
            "pipeline_outputs_quarantined", f"Flagged outputs that wait for a person; {counted}.", now.quarantined
        )
        yield GaugeMetricFamily(
            "pipeline_notifications_dead", f"Notifications that were given up; {counted}.", now.dead
        )
        yield GaugeMetricFamily(
            "pipeline_archiving", "1 while outputs are copied to storage of our own.", float(now.archiving)
        )

    def _of_now(self) -> Iterator[Metric]:
        now, never = self.now, float("inf")
        yield _by(
            "pipeline_jobs",
            f"Jobs that are looked after, by state; each counted up to {AT_MOST}.",
            "state",
            now.jobs.items(),
        )
        yield _by(
            "pipeline_oldest_due_seconds",
            "For how long the oldest alarm of a kind has been ringing; 0: none is."
            " Without paused services and receivers that are off.",
            "kind",
            now.overdue_s.items(),
        )
        cap = self.limits.max_in_flight
        for name, meaning, value in (
            ("pipeline_jobs_needing_decision", f"Jobs held for a person; counted up to {AT_MOST}.", now.held),
            ("pipeline_account_halted", "1 while the provider account is halted.", now.halted is not None),
            ("pipeline_account_backoff_seconds", "What is left of the account's backoff.", now.backoff_s),
            ("pipeline_in_flight", "Places at the provider that are taken.", now.in_flight),
            (
                "pipeline_in_flight_limit",
                "Places that may be taken: the level's, or fewer, as its refusals taught.",
                cap if now.in_flight_cap is None else min(cap, now.in_flight_cap),
            ),
            ("pipeline_submits_in_window", "Paid POSTs begun in the provider's last window.", now.starts),
            ("pipeline_submits_limit", "Paid POSTs that may begin in one window.", self.limits.submits_per_minute),
            ("pipeline_sweep_age_seconds", "Since the last sweep; +Inf: there never was one.", _or(now.swept_s, never)),
            (
                "pipeline_stats_age_seconds",
                "Since the end of the last minute that was counted into the totals; +Inf: none was.",
                _or(now.counted_s, never),
            ),
            ("pipeline_workers", "Worker processes that are alive.", now.workers),
            ("pipeline_endpoints_off", "Receivers of notifications that are switched off.", now.endpoints_off),
        ):
            yield GaugeMetricFamily(name, meaning, value=float(value))
        build = GaugeMetricFamily("pipeline_build_info", "1; the version that answers.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _of_budgets(self) -> Iterator[Metric]:
        used = GaugeMetricFamily(
            "pipeline_budget_used_usd",
            "US dollars spent or reserved in the present period; service '': of all.",
            labels=["service", "period"],
        )
        limit = GaugeMetricFamily(
            "pipeline_budget_limit_usd", "US dollars that may be spent in one period.", labels=["service", "period"]
        )
        for name, purse in self.budgets:
            used.add_metric([name, purse.period], float(purse.spent + purse.reserved))
            limit.add_metric([name, purse.period], float(purse.limit_usd))
        yield used
        yield limit

    def _counter(self, counter: Counter) -> Metric:
        labels = ["service", *([counter.label] if counter.label else [])]
        family = CounterMetricFamily(counter.name, f"{counter.meaning} By service; '': of none.", labels=labels)
        if counter.label:
            for measure, found in sorted(self.totals.items()):
                word = measure.removeprefix(counter.measure)
                if word != measure:
                    for service, value in found.items():
                        family.add_metric([service, word], value)
            return family
        found = self.totals.get(counter.measure, {})
        for service in ["", *self.services] if counter.rare else found:
            family.add_metric([service], found.get(service, 0.0))
        return family

    def _histogram(self, name: str, meaning: str, latency: Latency) -> Metric:
        family = HistogramMetricFamily(name, f"{meaning} Of jobs completed or failed.", labels=["service"])
        parts = [self.totals.get(measure, {}) for measure in measures.intervals(latency)]
        for service in sorted({service for part in parts for service in part}):
            so_far, buckets = 0.0, []
            for bound, part in zip(BOUNDS, parts, strict=True):
                so_far += part.get(service, 0.0)
                buckets.append((bound, so_far))
            seconds = self.totals.get(measures.sum_of(latency), {}).get(service, 0.0)
            family.add_metric([service], buckets, seconds)
        return family


def _by(name: str, meaning: str, label: str, found: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for value, figure in found:
        family.add_metric([value], float(figure))
    return family


def _or(seconds: float | None, otherwise: float) -> float:
    return otherwise if seconds is None else seconds
