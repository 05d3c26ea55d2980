"""The overview: its figures are the database's, and it says what needs a person, and what to do about it."""

import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import account, budgets, stats, workers
from pipeline.store.tables import new_id
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import (
    execute,
    kept,
    placed,
    processing,
    queued,
    scalar,
    state,
    submitting,
    swept,
    unknown,
)
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]

MINUTE = timedelta(minutes=1)


@pytest.fixture
def rt(rt: Runtime) -> Runtime:
    """Give a runtime that was swept just now."""
    execute(rt, "UPDATE account SET swept_at = clock_timestamp()")
    return rt


def counted(rt: Runtime) -> None:
    """Count the present minute, and the ones before, as if they were over."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    for back in (2, 1, 0):
        with rt.db.transaction() as tx:
            stats.count(tx, now - back * MINUTE)
    upto = now + MINUTE
    execute(rt, "INSERT INTO rollup VALUES (1, :at) ON CONFLICT (id) DO UPDATE SET upto = excluded.upto", at=upto)


def happened(rt: Runtime, at: datetime, service_id: Any, **measures: float) -> None:
    """Let something have been counted in a minute long ago."""
    for name, value in measures.items():
        for table in ("stats", "stats_hours"):
            execute(
                rt,
                f"INSERT INTO {table} VALUES (date_trunc(:unit, CAST(:at AS timestamptz), 'UTC'), :id, :name, :value)",
                unit="minute" if table == "stats" else "hour",
                at=at,
                id=service_id,
                name=name.replace("__", "."),
                value=value,
            )


def tiles(page: str) -> dict[str, str]:
    """Each tile's number by its label."""
    return {html.unescape(name): number for number, name in re.findall(r"<b>([^<]*)</b> <span>([^<]*)</span>", page)}


def part(page: str, name: str) -> str:
    """The text of a part of the page, as it reads."""
    found = re.search(rf'id="{name}" (?:class="[^"]*" )?data-live.*?(?=<(?:section|div) id="|</main>)', page, re.DOTALL)
    assert found, name
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found[0])))


