"""Order: whose job is next. Shares, caps, pauses, times and priorities; the account's own limits are in test_claims."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import State
from pipeline.lifecycle import pauses
from pipeline.runtime import Runtime
from pipeline.settings import Limits
from pipeline.store import alarms, claims, prices, services
from pipeline.store import pauses as store
from pipeline.store.claims import BATCH
from pipeline.store.services import Service
from pipeline.store.tables import new_id
from pipeline.sweep import sweep
from tests.conftest import Caller
from tests.factories import MODEL, at_once, execute, scalar, state, until
from tests.test_claims import AMPLE, age, put, settle

OTHER = "openai/dall-e-3"

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def shop(make_caller: Callable[..., Caller]) -> Service:
    """Give a service."""
    return make_caller("the-shop").service


@pytest.fixture
def crm(make_caller: Callable[..., Caller]) -> Service:
    """Give another service."""
    return make_caller("the-crm").service


@pytest.fixture(autouse=True)
def _priced(rt: Runtime) -> None:
    """Let the price of the other model be known too, so that its jobs are admitted at once."""
    with rt.db.transaction() as tx:
        prices.set_by_hand(tx, OTHER, Decimal("0.04"))


def begun(rt: Runtime, count: int = BATCH, *, limits: Limits = AMPLE) -> list[UUID]:
    """Claim; the jobs begun, in no order."""
    with rt.db.transaction() as tx:
        claim = claims.claim(tx, worker_id=new_id(), limits=limits, window_s=61.0, lease_s=90.0, at_most=count)
    return [start.job_id for start in claim.starts]


def started(rt: Runtime, count: int = BATCH, *, limits: Limits = AMPLE) -> set[UUID]:
    """The same, as a set."""
    return set(begun(rt, count, limits=limits))


def change(rt: Runtime, service: Service, **facts: Any) -> None:
    with rt.db.transaction() as tx:
        assert services.change(tx, service.name, **facts)


def swept(rt: Runtime) -> None:
    sweep(rt, lambda *_: None)


def crowd(rt: Runtime, service: Service, count: int, model: str = MODEL) -> None:
    """Many queued jobs, made by the database: all due since a minute."""
    execute(
        rt,
        """
        INSERT INTO jobs (id, service_id, model, input, due_at, deadline_at, priority, admitted)
        SELECT gen_random_uuid(), :service_id, :model, '{"prompt": "a lighthouse"}', now() - interval '1 minute',
               now() + interval '1 hour', 10, true FROM generate_series(1, :count)
        """,
        service_id=service.id,
        model=model,
        count=count,
    )


# -- shares -----------------------------------------------------------------------------------------------------------


def test_one_job_beside_thousands_is_next(rt: Runtime, shop: Service, crm: Service) -> None:
    """While the account's limit is not exhausted it is in the first claim; when it is, it has the next free start."""
    crowd(rt, shop, 5_000)
    limits = Limits(30, 1000)
    (early,) = put(rt, crm)
    assert early in started(rt, 10, limits=limits)
    assert len(started(rt, limits=limits)) == 20
    (late,) = put(rt, crm)
    assert started(rt, limits=limits) == set(), "the quota is used up"
    age(rt, 62)
    assert started(rt, 1, limits=limits) == {late}


def test_the_next_free_place_is_the_newcomers(rt: Runtime, shop: Service, crm: Service) -> None:
    """The same when not the starts of a minute are what is scarce, but the tasks at a time."""
    crowd(rt, shop, 200)
    limits = Limits(1000, 20)
    assert len(started(rt, limits=limits)) == 20
    (late,) = put(rt, crm)
    assert started(rt, limits=limits) == set()
    execute(
        rt,
        "UPDATE jobs SET state = 'cancelled', due_at = NULL, finished_at = now(), current_attempt = NULL"
        " WHERE id = (SELECT id FROM jobs WHERE state = 'submitting' LIMIT 1)",
    )
    assert started(rt, limits=limits) == {late}


# -- caps -------------------------------------------------------------------------------------------------------------


def test_a_service_never_has_more_in_flight_than_its_cap(rt: Runtime, shop: Service, crm: Service) -> None:
    """Whatever its backlog and its weight; the others have the rest."""
    change(rt, shop, max_in_flight=3, weight=1000)
    mine = set(put(rt, shop, 20, priority=10))
    theirs = set(put(rt, crm, 5))
    first = started(rt)
    assert len(first & mine) == 3
    assert first >= theirs
    assert started(rt) == set()
    execute(rt, "UPDATE jobs SET state = 'processing' WHERE state = 'submitting'")
    assert started(rt) == set()
    settle(rt)
    assert len(started(rt)) == 3


def test_two_claimers_at_once_never_exceed_a_services_cap(rt: Runtime, shop: Service) -> None:
    """Each would otherwise fill it by itself."""
    change(rt, shop, max_in_flight=5)
    put(rt, shop, 200)
    for _ in range(8):
        assert sum(at_once(lambda _: len(started(rt, 4)), 4)) == 5
        settle(rt)


def test_what_waits_for_a_person_takes_no_place(rt: Runtime, shop: Service) -> None:
    """It may wait for days."""
    change(rt, shop, max_in_flight=2)
    put(rt, shop, 4)
    assert len(started(rt)) == 2
    execute(rt, "UPDATE jobs SET state = 'unknown', held_at = now(), held_reason = 'x' WHERE state = 'submitting'")
    assert len(started(rt)) == 2


def test_a_cap_that_is_taken_away_lets_the_rest_go(rt: Runtime, shop: Service) -> None:
    """And one below what runs already stops nothing that runs."""
    put(rt, shop, 8)
    assert len(started(rt, 4)) == 4
    change(rt, shop, max_in_flight=2)
    assert started(rt) == set()
    assert scalar(rt, "SELECT count(*) FROM jobs WHERE state = 'submitting'") == 4
    change(rt, shop, max_in_flight=None)
    assert len(started(rt)) == 4


