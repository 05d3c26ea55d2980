"""Statistics: each minute is counted once, whoever counts it and however often; the totals never fall."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import measures
from pipeline.jobs import Outcome, State, Via
from pipeline.lifecycle import prune
from pipeline.lifecycle.hear import hear
from pipeline.measures import BOUNDS_S, Latency, quantile
from pipeline.retention import Kind
from pipeline.runtime import Runtime
from pipeline.store import alarms, assets, budgets, notifications, stats
from pipeline.store.answers import Answer, record
from pipeline.store.budgets import Charge
from pipeline.store.moves import Move, advance
from pipeline.store.tables import id_from, new_id
from pipeline.sweep import count_minutes
from tests.conftest import WEBHOOK_SECRET, Caller
from tests.factories import (
    MODEL,
    Attempted,
    at_once,
    encoded,
    execute,
    kept,
    placed,
    prediction,
    processing,
    queued,
    scalar,
    signed,
    submitting,
    until,
)

MINUTE = timedelta(minutes=1)

ACCEPTED_AT = """
    INSERT INTO jobs (id, service_id, model, input, due_at, deadline_at)
    VALUES (:id, :service_id, :model, '{"prompt": "a lighthouse"}', now() + interval '1 h', now() + interval '2 h')
"""


def present_minute() -> datetime:
    """When the present minute began."""
    return datetime.now(UTC).replace(second=0, microsecond=0)


def accepted_in(rt: Runtime, caller: Caller, at: datetime, many: int = 1) -> None:
    """Jobs whose ids were made in that minute."""
    for _ in range(many):
        job_id = UUID(int=id_from(at.timestamp() + 30).int | new_id().int & (1 << 64) - 1)
        execute(rt, ACCEPTED_AT, id=job_id, service_id=caller.service.id, model=MODEL)


def counted_from(rt: Runtime, at: datetime) -> None:
    """Let everything before *at* be counted already."""
    execute(rt, "INSERT INTO rollup VALUES (1, :at) ON CONFLICT (id) DO UPDATE SET upto = excluded.upto", at=at)


def present(rt: Runtime) -> None:
    """Count the present minute and the one before, as if they were over."""
    now = present_minute()
    for at in (now - MINUTE, now):
        with rt.db.transaction() as tx:
            stats.count(tx, at)


def rows(rt: Runtime, table: str) -> dict[str, float]:
    """The sums by measure, of all minutes or ever."""
    with rt.db.transaction() as tx:
        found = tx.exec_driver_sql(f"SELECT measure, sum(value) FROM {table} GROUP BY 1")
        return {row.measure: row.sum for row in found}


def plain(found: dict[str, float]) -> dict[str, float]:
    """Those that are no durations."""
    return {name: round(value, 6) for name, value in found.items() if name.partition(".")[0] not in set(Latency)}


def heard(rt: Runtime, job: Attempted, **fields: Any) -> None:
    body = encoded(prediction(job, **fields))
    hear(rt, job.token, signed(WEBHOOK_SECRET, body), body)


def test_what_happens_is_counted_by_what_it_was(rt: Runtime, caller: Caller) -> None:
    """One of each: a dashboard that misnames what it counts is worse than none."""
    job = processing(rt, caller.service)
    heard(rt, job)
    heard(rt, job)
    heard(rt, processing(rt, caller.service), status="failed")
    with rt.db.transaction() as tx:
        polled = processing(rt, caller.service)
        advance(tx, [Move(polled.job_id, State.COMPLETED, via=Via.POLL, outputs=[])])
    expired = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        advance(tx, [Move(expired.job_id, State.EXPIRED, due_s=60.0, via=Via.DEADLINE)])
    cancelled = queued(rt, caller.service)
    with rt.db.transaction() as tx:
        advance(tx, [Move(cancelled, State.CANCELLED)])
    lost = submitting(rt, caller.service)
    with rt.db.transaction() as tx:
        move = Move(lost.job_id, State.UNKNOWN, attempt_id=lost.attempt_id, due_s=2.0)
        record(tx, [Answer(lost.attempt_id, Outcome.LOST, move)])
    submitting(rt, caller.service)
    kept(rt, caller.service, b"nine bytes")
    present(rt)
    assert plain(rows(rt, "totals")) == {
        "accepted": 8,
        "ended.completed": 3,
        "ended.failed": 1,
        "ended.expired": 1,
        "ended.cancelled": 1,
        "settled.webhook": 2,
        "settled.poll": 1,
        "settled.deadline": 1,
        "attempts": 7,
        "attempts.accepted": 5,
        "attempts.lost": 1,
        "callbacks.applied": 2,
        "callbacks.duplicate": 1,
        "spent_usd": 0.36,
        "outputs.stored": 1,
        "outputs.bytes": 10,
    }
    assert rows(rt, "stats") == rows(rt, "totals")
    with rt.db.transaction() as tx:
        names = {total.service for total in stats.totals(tx)}
    assert names == {"shop"}


def test_how_long_jobs_took_is_counted_by_intervals(rt: Runtime, caller: Caller) -> None:
    """Exact at the bounds, whatever a clock did; what was never submitted took no time at the provider."""
    for queued_s, provider_s in ((0.1, 2.5), (0.2, 2.6), (-5, 4000)):
        job_id = processing(rt, caller.service).job_id
        with rt.db.transaction() as tx:
            advance(tx, [Move(job_id, State.COMPLETED, via=Via.POLL, outputs=[])])
        execute(
            rt,
            "UPDATE jobs SET submitted_at = finished_at - make_interval(secs => :p),"
            " run_at = finished_at - make_interval(secs => CAST(:p AS float8)) - make_interval(secs => :q)"
            " WHERE id = :id",
            p=provider_s,
            q=queued_s,
            id=job_id,
        )
    placed(rt, caller.service, State.FAILED)
    present(rt)
    found = rows(rt, "totals")
    assert {name: value for name, value in found.items() if name.partition(".")[0] in set(Latency)} == {
        "queued_s.0.1": 2,
        "queued_s.0.25": 1,
        "queued_s.sum": pytest.approx(0.3),
        "provider_s.2.5": 1,
        "provider_s.5": 1,
        "provider_s.+Inf": 1,
        "provider_s.sum": pytest.approx(4005.1),
        "total_s.5": 2,
        "total_s.+Inf": 1,
        "total_s.sum": pytest.approx(2.6 + 2.8 + 3995),
    }


def test_a_minute_counted_twice_is_counted_once(rt: Runtime, caller: Caller) -> None:
    """A sweep may break off after its commit, or two may overlap."""
    now = present_minute()
    accepted_in(rt, caller, now - 5 * MINUTE, 3)
    heard(rt, processing(rt, caller.service))
    for _ in range(3):
        with rt.db.transaction() as tx:
            stats.count(tx, now - 5 * MINUTE)
        present(rt)
        assert rows(rt, "totals")["accepted"] == 4
        assert rows(rt, "stats") == rows(rt, "totals")
        assert rows(rt, "totals")["ended.completed"] == 1


def test_sweepers_at_once_count_each_minute_once(rt: Runtime, caller: Caller) -> None:
    """Every worker sweeps when beat is away; nobody waits for who counts already."""
    now = present_minute()
    for back in range(3, 23):
        accepted_in(rt, caller, now - back * MINUTE, back)
    counted_from(rt, now - 23 * MINUTE)
    sweeps = at_once(lambda _: count_minutes(rt), 4)
    assert len(sweeps) == 4
    until(lambda: counted(rt) >= now - 3 * MINUTE)
    assert rows(rt, "totals") == {"accepted": sum(range(3, 23))}
    points = series(rt, ["accepted"], now - 22 * MINUTE, now - 2 * MINUTE)
    assert points["accepted"] == list(range(22, 2, -1))


def counted(rt: Runtime) -> datetime:
    """Count what is over; up to when is it now?"""
    count_minutes(rt)
    with rt.db.transaction() as tx:
        upto = stats.counted_upto(tx)
    assert upto
    return upto


def series(rt: Runtime, wanted: Sequence[str], since: datetime, until: datetime) -> dict[str, Sequence[float]]:
    with rt.db.transaction() as tx:
        return dict(stats.series(tx, wanted, since, until, 60).points)


def test_what_commits_after_its_minute_was_counted_is_counted_later(rt: Runtime, caller: Caller) -> None:
    """Callers queue jobs in transactions of their own, and an attempt's outcome comes when its answer does."""
    now = present_minute()
    counted_from(rt, now - 20 * MINUTE)
    accepted_in(rt, caller, now - 20 * MINUTE)
    with rt.db.transaction() as tx:
        assert stats.count_next(tx) == now - 20 * MINUTE
    assert rows(rt, "totals") == {"accepted": 1}
    accepted_in(rt, caller, now - 20 * MINUTE, 2)
    for back in (19, 18):
        with rt.db.transaction() as tx:
            assert stats.count_next(tx) == now - back * MINUTE
        assert rows(rt, "totals") == {"accepted": 1}
    with rt.db.transaction() as tx:
        stats.count_next(tx)
    assert rows(rt, "totals") == rows(rt, "stats") == {"accepted": 3}
    assert series(rt, ["accepted"], now - 20 * MINUTE, now - 18 * MINUTE) == {"accepted": [3, 0]}


