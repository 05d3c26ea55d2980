"""Retention: what has had its time goes with all that hangs on it; what somebody may still need stays."""

import asyncio
import io
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipeline.errors import InvalidInput
from pipeline.jobs import State
from pipeline.lifecycle import prune
from pipeline.lifecycle.audit import Charged, compare
from pipeline.lifecycle.audit import Kind as Difference
from pipeline.lifecycle.hear import hear
from pipeline.lifecycle.prune import Pruner
from pipeline.retention import BESIDE, DAY_S, DEFAULT_S, ENDED, LEAST_S, Kind, age_of, shown
from pipeline.runtime import Runtime
from pipeline.store import alarms, budgets, endpoints, ledger, pruning, refusals, retention
from pipeline.store.intake import NewJob, add_once
from pipeline.store.refusals import Refusal
from pipeline.store.retention import ALL, Age, Rule
from pipeline.store.services import Service
from pipeline.store.tables import id_from
from tests.commands import command
from tests.conftest import WEBHOOK_SECRET, Caller
from tests.factories import (
    MODEL,
    Attempted,
    at_once,
    encoded,
    execute,
    placed,
    prediction,
    processing,
    scalar,
    signed,
    unknown,
)

OF_JOBS = ("jobs", "attempts", "events", "callbacks", "notifications", "assets", "idempotency_keys", "labels")


def kept_for(rt: Runtime, kind: Kind, days: float | None, *, scope: str = ALL, files: bool = False) -> None:
    with rt.db.transaction() as tx:
        retention.keep(tx, Age(scope, kind, None if days is None else int(days * DAY_S), files))


def told(rt: Runtime) -> None:
    """Whoever was to be told was, and every output was fetched."""
    execute(rt, "UPDATE notifications SET state = 'delivered', due_at = NULL")
    execute(rt, "UPDATE assets SET state = 'lost', due_at = NULL")


def aged(rt: Runtime, days: float = 100, job_id: UUID | None = None) -> None:
    """Move jobs in time, with their attempts: all, or one."""
    for table, key, columns in (
        ("jobs", "id", ("created_at", "run_at", "deadline_at", "submitted_at", "finished_at")),
        ("attempts", "job_id", ("started_at", "ended_at")),
    ):
        moved = ", ".join(f"{column} = {column} - make_interval(secs => :s)" for column in columns)
        whose = "" if job_id is None else f"WHERE {key} = '{job_id}'"
        execute(rt, f"UPDATE {table} SET {moved} {whose}", s=days * DAY_S)


def heard(rt: Runtime, job: Attempted, **fields: Any) -> str:
    """The verdict on a job's callback, as the receiver takes it."""
    body = encoded(prediction(job, **fields))
    return hear(rt, job.token, signed(WEBHOOK_SECRET, body), body).verdict


def completed(rt: Runtime, service: Service) -> Attempted:
    """A job that went the whole way, and was told of."""
    job = processing(rt, service)
    assert heard(rt, job) == "applied"
    told(rt)
    return job


def counted(rt: Runtime, table: str, where: str = "true") -> int:
    return int(scalar(rt, f"SELECT count(*) FROM {table} WHERE {where}"))


def there(rt: Runtime, job_id: UUID) -> bool:
    return bool(scalar(rt, "SELECT true FROM jobs WHERE id = :id", id=job_id))


# Ages


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 90 * DAY_S), ("48h", 2 * DAY_S), ("12w", 84 * DAY_S), ("forever", None)]
)
def test_ages_are_read_as_they_are_shown(text: str, seconds: int | None) -> None:
    """What the list says can be typed."""
    assert age_of(Kind.COMPLETED, text) == seconds
    assert age_of(Kind.COMPLETED, shown(seconds)) == seconds
    assert shown(30 * 3600) == "30h"


@pytest.mark.parametrize("text", ["", "0d", "-3d", "1.5d", "90", "d", "1y", "٣d", "9999999d", "999999w", "never", "1d"])
def test_what_is_no_age_or_too_short_a_one_is_refused(text: str) -> None:
    """A typing error must not remove what was paid for; the nightly comparison with the bill needs two days."""
    with pytest.raises(InvalidInput):
        age_of(Kind.COMPLETED, text)


