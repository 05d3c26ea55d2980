"""Metrics: every process tells the same figures, and each is what it says."""

from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from pipeline.jobs import State
from pipeline.lifecycle.hear import REFUSED
from pipeline.runtime import Runtime
from pipeline.store import account, budgets, stats, workers
from pipeline.store.tables import new_id
from pipeline.sweep import sweep
from pipeline.web import create_app
from pipeline.web.counts import Counts
from tests.conftest import Caller
from tests.factories import execute, placed, processing, queued, scalar, until
from tests.http import request

TOKEN = "a-token-for-prometheus"

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def client(make_rt: Callable[..., Runtime], rt: Runtime) -> Iterator[FlaskClient]:
    """Give a web process whose operator has set a token."""
    with create_app(make_rt(metrics_token=SecretStr(TOKEN))).test_client() as client:
        yield client


def scraped(client: FlaskClient) -> Callable[..., float | None]:
    """Scrape, and give a way to ask for a figure by name and labels."""
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    return lambda name, **labels: found.get((f"pipeline_{name}", frozenset(labels.items())))


def totalled(rt: Runtime, caller: Caller | None, measure: str, value: float) -> None:
    with rt.db.transaction() as tx:
        stats.add(tx, [(caller.service.id if caller else stats.NOBODY, measure, value)])


def test_an_empty_product_tells_zeros(rt: Runtime, client: FlaskClient) -> None:
    """An alarm on a figure that is not there never rings; a sweep that never was is as late as can be."""
    execute(rt, "DELETE FROM rollup")
    figure = scraped(client)
    assert [figure("jobs", state=state) for state in ("queued", "processing", "expired")] == [0, 0, 0]
    assert figure("oldest_due_seconds", kind="notifications") == 0
    assert (figure("double_charges_total", service=""), figure("callbacks_forged_total", service="")) == (0, 0)
    assert (figure("workers"), figure("account_halted"), figure("jobs_needing_decision")) == (0, 0, 0)
    assert figure("sweep_age_seconds") == figure("stats_age_seconds") == float("inf")
    assert (figure("in_flight_limit"), figure("submits_limit")) == (3000, 3000)
    assert figure("build_info", version="0.1.0") == 1


def test_figures_of_this_moment(rt: Runtime, caller: Caller, client: FlaskClient) -> None:
    """What lives, what is late, what the account may do and does."""
    for state in (State.QUEUED, State.QUEUED, State.SUBMITTING, State.UNKNOWN, State.COMPLETED):
        placed(rt, caller.service, state)
    processing(rt, caller.service)
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() - interval '100 s' WHERE state = 'unknown'")
    execute(
        rt,
        "UPDATE jobs SET due_at = clock_timestamp() + interval '100 s' WHERE state <> 'unknown' AND due_at IS NOT NULL",
    )
    with rt.db.transaction() as tx:
        workers.beat(tx, new_id())
        account.halt(tx, "no_credit", balance=0.0)
        budgets.open_(tx, budgets.ACCOUNT, "day", Decimal(10))
        budgets.open_(tx, str(caller.service.id), "month", Decimal(5))
    figure = scraped(client)
    assert [figure("jobs", state=one) for one in ("queued", "submitting", "processing", "unknown")] == [2, 1, 1, 1]
    unknown_s = figure("oldest_due_seconds", kind="unknown")
    assert unknown_s is not None
    assert 100 <= unknown_s < 160
    assert figure("oldest_due_seconds", kind="queued") == 0
    assert (figure("in_flight"), figure("submits_in_window")) == (3, 1)
    assert (figure("account_halted"), figure("workers")) == (1, 2)  # the claim's worker, too
    assert figure("budget_limit_usd", service="", period="day") == 10
    assert figure("budget_used_usd", service="shop", period="month") == pytest.approx(0.12)
    execute(rt, "UPDATE jobs SET held_at = clock_timestamp() WHERE state = 'unknown'")
    execute(rt, "UPDATE account SET in_flight_cap = 7")
    execute(rt, "UPDATE workers SET gone_at = clock_timestamp()")
    execute(rt, "UPDATE rollup SET upto = upto - interval '1 min'")
    execute(rt, "INSERT INTO endpoints (name, off_at, probe_at) VALUES ('shop https://x', now(), now())")
    sweep(rt, lambda *_: None)
    figure = scraped(client)
    assert (figure("jobs_needing_decision"), figure("in_flight"), figure("in_flight_limit")) == (1, 2, 7)
    assert (figure("workers"), figure("endpoints_off")) == (0, 1)
    age_s, counted_s = figure("sweep_age_seconds"), figure("stats_age_seconds")
    assert age_s is not None
    assert counted_s is not None
    assert age_s < 30 < counted_s