def test_an_open_minute_is_left_alone(rt: Runtime, caller: Caller) -> None:
    """Its answers are still to come; so are those of one that ended only just now."""
    now = present_minute()
    accepted_in(rt, caller, now)
    counted_from(rt, now)
    with rt.db.transaction() as tx:
        assert stats.count_next(tx) is None
    assert rows(rt, "totals") == {}


def test_after_an_outage_minutes_are_caught_up_a_bounded_number_at_a_time(rt: Runtime, caller: Caller) -> None:
    """A day without sweeps must not make the first one last for minutes."""
    now = present_minute()
    for back in (95, 50, 5):
        accepted_in(rt, caller, now - back * MINUTE)
    counted_from(rt, now - 95 * MINUTE)
    first = counted(rt)
    assert now - 95 * MINUTE < first <= now - 64 * MINUTE
    until(lambda: counted(rt) >= now - 4 * MINUTE)
    assert rows(rt, "totals") == {"accepted": 3}


def test_the_first_count_of_all_begins_half_an_hour_ago(rt: Runtime, caller: Caller) -> None:
    """A database with a history of years is not counted through when this comes to it."""
    now = present_minute()
    execute(rt, "DELETE FROM rollup")
    accepted_in(rt, caller, now - 100 * MINUTE)
    accepted_in(rt, caller, now - 10 * MINUTE)
    until(lambda: counted(rt) >= now - 5 * MINUTE)
    assert rows(rt, "totals") == {"accepted": 1}


