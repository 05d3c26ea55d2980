"""The outbox's statements: who is told, in which order, how often, and when it is given up."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import State
from pipeline.lifecycle.notify import JITTER, OFF_AFTER_S, OFF_AFTER_TRIES, PROBE_S, SCHEDULE_S
from pipeline.runtime import Runtime
from pipeline.store import account as provider_account
from pipeline.store import endpoints, keys, notifications, services, workers
from pipeline.store.deliveries import Wanted, replay
from pipeline.store.moves import Move, advance
from pipeline.store.notifications import Claim, Message, Tried
from pipeline.store.tables import new_id
from tests.conftest import Caller
from tests.factories import execute, placed, scalar

URL = "https://shop.example/hook"
ENDPOINT = "shop https://shop.example"


def told_at(rt: Runtime, url: str | None = URL) -> None:
    """Every service wants to be told there."""
    execute(rt, "UPDATE services SET callback_url = :url", url=url)


def ended(rt: Runtime, caller: Caller, url: str | None = None, task: str | None = None) -> UUID:
    """A job that has just failed, and who is to be told of it."""
    job_id = placed(rt, caller.service, State.PROCESSING)
    execute(
        rt, "UPDATE jobs SET callback_url = :url, callback_task = :task WHERE id = :id", url=url, task=task, id=job_id
    )
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(job_id, State.FAILED, error={"code": "rejected"})])
    return job_id


def claim(
    rt: Runtime,
    at_most: int = 100,
    *,
    worker_id: UUID | None = None,
    room: int = 50,
    rooms: dict[str, int] | None = None,
) -> Claim:
    with rt.db.transaction() as tx:
        return notifications.claim(
            tx,
            worker_id=worker_id or new_id(),
            at_most=at_most,
            room=room,
            rooms=rooms or {},
            lease_s=60.0,
            probe_s=PROBE_S,
            operator_url=None,
        )


def record(rt: Runtime, worker_id: UUID, *tried: Tried) -> set[UUID]:
    with rt.db.transaction() as tx:
        return notifications.record(tx, tried, worker_id=worker_id, schedule=SCHEDULE_S, jitter=JITTER)


def fails(rt: Runtime, worker_id: UUID, **facts: Any) -> set[UUID]:
    """Claim the one that is due, and fail to deliver it."""
    (message,) = claim(rt, worker_id=worker_id).messages
    return record(rt, worker_id, Tried(message, URL, error="answered 500", status=500, **facts))


def now_due(rt: Runtime) -> None:
    """Whatever waits is due."""
    execute(rt, "UPDATE notifications SET due_at = clock_timestamp() WHERE due_at IS NOT NULL")


def facts(rt: Runtime, columns: str) -> Any:
    """Of the one notification."""
    return scalar(rt, f"SELECT jsonb_build_array({columns}) FROM notifications")


@pytest.mark.parametrize(
    ("of_service", "of_job", "task", "endpoint"),
    [
        (None, None, None, None),
        (URL, None, None, ENDPOINT),
        (URL, "HTTPS://Own.Example:8443?x=/y", None, "shop https://own.example:8443"),
        (None, "http://[::1]:80/a//b", None, "shop http://[::1]:80"),
        (URL, "https://own.example", "shop.done", "shop task:shop.done"),
    ],
)
def test_where_it_waits_is_decided_when_it_is_planned(
    rt: Runtime, caller: Caller, of_service: str | None, of_job: str | None, task: str | None, endpoint: str | None
) -> None:
    """The job's own word goes first; a task is told instead of an address. What nobody wants ends at once."""
    told_at(rt, of_service)
    ended(rt, caller, of_job, task)
    assert facts(rt, "endpoint, state, due_at IS NULL, ended_at IS NULL") == [
        endpoint,
        "pending" if endpoint else "unaddressed",
        not endpoint,
        bool(endpoint),
    ]
    messages = claim(rt).messages
    assert [(one.url, one.task, one.queue) for one in messages] == (
        [(of_job or of_service, task, None)] if endpoint else []
    )


def test_every_endpoint_has_its_turn(rt: Runtime, caller: Caller) -> None:
    """Five hundred that wait for one receiver keep no other waiting, and it gets no more than it has room for."""
    for _ in range(30):
        ended(rt, caller, "https://busy.example")
    for name in "abc":
        ended(rt, caller, f"https://{name}.example")

    first = claim(rt, 8, rooms={"shop https://a.example": 0}).messages
    assert sorted(one.endpoint[5:] for one in first) == [
        "https://b.example",
        *["https://busy.example"] * 6,
        "https://c.example",
    ]
    second = claim(rt, room=10).messages
    assert sorted(one.endpoint[5:] for one in second) == ["https://a.example", *["https://busy.example"] * 10]
    assert not {one.id for one in first} & {one.id for one in second}