def test_jobs_are_kept_for_good_and_what_only_guards_for_a_month_unless_told_otherwise(
    rt: Runtime, make_caller: Callable[..., Caller]
) -> None:
    """A service's own age comes before that of all, and both before the product's own; 'for good' is one, too."""
    shop, crm = make_caller("shop").service, make_caller("crm").service

    def rules() -> dict[tuple[UUID | None, Kind], Rule]:
        with rt.db.transaction() as tx:
            return {(rule.service_id, rule.kind): rule for rule in retention.rules(tx)}

    beside = {(None, kind) for kind in BESIDE}
    assert set(rules()) == {(shop.id, Kind.KEYS), (crm.id, Kind.KEYS)} | beside
    assert {rule.age_s for rule in rules().values() if rule.kind is not Kind.STATS} == {30 * DAY_S}
    assert rules()[None, Kind.STATS].age_s == 90 * DAY_S
    kept_for(rt, Kind.COMPLETED, 10)
    kept_for(rt, Kind.COMPLETED, 90, scope=str(shop.id), files=True)
    kept_for(rt, Kind.KEYS, None, scope=str(crm.id))
    assert rules()[shop.id, Kind.COMPLETED] == Rule(shop.id, Kind.COMPLETED, 90 * DAY_S, files=True)
    assert rules()[crm.id, Kind.COMPLETED] == Rule(crm.id, Kind.COMPLETED, 10 * DAY_S, files=False)
    assert (crm.id, Kind.KEYS) not in rules()
    assert all(DEFAULT_S[kind] is None for kind in ENDED)
    assert all(least >= DAY_S for least in LEAST_S.values())


# Jobs


def test_nothing_is_left_of_a_pruned_job_but_a_line_for_its_day(rt: Runtime, caller: Caller) -> None:
    """Rows that hang on nothing would gather for years; what was spent must not be forgotten with them."""
    live, _ = queued_with_key(rt, caller.service, "order-1")
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() + interval '1 h'")
    completed(rt, caller.service)
    for state in (State.FAILED, State.CANCELLED, State.EXPIRED):
        job_id = placed(rt, caller.service, state)
        execute(rt, "UPDATE jobs SET due_at = NULL WHERE id = :id", id=job_id)
    for kind in ENDED:
        kept_for(rt, kind, 30)
    aged(rt, 29)
    assert not prune.remove(rt), "they are not old enough"
    aged(rt, 2)
    would = {(old.service_id, old.kind, old.count, old.more) for old in prune.due(rt)}
    assert would == {(caller.service.id, kind, 1, False) for kind in ENDED}
    assert prune.remove(rt) == Counter(ENDED)
    left = {table: counted(rt, table) for table in OF_JOBS}
    assert {table: count for table, count in left.items() if count} == {"jobs": 1, "events": 1, "idempotency_keys": 1}
    assert there(rt, live)
    assert scalar(rt, "SELECT sum(jobs) FROM pruned") == 4
    assert scalar(rt, "SELECT sum(spent) FROM pruned") == Decimal("0.12")


STAYS = {
    "somebody is yet to be told": (
        "UPDATE notifications SET state = 'pending', due_at = clock_timestamp() + interval '1 h'",
        "UPDATE notifications SET state = 'dead', due_at = NULL",
    ),
    "an output is being fetched": (
        "UPDATE assets SET state = 'pending', due_at = clock_timestamp()",
        "UPDATE assets SET state = 'lost', due_at = NULL",
    ),
    "an output waits for a person": (
        "UPDATE assets SET review = 'quarantined'",
        "UPDATE assets SET review = 'released'",
    ),
    "its money is reserved": ("UPDATE jobs SET reserved = 0.1", "UPDATE jobs SET reserved = 0"),
    "it is asked about": (
        "UPDATE jobs SET state = 'expired', finished_at = NULL, due_at = clock_timestamp() + interval '1 h'",
        "UPDATE jobs SET due_at = NULL",
    ),
    "the past of a budget is yet to be counted": (
        "INSERT INTO budgets (scope, period, limit_usd, since, uncounted_before)"
        " VALUES ('account', 'month', 9, now(), now());"
        " UPDATE jobs SET finished_at = date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'",
        "UPDATE jobs SET finished_at = finished_at - interval '1 ms'",
    ),
}