def test_totals_stay_when_jobs_go(rt: Runtime, caller: Caller) -> None:
    """Prometheus takes a counter that falls for a restart, and counts everything again."""
    execute(rt, "INSERT INTO retention (scope, kind, age_s) VALUES ('all', 'completed', 172800)")
    heard(rt, processing(rt, caller.service))
    execute(rt, "UPDATE notifications SET due_at = NULL, state = 'delivered'")
    execute(rt, "UPDATE assets SET due_at = NULL")
    present(rt)
    before = rows(rt, "totals")
    assert before["ended.completed"] == 1
    execute(rt, "UPDATE jobs SET finished_at = finished_at - interval '3 days'")
    assert prune.remove(rt)[Kind.COMPLETED] == 1
    present(rt)
    assert rows(rt, "totals") == before == rows(rt, "stats")


def test_a_job_that_expired_and_then_completed_is_counted_as_both(rt: Runtime, caller: Caller) -> None:
    """Both happened; its row tells of the last only."""
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.EXPIRED, due_s=60.0, via=Via.DEADLINE)])
    heard(rt, job)
    present(rt)
    found = rows(rt, "totals")
    assert (found["ended.expired"], found["ended.completed"]) == (1, 1)
    assert (found["settled.deadline"], found["settled.webhook"]) == (1, 1)


def test_what_an_expired_task_cost_is_counted_once_whatever_comes_later(rt: Runtime, caller: Caller) -> None:
    """It counts as spent when nobody asks any more; a verdict days later spends nothing."""
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.EXPIRED, due_s=60.0, via=Via.DEADLINE)])
    execute(rt, "UPDATE jobs SET deadline_at = clock_timestamp() - interval '25 h'")
    with rt.db.transaction() as tx:
        assert alarms.stop_asking(tx) == [job.job_id]
    heard(rt, job)
    present(rt)
    found = rows(rt, "totals")
    assert found["ended.completed"] == 1
    assert plain(found)["spent_beside_usd"] == 0.12
    assert "spent_usd" not in found