def test_what_cannot_be_looked_after_is_not_late(
    rt: Runtime, make_caller: Callable[..., Caller], client: FlaskClient
) -> None:
    """A paused service's queue, and letters to a receiver that is off, are somebody's decision and not a fault."""
    shop, crm = make_caller("shop"), make_caller("crm")
    for caller, minutes in ((shop, 60), (crm, 10)):
        job_id = queued(rt, caller.service)
        execute(rt, "UPDATE jobs SET due_at = now() - make_interval(mins => :m) WHERE id = :id", m=minutes, id=job_id)
        execute(
            rt,
            "INSERT INTO notifications (id, event, job_id, seq, endpoint, due_at)"
            " VALUES (gen_random_uuid(), 'job.failed', :id, 2, :name, now() - make_interval(mins => :m))",
            id=job_id,
            name=f"{caller.service.name} https://x",
            m=minutes,
        )

    def late() -> list[int]:
        figure = scraped(client)
        return [round((figure("oldest_due_seconds", kind=kind) or 0) / 60) for kind in ("queued", "notifications")]

    assert late() == [60, 60]
    execute(rt, "UPDATE services SET paused_at = now() WHERE name = 'shop'")
    execute(rt, "INSERT INTO endpoints (name, off_at, probe_at) VALUES ('shop https://x', now(), now())")
    assert late() == [10, 10]


def test_totals_are_counters_by_service(rt: Runtime, make_caller: Callable[..., Caller], client: FlaskClient) -> None:
    """What is rare is zero for everybody else, so that the first one is an increase."""
    shop, _ = make_caller("shop"), make_caller("crm")
    for measure, value in (
        ("accepted", 5),
        ("ended.completed", 3),
        ("settled.webhook", 2),
        ("attempts", 4),
        ("attempts.lost", 1),
        ("callbacks.late", 1),
        ("charges.twice", 1),
        ("spent_usd", 0.36),
        ("outputs.bytes", 1e9),
    ):
        totalled(rt, shop, measure, value)
    totalled(rt, None, "polls", 7)
    figure = scraped(client)
    assert figure("jobs_accepted_total", service="shop") == 5
    assert figure("jobs_accepted_total", service="crm") is None
    assert figure("jobs_ended_total", service="shop", state="completed") == 3
    assert figure("jobs_settled_total", service="shop", via="webhook") == 2
    assert figure("attempts_started_total", service="shop") == 4
    assert figure("attempts_answered_total", service="shop", outcome="lost") == 1
    assert figure("callbacks_total", service="shop", verdict="late") == 1
    assert [figure("double_charges_total", service=one) for one in ("shop", "crm", "")] == [1, 0, 0]
    assert figure("spent_usd_total", service="shop") == 0.36
    assert figure("archive_stored_bytes_total", service="shop") == 1e9
    assert figure("polls_total", service="") == 7


def test_durations_are_histograms(rt: Runtime, caller: Caller, client: FlaskClient) -> None:
    """Cumulative, as Prometheus wants them; every bucket is there, also where nothing fell in."""
    for measure, value in (("total_s.0.5", 3), ("total_s.5", 2), ("total_s.+Inf", 1), ("total_s.sum", 4007.5)):
        totalled(rt, caller, measure, value)
    figure = scraped(client)
    found = [
        figure("job_duration_seconds_bucket", service="shop", le=bound)
        for bound in ("0.25", "0.5", "1", "2.5", "5", "3600", "+Inf")
    ]
    assert found == [0, 3, 3, 3, 5, 5, 6]
    assert figure("job_duration_seconds_count", service="shop") == 6
    assert figure("job_duration_seconds_sum", service="shop") == 4007.5


def test_every_figure_says_what_it_is(rt: Runtime, caller: Caller, client: FlaskClient) -> None:
    """Under names of one product, in base units."""
    totalled(rt, caller, "accepted", 1)
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    families = list(text_string_to_metric_families(answer.text))
    assert len(families) == len({family.name for family in families}) > 30
    for family in families:
        assert family.name.startswith("pipeline_")
        assert len(family.documentation) > 10
        assert family.type != "unknown"
        assert not family.name.endswith(("_ms", "_minutes", "_kb"))


def test_forgeries_of_all_web_processes_are_added_up(rt: Runtime, caller: Caller, web: str) -> None:
    """Each counts in memory: a stranger must not be able to make us write. A thread writes the sums down."""
    for _ in range(3):
        assert request("POST", f"{web}/webhooks/wavespeed/{'x' * 32}", b"{}").status == 401
    total = "SELECT value FROM totals WHERE measure = 'forged'"
    until(lambda: scalar(rt, total) == 3)
    counts = Counts(rt.db)
    REFUSED.take()
    REFUSED.count()
    counts.look()
    counts.look()
    assert scalar(rt, total) == 4
    REFUSED.count()
    counts.stop()
    assert scalar(rt, total) == 5