@pytest.mark.parametrize("why", STAYS)
def test_a_job_that_somebody_may_still_need_stays_however_old(rt: Runtime, caller: Caller, why: str) -> None:
    """An age says how long a thing that is done is kept; none of these is."""
    job = completed(rt, caller.service)
    for kind in ENDED:
        kept_for(rt, kind, 2)
    aged(rt, 100)
    needed, done_with = STAYS[why]
    execute(rt, needed)
    assert not prune.remove(rt)
    assert not prune.due(rt)
    assert there(rt, job.job_id)
    execute(rt, done_with)
    if "budget" not in why or datetime.now(UTC).day > 2:  # it is a day old at least
        assert sum(prune.remove(rt).values()) == 1


def test_a_job_stays_while_its_task_could_be_taken_for_that_of_another(rt: Runtime, caller: Caller) -> None:
    """The provider's list shows both; what no row holds is what is looked for, and would be adopted."""
    kept_for(rt, Kind.COMPLETED, 2)
    near, far, lost = completed(rt, caller.service), completed(rt, caller.service), unknown(rt, caller.service)
    aged(rt, 3)
    aged(rt, 1, far.job_id)
    assert prune.remove(rt) == {Kind.COMPLETED: 1}
    assert (there(rt, near.job_id), there(rt, far.job_id)) == (True, False)
    execute(rt, "UPDATE jobs SET model = 'another/model' WHERE id = :id", id=lost.job_id)
    assert prune.remove(rt) == {Kind.COMPLETED: 1}


def test_what_somebody_holds_is_passed_over_and_nobody_waits(rt: Runtime, caller: Caller) -> None:
    """A callback that is just being heard holds its attempt, then its job: waiting for it would be half a deadlock."""
    kept_for(rt, Kind.COMPLETED, 2)
    jobs = [completed(rt, caller.service) for _ in range(3)]
    aged(rt)
    with ExitStack() as held:
        tx = held.enter_context(rt.db.transaction())
        tx.exec_driver_sql(f"SELECT FROM attempts WHERE id = '{jobs[0].attempt_id}' FOR UPDATE")
        tx.exec_driver_sql(f"SELECT FROM jobs WHERE id = '{jobs[1].job_id}' FOR UPDATE")
        assert prune.remove(rt) == {Kind.COMPLETED: 1}
    assert [there(rt, job.job_id) for job in jobs] == [True, True, False]
    assert prune.remove(rt) == {Kind.COMPLETED: 2}


def test_a_verdict_that_comes_late_saves_its_job(rt: Runtime, caller: Caller) -> None:
    """It was found old as an expired one, and is completed by the time it is locked."""
    kept_for(rt, Kind.EXPIRED, 2)
    kept_for(rt, Kind.COMPLETED, 2)
    job = processing(rt, caller.service)
    execute(rt, "UPDATE jobs SET state = 'expired', due_at = NULL, reserved = 0")
    aged(rt)
    assert heard(rt, job) == "applied"
    told(rt)
    assert not prune.remove(rt)
    assert there(rt, job.job_id)


def test_a_callback_for_a_pruned_job_is_an_orphan_and_ages_as_one(rt: Runtime, caller: Caller) -> None:
    """Its token is nobody's any more; it is kept for a person to see, and not for good."""
    kept_for(rt, Kind.COMPLETED, 2)
    job = completed(rt, caller.service)
    aged(rt)
    prune.remove(rt)
    assert heard(rt, job) == "orphan"
    execute(rt, "UPDATE callbacks SET received_at = received_at - interval '29 days'")
    assert not prune.remove(rt)
    execute(rt, "UPDATE callbacks SET received_at = received_at - interval '2 days'")
    assert prune.remove(rt) == {Kind.ORPHANS: 1}