def test_the_rare_is_counted_as_it_happens(rt: Runtime, caller: Caller) -> None:
    """Second charges, lost outputs, dead notifications: nothing finds them by time later, and alarms hang on them."""
    with rt.db.transaction() as tx:
        budgets.spend(
            tx,
            [
                Charge(caller.service.id, Decimal("0.12")),
                Charge(caller.service.id, None),
                Charge(caller.service.id, Decimal("0.12"), in_vain=True),
            ],
        )
    heard(rt, processing(rt, caller.service))
    execute(rt, "UPDATE assets SET created_at = created_at - interval '8 days', due_at = NULL")
    with rt.db.transaction() as tx:
        assets.count_lost(tx, assets.lose_old(tx))
    ids = [UUID(str(scalar(rt, "SELECT id FROM notifications LIMIT 1")))]
    with rt.db.transaction() as tx:
        notifications.plan_for_operator(tx, "x", {})
    ids.append(scalar(rt, "SELECT id FROM notifications WHERE audience = 'operator'"))
    with rt.db.transaction() as tx:
        notifications.count_dead(tx, ids)
    found = rows(rt, "totals")
    assert found == rows(rt, "stats")
    assert plain(found) == {
        "charges.twice": 2,
        "charges.in_vain": 1,
        "spent_beside_usd": 0.24,
        "outputs.lost": 1,
        "notifications.dead": 2,
    }


def test_deliveries_are_counted_by_how_they_went(rt: Runtime, caller: Caller) -> None:
    """Each try is one, so that a receiver that fails shows before anything is given up."""
    heard(rt, processing(rt, caller.service))
    execute(
        rt,
        "INSERT INTO deliveries (notification_id, number, target, error)"
        " SELECT id, n, 'https://x', CASE WHEN n < 3 THEN 'It answers 500.' END"
        " FROM notifications, generate_series(1, 3) n",
    )
    present(rt)
    found = rows(rt, "totals")
    assert (found["notifications.failed"], found["notifications.delivered"]) == (2, 1)


def test_news_of_many_at_once_add_up(rt: Runtime, caller: Caller) -> None:
    """Whoever adds waits for nobody in a circle, in whatever order they name what they add."""
    other = new_id()
    news = [(caller.service.id, "polls", 1.0), (other, "polls", 2.0), (other, "forged", 3.0)]

    def add(number: int) -> None:
        for _ in range(20):
            with rt.db.transaction() as tx:
                stats.add(tx, news if number % 2 else reversed(news))

    at_once(add, 6)
    assert rows(rt, "totals") == rows(rt, "stats") == {"polls": 360, "forged": 360}


def test_series_are_evenly_spaced_and_bounded(rt: Runtime, make_caller: Callable[..., Caller]) -> None:
    """A chart has a point for every step, zeros too; nobody can ask for a million."""
    now = present_minute()
    shop, crm = make_caller("shop"), make_caller("crm")
    accepted_in(rt, shop, now - 12 * MINUTE, 2)
    accepted_in(rt, crm, now - 11 * MINUTE)
    for back in (12, 11):
        with rt.db.transaction() as tx:
            stats.count(tx, now - back * MINUTE)
    since, end = now - 15 * MINUTE, now - 10 * MINUTE
    with rt.db.transaction() as tx:
        every = stats.series(tx, ["accepted", "polls"], since, end, 60)
        assert every.points == {"accepted": [0, 0, 0, 2, 1], "polls": [0] * 5}
        assert every.times == [since + n * MINUTE for n in range(5)]
        ours = stats.series(tx, ["accepted"], since, end, 60, service_id=crm.service.id)
        assert ours.points == {"accepted": [0, 0, 0, 0, 1]}
        wide = stats.series(tx, ["accepted"], since, end, 3600)
        assert (sum(wide.points["accepted"]), len(wide.points["accepted"]) <= 2) == (3, True)
        assert wide.since.minute == 0
        assert stats.sums(tx, ["accepted", "polls"], since, end) == {"accepted": 3, "polls": 0}
        assert stats.sums(tx, ["accepted"], since, end, service_id=shop.service.id) == {"accepted": 2}
        for step_s, days in ((60, 2), (90, 0), (0, 0), (-60, 0), (30, 0)):
            with pytest.raises(ValueError, match="step_s"):
                stats.series(tx, ["accepted"], end - timedelta(days=days), end, step_s)