# -- pauses -----------------------------------------------------------------------------------------------------------


def test_a_paused_service_begins_nothing_and_loses_nothing(rt: Runtime, shop: Service, crm: Service) -> None:
    """What is in flight goes on; what is new waits; and so it goes on when resumed, in its order."""
    running, *waiting = put(rt, shop, 3)
    assert started(rt, 1) == {running}
    execute(rt, "UPDATE jobs SET state = 'processing' WHERE id = :id", id=running)
    change(rt, shop, paused=True)
    waiting += put(rt, shop)
    theirs = put(rt, crm)
    swept(rt)
    assert started(rt) == set(theirs)
    assert state(rt, running) == State.PROCESSING
    change(rt, shop, paused=False)
    assert [job_id for _ in waiting for job_id in begun(rt, 1)] == waiting


def test_deadlines_go_on_in_a_pause(rt: Runtime, shop: Service) -> None:
    """Who asked for an hour is told after an hour."""
    with rt.db.transaction() as tx:
        store.pause(tx, OTHER)
    change(rt, shop, paused=True)
    jobs = [*put(rt, shop), *put(rt, shop, model=OTHER)]
    swept(rt)
    execute(rt, "UPDATE jobs SET deadline_at = now(), due_at = least(due_at, now())")
    swept(rt)
    assert [state(rt, job_id) for job_id in jobs] == [State.EXPIRED] * 2


def test_a_paused_model_begins_nothing_and_the_others_do_not_wait_behind_it(rt: Runtime, shop: Service) -> None:
    """Its jobs are parked, so that a claim does not step over them each time."""
    running, *waiting = put(rt, shop, 3, model=OTHER, priority=10)
    assert started(rt, 1) == {running}
    execute(rt, "UPDATE jobs SET state = 'processing' WHERE id = :id", id=running)
    assert pauses.pause(rt, OTHER)
    assert not pauses.pause(rt, OTHER)
    assert scalar(rt, "SELECT bool_and(due_at = deadline_at) FROM jobs WHERE state = 'queued'")
    waiting += put(rt, shop, model=OTHER, priority=10)
    mine = put(rt, shop)
    assert started(rt) == set(mine), "new ones are passed over"
    swept(rt)
    assert scalar(rt, "SELECT count(*) FROM jobs WHERE due_at = deadline_at") == 3, "and parked by the sweep"
    execute(rt, "UPDATE jobs SET state = 'queued', due_at = now() WHERE id = :id", id=running)
    assert started(rt) == set(), "so are those that come back"
    swept(rt)
    assert pauses.resume(rt, OTHER)
    assert not pauses.resume(rt, OTHER)
    assert [job_id for _ in range(4) for job_id in begun(rt, 1)] == [running, *waiting]


def test_a_job_for_later_is_for_later_after_a_pause_too(rt: Runtime, shop: Service) -> None:
    """It was parked, and is not made due by that."""
    (now,) = put(rt, shop)
    run_at = datetime.now(UTC) + timedelta(minutes=5)
    (later,) = put(rt, shop, run_at=run_at)
    pauses.pause(rt, MODEL)
    pauses.resume(rt, MODEL)
    assert started(rt) == {now}
    assert scalar(rt, "SELECT due_at FROM jobs WHERE id = :id", id=later) == run_at
    execute(rt, "UPDATE jobs SET due_at = now() WHERE id = :id", id=later)
    assert started(rt) == {later}


def test_a_long_queue_is_parked_and_freed_to_the_last(
    rt: Runtime, shop: Service, crm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches, for nobody is to wait for the locks of a hundred thousand rows."""
    for service in (shop, crm):
        crowd(rt, service, 1300)
        crowd(rt, service, 10, model=OTHER)
    pauses.pause(rt, MODEL)
    parked = "SELECT count(*) FROM jobs WHERE due_at = deadline_at"
    assert scalar(rt, parked) == 2600
    pauses.resume(rt, MODEL)
    assert scalar(rt, parked) == 0
    with rt.db.transaction() as tx:
        alarms.due(tx)
    assert scalar(rt, "SELECT queued_from <= (SELECT min(due_at) FROM jobs) FROM account"), "all of them can be found"


def test_who_resumes_a_model_waits_for_who_parks_its_jobs_just_then(rt: Runtime, shop: Service) -> None:
    """A sweep that was at it would leave them parked, and they would expire though nothing is paused."""
    jobs = put(rt, shop, 3, model=OTHER)
    with rt.db.transaction() as tx:
        store.pause(tx, OTHER)
    with ThreadPoolExecutor(1) as others:
        with rt.db.transaction() as tx:
            store.park(tx)
            resumed = others.submit(pauses.resume, rt, OTHER)
            until(lambda: resumed.done() or scalar(rt, WAITING))
        assert resumed.result()
    assert started(rt) == set(jobs)


# -- times and priorities ---------------------------------------------------------------------------------------------


def test_a_job_waits_for_its_time_and_then_is_one_of_the_others(rt: Runtime, shop: Service) -> None:
    """Its age in the queue counts from then."""
    run_at = datetime.now(UTC) + timedelta(hours=1)
    (later,) = put(rt, shop, run_at=run_at, priority=10)
    (now,) = put(rt, shop)
    assert started(rt) == {now}
    execute(rt, "UPDATE jobs SET due_at = now(), deadline_at = now() + interval '1 h' WHERE id = :id", id=later)
    put(rt, shop, 2)
    assert started(rt, 1) == {later}