MANY = """
    WITH made AS (
        INSERT INTO jobs (id, service_id, model, input, metadata, state, deadline_at, outputs, finished_at, created_at,
                          submitted_at, price, admitted)
        SELECT gen_random_uuid(), :service_id, 'openai/dall-e-2', '{"prompt": "a lighthouse"}', '{"shop": "red"}',
               'completed', at, '[]', at, at, at, 0.25, true
        FROM (SELECT now() - interval '10 days' - n % 3 * interval '1 day' AS at FROM generate_series(1, :many) n) t
        RETURNING id, service_id, created_at AS at
    ), posts AS (
        INSERT INTO attempts (id, job_id, service_id, number, token, worker_id, started_at, ended_at, outcome,
                              prediction_id)
        SELECT gen_random_uuid(), id, service_id, 1, id::text, id, at, at, 'accepted', id::text FROM made
    ), happened AS (
        INSERT INTO events (job_id, seq, kind) SELECT id, n, 'job.queued' FROM made, generate_series(1, 4) n
    ), told AS (
        INSERT INTO notifications (id, event, job_id, seq, state)
        SELECT gen_random_uuid(), 'job.completed', id, 4, 'delivered' FROM made
    ), inbox AS (
        INSERT INTO callbacks (id, token, job_id, verdict, headers, body)
        SELECT gen_random_uuid(), id::text, id, 'applied', '{}', '{}' FROM made
    ), files AS (
        INSERT INTO assets (id, job_id, index, service_id) SELECT gen_random_uuid(), id, 0, service_id FROM made
    )
    INSERT INTO idempotency_keys (service_id, key, fingerprint, job_id, created_at)
    SELECT service_id, id::text, '', id, at FROM made
"""


def test_thousands_go_once_whoever_removes_them_at_the_same_time(rt: Runtime, caller: Caller) -> None:
    """Several workers and a person may: together they remove each job once, and sum it up once."""
    execute(rt, MANY, service_id=caller.service.id, many=3000)
    kept_for(rt, Kind.COMPLETED, 5)
    fresh = completed(rt, caller.service)
    gone = at_once(lambda _number: prune.everything(rt, progress=lambda _gone: None), 4)
    assert sum((each[Kind.COMPLETED] for each in gone), 0) == 3000
    assert {table: counted(rt, table) for table in OF_JOBS} == {
        **dict.fromkeys(OF_JOBS, 1),
        "events": counted(rt, "events", f"job_id = '{fresh.job_id}'"),
        "idempotency_keys": 0,
        "labels": 0,
    }
    with rt.db.transaction() as tx:
        sums = tx.exec_driver_sql("SELECT count(*), sum(jobs), sum(spent) FROM pruned").one()
    assert tuple(sums) == (3, 3000, Decimal(750))


def test_files_go_with_their_jobs_when_told_so_but_never_those_that_others_share(
    make_rt: Callable[..., Runtime], caller: Caller, tmp_path: Path
) -> None:
    """Equal content is one file. What a person purged goes in any case, and while storage is away all of it waits."""
    rt = make_rt(archive_url=f"file://{tmp_path}")
    kept_for(rt, Kind.COMPLETED, 2, files=True)
    storage = rt.storage
    assert storage
    keys = {name: f"files/{name[:2]}/{name}" for name in ("alone", "shared", "purged")}
    for key in keys.values():
        asyncio.run(storage.keep(key, io.BytesIO(b"\x89PNG"), "image/png"))
    jobs = {name: completed(rt, caller.service).job_id for name in keys}
    other = completed(rt, caller.service).job_id
    stored = (
        "UPDATE assets SET state = 'stored', storage_key = :key, sha256 = '', bytes = 4, content_type = 'image/png',"
        " stored_at = now(), review = :review WHERE job_id = :id"
    )
    for name, job_id in [*jobs.items(), ("shared", other)]:
        execute(rt, stored, key=keys[name], review="purged" if name == "purged" else None, id=job_id)
    for name in ("alone", "shared"):
        aged(rt, 5, jobs[name])

    assert prune.remove(make_rt(archive_url="off")) == {"completed": 2}
    assert storage.open_now(keys["alone"])
    assert prune.remove(rt) == {"files": 1}
    assert (storage.open_now(keys["alone"]), bool(storage.open_now(keys["shared"]))) == (None, True)

    kept_for(rt, Kind.COMPLETED, 2, files=False)
    aged(rt, 5)
    assert prune.remove(rt) == {"completed": 2, "files": 1}
    assert (bool(storage.open_now(keys["shared"])), storage.open_now(keys["purged"])) == (True, None)
    assert not prune.remove(rt)