def test_quantiles_are_told_step_by_step(rt: Runtime, caller: Caller) -> None:
    """None where nothing ended: a chart has a gap there, and not a zero."""
    now = present_minute()
    with rt.db.transaction() as tx:
        for bound, many in (("1", 90), ("5", 10)):
            tx.exec_driver_sql(
                "INSERT INTO stats VALUES (%s, %s, %s, %s)",
                (now - 3 * MINUTE, caller.service.id, f"total_s.{bound}", many),
            )
        found = stats.quantiles(tx, Latency.TOTAL, now - 4 * MINUTE, now - 2 * MINUTE, 60)
    assert found == {0.5: [None, pytest.approx(0.5 + 0.5 * 50 / 90)], 0.95: [None, pytest.approx(3.75)]}


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_interval_of_the_true_one(seconds: list[float], q: float) -> None:
    """An estimate from intervals can be no closer; but never in another interval."""
    names = measures.intervals(Latency.TOTAL)
    found = Counter(names[sum(bound < one for bound in BOUNDS_S)] for one in seconds)
    counts = measures.counts(Latency.TOTAL, found)
    assert sum(counts) == len(seconds)
    estimate = quantile(q, counts)
    rank = next(n for n in range(1, len(seconds) + 1) if n >= q * len(seconds))
    true = sorted(seconds)[rank - 1]
    upper = min((bound for bound in BOUNDS_S if bound >= true), default=BOUNDS_S[-1])
    lower = max((bound for bound in BOUNDS_S if bound < true), default=0.0)
    assert estimate is not None
    assert lower <= estimate <= upper


def test_hours_are_the_sums_of_their_minutes(rt: Runtime, caller: Caller) -> None:
    """However often a minute is counted, and whatever was added as it happened."""
    now = present_minute()
    accepted_in(rt, caller, now - 2 * MINUTE, 2)
    for late in (0, 1):
        accepted_in(rt, caller, now - 3 * MINUTE, late)
        for back in (3, 2):
            with rt.db.transaction() as tx:
                stats.count(tx, now - back * MINUTE)
                stats.add(tx, [(caller.service.id, measures.POLLS, 5)])
    assert rows(rt, "stats_hours") == rows(rt, "stats") == {"accepted": 3, "polls": 20}
    with rt.db.transaction() as tx:
        assert sum(stats.series(tx, ["accepted"], now - 5 * MINUTE, now, 60).points["accepted"]) == 3
        assert sum(stats.series(tx, ["accepted"], now - 5 * MINUTE, now, 2 * 3600).points["accepted"]) == 3


def test_a_quantile_of_nothing_is_none() -> None:
    """There is no such time."""
    assert quantile(0.5, [0.0] * 14) is None


def test_old_minutes_go_and_the_totals_stay(rt: Runtime, caller: Caller) -> None:
    """After three months nobody looks at minutes; counters go on."""
    now = present_minute()
    at = now - 91 * 1440 * MINUTE
    for number in range(300):
        execute(rt, "INSERT INTO stats VALUES (:at, :id, :m, 1)", at=at, id=caller.service.id, m=f"x{number}")
    execute(rt, "INSERT INTO stats VALUES (:at, :id, 'x', 1)", at=now - 89 * 1440 * MINUTE, id=caller.service.id)
    execute(rt, "INSERT INTO totals VALUES (:id, 'x', 301)", id=caller.service.id)
    for days in (91, 89):
        hour = now.replace(minute=0) - days * 1440 * MINUTE
        execute(rt, "INSERT INTO stats_hours VALUES (:at, :id, 'x', 1)", at=hour, id=caller.service.id)
    assert [(old.kind, old.count) for old in prune.due(rt)] == [(Kind.STATS, 300)]
    assert prune.remove(rt) == {Kind.STATS: 250}
    assert prune.remove(rt) == {Kind.STATS: 50}
    assert not prune.remove(rt)
    assert (rows(rt, "stats"), rows(rt, "totals")) == ({"x": 1}, {"x": 301})
    assert rows(rt, "stats_hours") == {"x": 1}