def test_the_schedule_is_kept_and_then_it_is_dead(rt: Runtime, caller: Caller) -> None:
    """Eight tries in 27 and a half hours, each wait about what the schedule says."""
    told_at(rt)
    ended(rt, caller)
    me = new_id()
    for number, delay_s in enumerate(SCHEDULE_S, 1):
        assert fails(rt, me) == set()
        state, tries, wait_s, holder = facts(
            rt, "state, attempts, extract(epoch FROM due_at - clock_timestamp()), worker_id"
        )
        assert (state, tries, holder) == ("pending", number, None)
        assert delay_s * (1 - JITTER) - 2 < wait_s <= delay_s * (1 + JITTER)
        assert claim(rt).messages == []
        now_due(rt)
    assert 27 * 3600 < sum(SCHEDULE_S) < 28 * 3600
    (dead,) = fails(rt, me)
    assert facts(rt, "state, attempts, error") == ["dead", 8, "answered 500"]
    assert scalar(rt, "SELECT array_agg(number ORDER BY number) FROM deliveries") == list(range(1, 9))

    with rt.db.transaction() as tx:
        assert [one.endpoint for one in replay(tx, Wanted(state="dead", service="shop"))] == [ENDPOINT]
    (found,) = claim(rt, worker_id=me).messages or claim(rt).messages or again(rt, me)
    assert (found.id, found.number) == (dead, 9)


def test_each_is_replayed_once_though_some_have_ended_again_before_the_last_is(rt: Runtime, caller: Caller) -> None:
    """A receiver that is gone for good refuses faster than thousands are replayed: it is not called for ever."""
    told_at(rt)
    for _ in range(3):
        ended(rt, caller)
    dies = "UPDATE notifications SET state = 'dead', due_at = NULL, ended_at = now() WHERE state = 'pending'"
    replayed: list[UUID] = []
    for count in (2, 1, 0):
        execute(rt, dies)
        with rt.db.transaction() as tx:
            batch = replay(tx, Wanted(state="dead"), after=replayed[-1] if replayed else None, at_most=2)
        replayed += [one.id for one in batch]
        assert len(batch) == count
    assert len(set(replayed)) == 3


def again(rt: Runtime, worker_id: UUID) -> Sequence[Message]:
    """What was replayed is addressed anew first."""
    with rt.db.transaction() as tx:
        notifications.address(tx, operator_url=None)
    return claim(rt, worker_id=worker_id).messages


def test_a_receiver_may_ask_for_patience_or_for_an_end(rt: Runtime, caller: Caller) -> None:
    """Retry-After makes the wait longer, never shorter; what can never succeed is not tried again."""
    told_at(rt)
    ended(rt, caller)
    me = new_id()
    fails(rt, me, retry_after_s=900.0)
    assert 890 < facts(rt, "extract(epoch FROM due_at - clock_timestamp())")[0] <= 900
    now_due(rt)
    fails(rt, me, retry_after_s=1.0)
    assert facts(rt, "extract(epoch FROM due_at - clock_timestamp())")[0] > 260
    now_due(rt)
    assert fails(rt, me, final=True)
    assert facts(rt, "state, attempts") == ["dead", 3]


def test_what_was_delivered_is_so_whoever_says_it(rt: Runtime, caller: Caller) -> None:
    """A worker taken for dead was not; and its failures are no business of whoever has it now."""
    told_at(rt)
    ended(rt, caller)
    slow, quick = new_id(), new_id()
    (message,) = claim(rt, worker_id=slow).messages
    with rt.db.transaction() as tx:
        workers.beat(tx, quick)
        assert notifications.take_back(tx, dead_after_s=12.0) == 1  # of slow nobody has heard
        assert notifications.take_back(tx, dead_after_s=12.0) == 0
    assert len(claim(rt, worker_id=quick).messages) == 1
    with rt.db.transaction() as tx:
        assert notifications.take_back(tx, dead_after_s=12.0) == 0

    assert record(rt, slow, Tried(message, URL, error="took longer than 15 s")) == set()
    assert facts(rt, "state, attempts, tries, worker_id") == ["pending", 1, 0, str(quick)]
    record(rt, slow, Tried(message, URL, status=200), Tried(message, URL, error="answered 500", status=500))
    assert facts(rt, "state, attempts, worker_id, error") == ["delivered", 3, None, None]
    record(rt, quick, Tried(message, URL, error="answered 500", status=500))
    assert facts(rt, "state, attempts, error, due_at") == ["delivered", 4, None, None]
    assert scalar(rt, "SELECT count(*) FROM deliveries") == 4


def failing(rt: Runtime, count: int = 1) -> list[endpoints.Endpoint]:
    with rt.db.transaction() as tx:
        errors = {ENDPOINT: ["answered 500"] * count}
        return endpoints.failed(tx, errors, days_s=OFF_AFTER_S, at_least=OFF_AFTER_TRIES, probe_s=PROBE_S)


