"""
Metrics for Prometheus, read from the database at each scrape: whichever process answers, the figures are the same.

`GET /metrics` with `Authorization: Bearer METRICS_TOKEN`; there is no such page while that is unset.
"""

import hmac
from collections.abc import Iterator

from flask import Blueprint, Response, current_app, request
from flask.typing import ResponseReturnValue
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from pipeline.errors import Unauthorized, UnknownPath
from pipeline.runtime import Runtime
from pipeline.store.custody import AT_MOST, LOST_SINCE_DAYS, Custody, custody

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
        now = custody(tx)
    registry = CollectorRegistry()
    registry.register(_Figures(now))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Figures(Collector):
    """What is told of custody."""

    def __init__(self, now: Custody) -> None:
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Give each figure with its name and meaning."""
        counted = f"counted up to {AT_MOST}"
        unarchived = GaugeMetricFamily(
            "pipeline_outputs_unarchived",
            f"Outputs that only the provider has, by whole days until it deletes them; each {counted}.",
            labels=["days_left"],
        )
        for days, count in self._now.unarchived.items():
            unarchived.add_metric([str(days)], count)
        yield unarchived
        for name, meaning, value in (
            (
                "pipeline_outputs_unarchived_oldest_seconds",
                "Age of the oldest output that only the provider has; 0: there is none.",
                self._now.oldest_s or 0,
            ),
            (
                "pipeline_outputs_lost",
                f"Outputs of the last {LOST_SINCE_DAYS} days of which there is no copy, and will be none; {counted}.",
                self._now.lost,
            ),
            (
                "pipeline_outputs_quarantined",
                f"Flagged outputs that wait for a person; {counted}.",
                self._now.quarantined,
            ),
            ("pipeline_notifications_dead", f"Notifications that were given up; {counted}.", self._now.dead),
            ("pipeline_archiving", "1 while outputs are copied to storage of our own.", self._now.archiving),
        ):
            yield GaugeMetricFamily(name, meaning, value=float(value))


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())
