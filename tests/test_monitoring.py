"""The dashboard and the alerts that come with the product ask for figures that there are."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from pipeline.runtime import Runtime
from pipeline.store import stats
from pipeline.web import create_app
from pipeline.web.metrics import COUNTERS
from tests.conftest import Caller

FILES = Path(__file__).parents[1] / "pipeline" / "monitoring"
TOKEN = "a-token-for-prometheus"

ALERTS = {
    "PipelineDown",
    "PipelineAccountHalted",
    "PipelineSweepLate",
    "PipelineNoWorkers",
    "PipelineOldestDueLate",
    "PipelineWebhookShareFalling",
    "PipelineCallbacksForged",
    "PipelineDoubleCharge",
    "PipelineNeedsDecision",
    "PipelineDeadLetters",
    "PipelineReceiverOff",
    "PipelineOutputsUnarchived",
    "PipelineOutputsLost",
    "PipelineBudgetNearlySpent",
    "PipelineProviderFailing",
}
"""Names that others rely on."""

_NAME = re.compile(r"\b(?:pipeline_[a-z_]+|up)\b(?=\{|\[|\)| |$)")


@pytest.fixture
def told(make_rt: Callable[..., Runtime], rt: Runtime, caller: Caller) -> set[str]:
    """Give the names that a scrape has, some of everything having happened."""
    families = [one.measure for one in COUNTERS]
    with rt.db.transaction() as tx:
        stats.add(tx, [(caller.service.id, name + ("x" if name.endswith(".") else ""), 1.0) for name in families])
    with create_app(make_rt(metrics_token=SecretStr(TOKEN))).test_client() as client:
        text = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    found = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    names = {name for name, kind in found if kind != "histogram"}
    return names | {
        f"{name}_{part}" for name, kind in found if kind == "histogram" for part in ("bucket", "sum", "count")
    }


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FILES / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def asked(expression: str) -> set[str]:
    """The names of figures in an expression; words in quotes are none."""
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', expression)))


def test_every_alert_rings_on_a_figure_there_is_and_says_what_it_means(told: set[str]) -> None:
    """An alarm on a name that nobody exposes is silent for ever."""
    assert {rule["alert"] for rule in rules()} == ALERTS
    headings = re.findall(r"^## (\w+)$", (FILES.parent / "docs" / "operate.md").read_text(), re.MULTILINE)
    assert set(headings) >= ALERTS
    for rule in rules():
        names = asked(rule["expr"])
        assert names, rule["alert"]
        assert names - {"up"} <= told, rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.promtool
def test_the_alerts_ring_in_their_troubles_and_in_a_quiet_night_none_does() -> None:
    """An expression that is NaN without traffic, or looks at the wrong label, is only found by evaluating it."""
    done = subprocess.run(["promtool", "test", "rules", FILES / "alerts.test.yml"], check=False, capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    tried = yaml.safe_load((FILES / "alerts.test.yml").read_text())["tests"][1]["promql_expr_test"][-1]["exp_samples"]
    assert {re.findall(r'"(\w+)"', one["labels"])[0] for one in tried} == ALERTS


def test_the_dashboard_draws_figures_there_are(told: set[str]) -> None:
    """Each panel has its place, and none shows 'no data' because of its name."""
    board = json.loads((FILES / "grafana.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) > 20
    for panel in panels:
        for target in panel["targets"]:
            assert asked(target["expr"])
            assert asked(target["expr"]) <= told, panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(x < 24 for x, _ in cells)


def test_every_counter_is_drawn_or_rings() -> None:
    """What nobody would ever see need not be counted."""
    seen = {name for rule in rules() for name in asked(rule["expr"])}
    board = json.loads((FILES / "grafana.json").read_text())
    seen |= {name for panel in board["panels"] for one in panel.get("targets", ()) for name in asked(one["expr"])}
    assert {f"{one.name}_total" for one in COUNTERS} - seen == {"pipeline_attempts_started_total"}