def test_what_fails_for_days_is_switched_off_and_on_again_by_a_success(rt: Runtime, caller: Caller) -> None:
    """Then one notification now and then tries it, and the others wait for what comes of that."""
    told_at(rt)
    for _ in range(3):
        ended(rt, caller)
    assert failing(rt, OFF_AFTER_TRIES) == []
    execute(rt, "UPDATE endpoints SET failing_since = clock_timestamp() - interval '3 days 1 s'")
    (off,) = failing(rt)
    assert (off.name, off.failures) == (ENDPOINT, OFF_AFTER_TRIES + 1)
    assert failing(rt) == []  # it was said

    def due() -> bool:
        with rt.db.transaction() as tx:
            return notifications.are_due(tx)

    assert (claim(rt).messages, due()) == ([], False)
    execute(rt, "UPDATE endpoints SET probe_at = clock_timestamp()")
    assert due()
    assert len(claim(rt).messages) == 1
    assert (claim(rt).messages, due()) == ([], False)
    with rt.db.transaction() as tx:
        assert endpoints.succeeded(tx, [ENDPOINT, "another"]) == [ENDPOINT]
        assert endpoints.succeeded(tx, [ENDPOINT]) == []
    assert due()
    assert len(claim(rt).messages) == 2


def test_what_waits_for_an_endpoint_that_stays_off_is_dead_in_the_end(rt: Runtime, caller: Caller) -> None:
    """Else it would wait for ever. It can be replayed, and a person can switch the endpoint on."""
    told_at(rt)
    ended(rt, caller)
    failing(rt, OFF_AFTER_TRIES)
    execute(rt, "UPDATE endpoints SET failing_since = clock_timestamp() - interval '3 days 1 s'")
    failing(rt)

    def bury() -> int:
        with rt.db.transaction() as tx:
            return notifications.bury(tx, patience_s=sum(SCHEDULE_S))

    assert bury() == 0
    execute(rt, "UPDATE notifications SET created_at = created_at - interval '28 h'")
    assert bury() == 1
    assert facts(rt, "state, error") == ["dead", "its endpoint stayed switched off"]
    with rt.db.transaction() as tx:
        replay(tx, Wanted(state="dead"))
    assert bury() == 0  # its patience begins anew
    with rt.db.transaction() as tx:
        assert endpoints.switch_on(tx, ENDPOINT)
        assert not endpoints.switch_on(tx, ENDPOINT)
    assert len(again(rt, new_id())) == 1


def test_a_service_that_moves_takes_what_waits_along(rt: Runtime, caller: Caller) -> None:
    """What waited for the old address must not wait for it any longer, and what nobody wants any more ends."""
    told_at(rt)
    ended(rt, caller)
    ended(rt, caller, "https://own.example")
    with rt.db.transaction() as tx:
        services.change(tx, "shop", callback_url="https://new.example/")
        assert notifications.are_due(tx)
    assert sorted(one.endpoint for one in again(rt, new_id())) == [
        "shop https://new.example",
        "shop https://own.example",
    ]
    now_due(rt)
    execute(rt, "UPDATE notifications SET worker_id = NULL")
    with rt.db.transaction() as tx:
        services.change(tx, "shop", callback_url=None)
    assert [one.endpoint for one in again(rt, new_id())] == ["shop https://own.example"]
    assert scalar(rt, "SELECT count(*) FROM notifications WHERE state = 'unaddressed'") == 1


def test_the_operator_is_told_when_he_has_said_where(rt: Runtime) -> None:
    """What was planned is decided about when it is due; without an address it ends, and can be replayed."""
    with rt.db.transaction() as tx:
        assert provider_account.halt(tx, "key_refused", balance=None)
        notifications.address(tx, operator_url=None)
    assert facts(rt, "state, endpoint") == ["unaddressed", None]
    with rt.db.transaction() as tx:
        assert [one.endpoint for one in replay(tx, Wanted(audience="operator"))] == [None]
        notifications.address(tx, operator_url="https://Ops.example/hook?token=x")
        claimed = notifications.claim(
            tx,
            worker_id=new_id(),
            at_most=9,
            room=9,
            rooms={},
            lease_s=60,
            probe_s=60,
            operator_url="https://Ops.example/hook?token=x",
        )
    (message,) = claimed.messages
    assert (message.endpoint, message.service_id) == ("@operator https://ops.example", None)
    assert (message.url, message.data["reason"]) == ("https://Ops.example/hook?token=x", "key_refused")


def test_a_secret_is_made_once_and_rotated_with_an_overlap(rt: Runtime, caller: Caller) -> None:
    """Receivers take the new one over when it suits them, within a day; nobody else ever signs with it."""

    def valid(owner: UUID | None = caller.service.id) -> list[str]:
        with rt.db.transaction() as tx:
            return keys.of(tx, owner)

    (first,) = valid()
    assert valid() == [first]
    assert first not in valid(None)
    with rt.db.transaction() as tx:
        second = keys.rotate(tx, caller.service.id)
    assert valid() == [second, first]
    execute(
        rt,
        "UPDATE services SET callback_secrets = jsonb_set(callback_secrets, '{1,until}',"
        " to_jsonb(extract(epoch FROM clock_timestamp())::float8))",
    )
    assert valid() == [second]
    with rt.db.transaction() as tx:
        newest = [keys.rotate(tx, caller.service.id) for _ in range(5)][::-1]
    assert valid() == newest[: keys.MOST]