def test_a_file_that_is_noted_again_while_it_is_looked_at_is_looked_at_again(rt: Runtime) -> None:
    """Its last output may be pruned by another just after this one saw that it is shared."""
    with rt.db.transaction() as tx:
        pruning.note_leftovers(tx, ["files/aa/aa", "files/aa/aa"])
    with rt.db.transaction() as tx:
        (seen,) = pruning.leftovers(tx)
    with rt.db.transaction() as tx:
        pruning.note_leftovers(tx, [seen.storage_key])
        pruning.forget_leftover(tx, seen.storage_key, since=seen.since)
    with rt.db.transaction() as tx:
        (again,) = pruning.leftovers(tx)
        pruning.forget_leftover(tx, again.storage_key, since=again.since)
        assert pruning.leftovers(tx) == []


# Money


def test_a_budget_that_is_opened_later_counts_what_pruned_jobs_cost(rt: Runtime, caller: Caller) -> None:
    """The month's limit holds for the money of the month, and not for the rows that are left of it."""
    month = "date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    execute(rt, MANY, service_id=caller.service.id, many=20)
    execute(
        rt,
        f"UPDATE jobs SET finished_at = {month} - interval '1 s', price = 7 WHERE id = (SELECT id FROM jobs LIMIT 1)",
    )
    execute(rt, f"UPDATE jobs SET finished_at = {month} WHERE price < 7")

    def spent() -> dict[str, Decimal]:
        with rt.db.transaction() as tx:
            for scope in (budgets.ACCOUNT, str(caller.service.id)):
                budgets.close(tx, scope, "month")
                budgets.open_(tx, scope, "month", Decimal(100))
        with rt.db.transaction() as tx:
            budgets.catch_up(tx)
            return {purse.scope: purse.spent for purse in budgets.everything(tx)}

    before = spent()
    assert set(before.values()) == {Decimal("4.75")}
    rule = Rule(caller.service.id, Kind.COMPLETED, 0)
    with rt.db.transaction() as tx:  # an age of nothing, so that this holds on the first days of a month as well
        assert len(pruning.jobs(tx, [rule])) == 20
    assert spent() == before


def test_the_bill_of_pruned_jobs_is_no_difference(rt: Runtime, caller: Caller) -> None:
    """Nobody here knows their tasks any more; those from after it still call for a person."""
    kept_for(rt, Kind.COMPLETED, 2)
    job, kept = completed(rt, caller.service), completed(rt, caller.service)
    aged(rt, 5, job.job_id)
    prune.remove(rt)
    now = datetime.now(UTC)
    since = now - timedelta(days=10)

    def charge(days: float) -> Charged:
        return Charged(1, Decimal("0.12"), MODEL, "our-key", now - timedelta(days=days))

    bill = {job.prediction_id: charge(5.01), kept.prediction_id: charge(0), "strange": charge(4)}
    with rt.db.transaction() as tx:
        ours, pruned_until = ledger.started(tx, since, now), ledger.pruned_until(tx)
    grace = timedelta(minutes=10)
    found = compare(bill, ours, since=since, until=now, grace=grace, exclusive=False, pruned_until=pruned_until)
    assert [(one.kind, one.prediction_ids) for one in found.differences] == [(Difference.UNKNOWN_TO_US, ("strange",))]
    assert (found.forgotten, found.forgotten_usd, found.others) == (1, Decimal("0.12"), 0)
    assert found.pruned_until == pruned_until
    later = compare(
        {}, [], since=now - timedelta(days=1), until=now, grace=grace, exclusive=False, pruned_until=pruned_until
    )
    assert later.pruned_until is None, "the nightly comparison is not concerned"


# Keys, refusals, notices


def queued_with_key(rt: Runtime, service: Service, key: str) -> tuple[UUID, bool]:
    """The job that *key* names, and whether it is new."""
    job = NewJob(service.id, MODEL, {"prompt": "a lighthouse"}, deadline_s=3600.0)
    with rt.db.transaction() as tx:
        job_id, stored = add_once(tx, job, key, b"mark")
    return job_id, stored is not None