def drawn(page: str) -> list[ET.Element]:
    return [ET.fromstring(one) for one in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_on_the_first_day_it_says_that_there_is_nothing_yet(visitor: Visitors, rt: Runtime) -> None:
    """Zeros and dashes, and no fault."""
    execute(rt, "DELETE FROM rollup")
    page = visitor().get("/").text
    assert "Nothing needs you." in page
    found = tiles(page)
    assert (found["queued"], found["unknown"], found["completed in 24 h"]) == ("0", "0", "0")
    assert (found["of an hour's jobs succeeded"], found["p50 in all, p95 –"]) == ("–", "–")
    assert "has not been counted yet" in page
    assert "No job came or ended." in page
    assert "No budget limits" in page
    assert "there is a copy of everything" in page
    assert "none yet" in part(page, "gauges")


def test_after_jobs_its_figures_are_the_databases(
    visitor: Visitors, rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: Callable[..., Worker]
) -> None:
    """Real jobs, through the provider's sandbox and a worker."""
    job_ids = [queued(rt, caller.service, prompt) for prompt in ("a mill", "a bridge", "a [sandbox:fail] cat")]
    worker = start_worker()
    swept(worker, lambda: all(state(rt, one) in {"completed", "failed"} for one in job_ids))
    counted(rt)
    page = visitor().get("/").text
    found = tiles(page)
    by_state = {
        name: scalar(rt, "SELECT count(*) FROM jobs WHERE state = :name", name=name) for name in ("completed", "failed")
    }
    assert by_state == {"completed": 2, "failed": 1}
    assert (found["completed in an hour"], found["completed in 24 h"]) == ("2", "2")
    assert (found["failed in an hour"], found["failed in 24 h"]) == ("1", "1")
    assert found["of an hour's jobs succeeded"] == "66.7 %"
    assert any(re.fullmatch(r"p50 in all, p95 [\d.]+ m?s", name) for name in found)
    assert (found["queued"], found["processing"]) == ("0", "0")
    words = part(page, "gauges")
    posts = scalar(rt, "SELECT count(*) FROM attempts")
    assert f"POSTs in an hour {posts} accepted {posts} " in words
    assert f"{posts} of 3,000" in words
    by_webhook = scalar(rt, "SELECT count(*) FROM jobs WHERE settled_by = 'webhook'")
    assert f"Verdicts by webhook {100 * by_webhook / 3:.1f} %" in words
    assert "Workers 1" in words
    assert str(scalar(rt, "SELECT pid FROM workers")) in words
    throughput, latency, verdicts, spent = drawn(page)
    assert re.search(r"Jobs per minute, .* accepted: at most [123], ", throughput.get("aria-label") or "")
    assert "p95: at most" in (latency.get("aria-label") or "")
    assert "for completed jobs: at most $0." in (spent.get("aria-label") or "")
    assert "webhook" in (verdicts.get("aria-label") or "")


def test_what_lives_is_told_by_state_and_leads_to_its_jobs(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    for one in (State.QUEUED, State.QUEUED, State.SUBMITTING, State.PROCESSING, State.UNKNOWN, State.UNKNOWN):
        placed(rt, caller.service, one)
    execute(
        rt,
        "UPDATE jobs SET held_at = clock_timestamp() WHERE id = (SELECT id FROM jobs WHERE state = 'unknown' LIMIT 1)",
    )
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() - interval '2 min' WHERE state = 'queued'")
    page = visitor(password=VIEWERS_PASSWORD).get("/").text
    found = tiles(page)
    assert [found[one] for one in ("queued", "submitting", "processing", "unknown")] == ["2", "1", "1", "2"]
    assert found["held for a decision"] == "1"
    assert found["longest wait of a job that may run"].startswith("2 min")
    for name in ("queued", "submitting", "processing", "unknown", "completed", "failed"):
        assert f'href="/jobs?state={name}"' in page
    assert "Tasks in flight 3 of 3,000" in part(page, "gauges")


def test_everything_that_needs_a_person_is_said_with_what_to_do(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    unknown(rt, caller.service)
    execute(rt, "UPDATE jobs SET held_at = clock_timestamp()")
    for n in range(2):
        kept(rt, caller.service, b"picture %d" % n)
    execute(rt, "UPDATE notifications SET state = 'dead', due_at = NULL")
    dead = scalar(rt, "SELECT count(*) FROM notifications")
    execute(rt, "UPDATE assets SET review = 'quarantined'")
    execute(rt, "INSERT INTO endpoints (name, off_at, probe_at) VALUES ('shop https://x', now(), now())")
    with rt.db.transaction() as tx:
        budgets.open_(tx, budgets.ACCOUNT, "day", Decimal("0.39"))
        budgets.open_(tx, str(caller.service.id), "month", Decimal(50))
        budgets.catch_up(tx)
    words = part(visitor().get("/").text, "needs")
    assert "Nothing needs you" not in words
    assert "1 job waits for a decision. Their POSTs were sent" in words
    assert "1 receiver is switched off" in words
    assert f"{dead} notifications were given up" in words
    assert "2 outputs wait to be looked at" in words
    assert "The day's budget of the account is nearly used up: $0.36 of $0.39. Jobs that it does not cover" in words
    assert "month's budget" not in words
    page = visitor().get("/").text
    for address in ("/jobs?held=1", "/notifications?state=dead", "/review", "/services", "/notifications"):
        assert f'href="{address}"' in page
    assert re.search(r'<meter min="0" max="0.39[0-9]*" .*?value="0.36', page)
    assert "Account, today $0.36 of $0.39" in part(page, "gauges")
    assert "shop, this month $0.36 of $50.00" in part(page, "gauges")


def test_outputs_at_risk_and_lost_are_told_with_the_days_that_are_left(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    for n, days in enumerate((0.5, 3.5, 3.6, 6.5)):
        kept(rt, caller.service, b"picture %d" % n)
        execute(
            rt,
            """
            UPDATE assets SET state = 'pending', storage_key = NULL, stored_at = NULL,
                created_at = clock_timestamp() - make_interval(secs => :days * 86400)
            WHERE state = 'stored'
            """,
            days=days,
        )
    kept(rt, caller.service, b"lost")
    execute(rt, "UPDATE assets SET state = 'lost' WHERE state = 'stored'")
    page = visitor().get("/").text
    words = part(page, "needs")
    assert "Outputs are at risk: 4 have no copy of ours, and the provider deletes them, the first in 1" in words
    assert "1 output was lost in the last 30 days" in words
    bars = {
        int(left): int(number)
        for left, number in re.findall(r'<th scope="row">(\d)</th><td class="n">([\d,]+)</td>', page)
    }
    assert bars == {0: 1, 1: 0, 2: 0, 3: 2, 4: 0, 5: 0, 6: 1}


def test_brakes_of_the_account_are_told(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    """Why so little is submitted must not be a riddle."""
    processing(rt, caller.service)
    execute(
        rt,
        "UPDATE account SET backoff_until = clock_timestamp() + interval '40 s', trial = true, in_flight_cap = 7",
    )
    words = part(visitor().get("/").text, "gauges")
    assert re.search(r"Backing off for \d+ s more", words)
    assert "one POST at a time" in words
    assert "7 tasks at a time" in words
    assert "Tasks in flight 1 of 7" in words


def test_what_is_a_banner_already_is_no_reason_to_say_that_all_is_well(visitor: Visitors, rt: Runtime) -> None:
    with rt.db.transaction() as tx:
        account.halt(tx, "no_credit", balance=0.0)
    words = part(visitor().get("/").text, "needs")
    assert "Nothing needs you but what is said above." in words


def test_each_period_has_its_own_steps(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    """A month is read off the hours, a minute's count is not in a chart of another time."""
    submitting(rt, caller.service)
    counted(rt)
    now = datetime.now(UTC)
    for days, value in ((0.5, 11), (3, 200), (20, 3000)):
        happened(rt, now - timedelta(days=days), caller.service.id, accepted=value, ended__completed=value)
    ann = visitor()
    for period, most in (("1h", "accepted: at most 1,"), ("24h", "11"), ("7d", "200"), ("30d", "3,000")):
        page = ann.get("/", params={"period": period}).text
        label = drawn(page)[0].get("aria-label") or ""
        assert (most if period == "1h" else f"completed: at most {most},") in label, period
        assert f'href="/?period={period}" aria-current="true"' in page
    assert tiles(ann.get("/").text)["completed in 24 h"] == "11"


def test_odd_callbacks_have_a_chart_only_when_there_are_any(visitor: Visitors, rt: Runtime) -> None:
    counted(rt)
    ann = visitor()
    assert len(drawn(ann.get("/").text)) == 4
    happened(rt, datetime.now(UTC) - 5 * MINUTE, stats.NOBODY, callbacks__suspicious=2, callbacks__applied=5)
    page = ann.get("/").text
    assert len(drawn(page)) == 5
    assert "suspicious: at most 2" in (drawn(page)[4].get("aria-label") or "")


@pytest.mark.parametrize("period", ["", "1y", "0", "<script>alert(1)</script>", "1h\x00"])
def test_a_period_that_there_is_not_is_said_to_be_wrong(visitor: Visitors, period: str) -> None:
    answer = visitor().get("/", params={"period": period})
    assert answer.status_code == 422
    assert "period: Must be one of 1h, 24h, 7d, 30d." in answer.text
    assert "<script>alert" not in answer.text


def test_names_of_others_are_shown_as_text(visitor: Visitors, rt: Runtime) -> None:
    """A worker's host says what it likes."""
    with rt.db.transaction() as tx:
        workers.beat(tx, new_id())
    execute(rt, "UPDATE workers SET host = '<script>alert(1)</script>'")
    page = visitor().get("/").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_old_figures_say_that_they_are(visitor: Visitors, rt: Runtime) -> None:
    """A count that stopped an hour ago must not look like a quiet hour."""
    execute(rt, "UPDATE rollup SET upto = upto - interval '2 h'")
    assert "nobody has counted for 2 h" in part(visitor().get("/").text, "tiles")