def test_a_key_goes_after_its_age_but_never_before_its_job_has_ended(rt: Runtime, caller: Caller) -> None:
    """Until then the same request is the same job. One that waits for longer than a key's age must not run twice."""
    done, waits = (queued_with_key(rt, caller.service, key)[0] for key in ("done", "waits"))
    both = [str(done), str(waits)]
    batches = (
        "INSERT INTO idempotency_keys (service_id, key, fingerprint, job_ids)"
        " VALUES (:service_id, :key, 'mark', CAST(:ids AS uuid[]))"
    )
    execute(rt, batches, service_id=caller.service.id, key="batch-done", ids=both[:1])
    execute(rt, batches, service_id=caller.service.id, key="batch-waits", ids=both)
    execute(
        rt,
        "UPDATE jobs SET state = 'cancelled', due_at = NULL, finished_at = clock_timestamp(), reserved = 0"
        " WHERE id = :id",
        id=done,
    )
    execute(rt, "UPDATE idempotency_keys SET created_at = created_at - interval '29 days'")
    assert not prune.remove(rt)
    execute(rt, "UPDATE idempotency_keys SET created_at = created_at - interval '2 days'")
    assert [(old.kind, old.count) for old in prune.due(rt)] == [(Kind.KEYS, 2)]
    assert prune.remove(rt) == {Kind.KEYS: 2}
    assert (there(rt, done), there(rt, waits)) == (True, True)
    assert queued_with_key(rt, caller.service, "waits") == (waits, False)
    assert queued_with_key(rt, caller.service, "done")[1] is True
    assert counted(rt, "idempotency_keys", "key LIKE 'batch%'") == 1


def test_refusals_and_notices_go_after_a_month(rt: Runtime) -> None:
    """A person had the time to see them; one that is still being told stays."""
    notice = (
        "INSERT INTO notifications (id, event, audience, state, due_at)"
        " SELECT gen_random_uuid(), 'account.halted', 'operator', s, CASE s WHEN 'pending' THEN clock_timestamp() END"
        " FROM unnest(ARRAY['delivered', 'dead', 'pending']) s"
    )
    for days in (31, 29):
        with rt.db.transaction() as tx:
            refusals.add(tx, Refusal("celery", "invalid_input", []))
        execute(rt, notice)
        execute(rt, "UPDATE refusals SET at = at - make_interval(days => :d) WHERE at > now() - interval '1 d'", d=days)
        execute(
            rt,
            "UPDATE notifications SET created_at = created_at - make_interval(days => :d)"
            " WHERE created_at > now() - interval '1 d'",
            d=days,
        )
    assert prune.remove(rt) == {Kind.REFUSALS: 1, Kind.NOTICES: 2}
    assert (counted(rt, "refusals"), counted(rt, "notifications")) == (1, 4)


def notified(rt: Runtime, days: float, state: str = "delivered") -> UUID:
    """A notification of so many days ago, with a try that long ago."""
    one, ago_s = UUID(int=id_from(time.time() - days * DAY_S).int | secrets.randbits(74)), days * DAY_S
    execute(
        rt,
        "INSERT INTO notifications (id, event, job_id, seq, state, attempts, created_at, due_at) VALUES"
        " (:id, 'job.completed', :id, 1, :state, 1, clock_timestamp() - make_interval(secs => :s),"
        " CASE CAST(:state AS text) WHEN 'pending' THEN clock_timestamp() END)",
        id=one,
        state=state,
        s=ago_s,
    )
    again = (
        "INSERT INTO deliveries (notification_id, number, at, target)"
        " VALUES (:id, 1, clock_timestamp() - make_interval(secs => :s), 'https://shop.example')"
    )
    execute(rt, again, id=one, s=ago_s)
    return one


def test_the_tries_of_notifications_go_after_a_month_and_those_that_are_still_told_keep_theirs(rt: Runtime) -> None:
    """They hold whole bodies. That it was told stays, and when, as long as its job does."""
    young, pending, replayed = notified(rt, 29.9), notified(rt, 40, "pending"), notified(rt, 40)
    for state in ("delivered", "dead"):
        notified(rt, 30.1, state)
    execute(rt, "UPDATE deliveries SET at = clock_timestamp() WHERE notification_id = :id", id=replayed)
    assert [(old.kind, old.count) for old in prune.due(rt)] == [(Kind.DELIVERIES, 2)]
    assert prune.remove(rt, at_most=1) == {Kind.DELIVERIES: 1}
    assert prune.remove(rt) == {Kind.DELIVERIES: 1}
    assert not prune.remove(rt)
    kept = "SELECT array_agg(notification_id ORDER BY notification_id) FROM deliveries"
    assert scalar(rt, kept) == sorted([young, pending, replayed])
    assert counted(rt, "notifications") == 5


def test_a_receiver_that_has_not_failed_for_a_month_is_forgotten(rt: Runtime) -> None:
    """It works, or nobody calls it any more; what failed lately is known, switched off or not."""

    def fail(*names: str) -> None:
        with rt.db.transaction() as tx:
            endpoints.failed(tx, {name: ["answered 500"] for name in names}, days_s=0.0, at_least=2, probe_s=900.0)

    fail("gone", "again")
    execute(rt, "UPDATE endpoints SET failed_at = failed_at - interval '31 days', failing_since = failed_at")
    fail("again", "new")
    assert scalar(rt, "SELECT array_agg(name) FROM endpoints WHERE off_at IS NOT NULL") == ["again"]
    assert prune.remove(rt) == {Kind.ENDPOINTS: 1}
    assert scalar(rt, "SELECT array_agg(name ORDER BY name) FROM endpoints") == ["again", "new"]


# Who does it


def test_one_worker_at_a_time_prunes_when_a_sweep_says_so(rt: Runtime, caller: Caller) -> None:
    """Once a minute, batch after batch with rests between them; in the end its turn is over."""
    kept_for(rt, Kind.COMPLETED, 5)
    execute(rt, MANY, service_id=caller.service.id, many=300)
    mine, another = Pruner(rt), Pruner(rt)

    def due() -> bool:
        with rt.db.transaction() as tx:
            return "prune" in alarms.due(tx)

    assert not due()
    assert mine.look() is None
    execute(rt, "UPDATE account SET pruned_at = pruned_at - interval '61 s'")
    assert due()
    rest_s = mine.look()
    assert rest_s is not None
    assert rest_s > 0
    assert (another.look(), due()) == (None, False)
    while mine.look() is not None:
        pass
    assert counted(rt, "jobs") == 0
    assert mine.look() is None


def test_a_person_sets_ages_and_removes_what_is_older(rt: Runtime, caller: Caller, environ: dict[str, str]) -> None:
    """What would go is shown before it does; a wrong age, kind or service changes nothing."""

    def run(*words: str) -> Any:
        done = command(environ, *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in words else done.stdout

    execute(rt, MANY, service_id=caller.service.id, many=300)
    run("retention", "set", "completed", "5d", "--service", "shop", "--files")
    run("retention", "set", "failed", "12w")
    ages = {(one["kind"], one["service"]): one["age_s"] for one in run("retention", "--json")}
    assert (ages["completed", "shop"], ages["completed", None], ages["failed", None]) == (5 * DAY_S, None, 84 * DAY_S)
    assert ages["keys", None] == 30 * DAY_S
    for words, status in (
        (("set", "completed", "1d"), 1),
        (("set", "processing", "90d"), 2),
        (("set", "keys", "90d", "--files"), 1),
        (("set", "refusals", "90d", "--service", "shop"), 1),
        (("set", "completed", "90d", "--service", "nobody"), 1),
        (("unset", "cancelled"), 1),
    ):
        done = command(environ, "retention", *words)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert run("prune", "--dry-run", "--json") == [
        {"kind": "completed", "service": "shop", "count": 300, "more": False}
    ]
    assert counted(rt, "jobs") == 300
    assert run("prune", "--json") == {"completed": 300}
    run("retention", "unset", "completed", "--service", "shop")
    assert ("completed", "shop") not in {(one["kind"], one["service"]) for one in run("retention", "--json")}
