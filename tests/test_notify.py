"""Callers and operators are told, signed, until they have heard it; a receiver in trouble keeps no other waiting."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from celery import Celery

import pipeline
from pipeline.connector import Infos, system_lookup
from pipeline.embedded.processes import Server
from pipeline.errors import Unavailable
from pipeline.jobs import State
from pipeline.lifecycle import evidence
from pipeline.lifecycle.batch import accept_lines
from pipeline.lifecycle.notify import OFF_AFTER_S, OFF_AFTER_TRIES, SCHEDULE_S, Notifier
from pipeline.outbound import Outbound
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import account, deliveries, keys, reading, services
from pipeline.store.moves import Move, advance
from pipeline.store.outbox import Told
from pipeline.store.tables import new_id
from pipeline.threads import Duty, Loop
from pipeline.worker import Worker
from tests.commands import command
from tests.conftest import Caller
from tests.factories import execute, placed, queued, scalar, swept, until
from tests.receivers import Receiver, receiving
from tests.test_cli import value
from tests.test_outbound import INSIDE
from tests.wire import says, wire

NOWHERE = "http://127.0.0.1:9"
"""Nobody listens on the port that is meant for throwing things away."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give somebody who wants to be told."""
    with receiving() as one:
        yield one


def told_at(rt: Runtime, caller: Caller, url: str | None) -> None:
    """Have a service told there."""
    with rt.db.transaction() as tx:
        assert services.change(tx, caller.service.name, callback_url=url)


def secret(rt: Runtime, caller: Caller | None) -> str:
    """What signs what a service is told; None: the operator."""
    with rt.db.transaction() as tx:
        return keys.of(tx, caller.service.id if caller else None)[0]


def failed(rt: Runtime, caller: Caller) -> UUID:
    """A job that has just failed."""
    job_id = placed(rt, caller.service, State.PROCESSING)  # what is queued a running worker may take
    with rt.db.transaction() as tx:
        error = {"code": "rejected", "message": "no", "provider_code": None}
        assert advance(tx, [Move(job_id, State.FAILED, error=error)])
    return job_id


def notification(rt: Runtime, job_id: UUID) -> Any:
    """The one notification of a job."""
    with rt.db.transaction() as tx:
        (one,) = reading.notifications(tx, job_id)
    return one


def tries(rt: Runtime, job_id: UUID) -> list[Any]:
    """Every try to deliver it."""
    with rt.db.transaction() as tx:
        one = notification(rt, job_id).id
        return deliveries.of(tx, [one])[one]


def hurry(rt: Runtime, job_id: UUID) -> None:
    """Its next try is now."""
    execute(
        rt, "UPDATE notifications SET due_at = clock_timestamp() WHERE job_id = :id AND due_at IS NOT NULL", id=job_id
    )


def test_a_job_is_told_of_from_end_to_end(
    rt: Runtime, caller: Caller, receiver: Receiver, web: str, sandbox: Sandbox, start_worker: Callable[..., Worker]
) -> None:
    """By the service's address or the job's own, signed with the service's secret, and the log shows it."""
    told_at(rt, caller, f"{receiver.url}/hooks?token=of-the-service")
    worker = start_worker()

    first, second = queued(rt, caller.service), queued(rt, caller.service, callback_url=f"{receiver.url}/own?token=t")
    worker.wake("submit")
    until(lambda: swept(worker, lambda: len(receiver.heard) == 2))

    heard = {json.loads(one.body)["data"]["job"]["id"]: one for one in receiver.heard}
    assert heard[str(first)].path == "/hooks?token=of-the-service"
    assert heard[str(second)].path == "/own?token=t"
    for job_id in (first, second):
        one = heard[str(job_id)]
        said = one.event(secret(rt, caller))
        assert said == pipeline.verify_notification(secret(rt, caller), one.headers, one.body)
        assert (said["type"], said["data"]["job"]["state"]) == ("job.completed", "completed")
        assert said["data"]["stored"] == all(one["stored"] for one in said["data"]["job"]["outputs"])
        until(lambda: notification(rt, job_id).state == Told.DELIVERED)  # noqa: B023
        found = evidence.of_job(rt, caller.service, job_id)["notifications"][0]
        (delivery,) = found["deliveries"]
        assert (found["id"], found["attempts"], found["endpoint"]) == (one.id, 1, receiver.url)
        assert (delivery["status"], delivery["error"], delivery["answer"]) == (200, None, "thank you\ufffd")
        assert delivery["target"] == receiver.url + one.path.partition("?")[0]
        assert delivery["request"]["body"].encode() == one.body
        assert delivery["request"]["headers"].items() <= one.headers.items()


def test_a_receiver_that_is_down_for_a_day_keeps_nobody_else_waiting_and_is_told_at_last(
    rt: Runtime,
    make_caller: Callable[..., Caller],
    receiver: Receiver,
    environ: dict[str, str],
    start_worker: Callable[..., Worker],
) -> None:
    """The schedule is kept, then it is dead; a replay delivers it under the same id. Others are told meanwhile."""
    down, well = make_caller("down"), make_caller("well")
    told_at(rt, down, NOWHERE)
    told_at(rt, well, receiver.url)
    worker = start_worker()
    job_id = failed(rt, down)

    for number in range(1, len(SCHEDULE_S) + 2):
        other = failed(rt, well)
        worker.wake("notify")
        until(lambda: notification(rt, job_id).attempts == number)  # noqa: B023
        until(lambda: notification(rt, other).state == Told.DELIVERED)  # noqa: B023
        assert notification(rt, job_id).state == (Told.PENDING if number <= len(SCHEDULE_S) else Told.DEAD)
        hurry(rt, job_id)
    assert len(receiver.heard) == len(SCHEDULE_S) + 1
    assert {one.error for one in tries(rt, job_id)} == {notification(rt, job_id).error}
    assert scalar(rt, "SELECT failures FROM endpoints WHERE name = :name", name=f"down {NOWHERE}") == 8

    told_at(rt, down, receiver.url)
    listed = value(command(environ, "notifications", "list", "--state", "dead", "--json"))
    assert [(one["job_id"], one["attempts"]) for one in listed] == [(str(job_id), 8)]
    for words in (["--since", "1h", "--dry-run"], ["--service", "down"]):
        assert value(command(environ, "notifications", "replay", "--json", *words)) == {"count": 1}
    assert value(command(environ, "notifications", "replay", "--until", "1h", "--json")) == {"count": 0}
    worker.wake("notify")
    until(lambda: notification(rt, job_id).state == Told.DELIVERED)
    last = receiver.heard[-1]
    assert last.event(secret(rt, down))["data"]["job"]["id"] == str(job_id)
    assert (last.id, len(tries(rt, job_id))) == (listed[0]["id"], 9)


def test_tasks_and_operators_are_told_and_what_must_not_be_called_is_not(
    make_rt: Callable[..., Runtime],
    sandbox: Sandbox,
    caller: Caller,
    receiver: Receiver,
    valkey: Server,
    start_worker: Callable[..., Worker],
) -> None:
    """A task gets the event by its keywords, in its own queue; the operator has a secret of his own."""
    rt = make_rt(broker_url=valkey.url, operator_callback_url=f"{receiver.url}/ops")
    allowed = json.dumps([{"task": "shop.done", "queue": "shops-own"}])
    execute(rt, "UPDATE services SET callback_tasks = CAST(:tasks AS jsonb)", tasks=allowed)
    task, forbidden, private = (placed(rt, caller.service, State.QUEUED) for _ in range(3))
    says = "UPDATE jobs SET callback_task = :task, callback_url = :url WHERE id = :id"
    execute(rt, says, id=task, task="shop.done", url=receiver.url)
    execute(rt, says, id=forbidden, task="shop.other", url=None)
    execute(rt, says, id=private, task=None, url="http://10.0.0.1/hook?token=secret")
    with rt.db.transaction() as tx:
        advance(tx, [Move(one, State.CANCELLED) for one in (task, forbidden, private)])
        account.halt(tx, "key_refused", balance=None)
    start_worker(rt).wake("notify")

    until(lambda: notification(rt, task).state == Told.DELIVERED)
    app = Celery("shop", broker=valkey.url, set_as_current=False)
    with app.connection_for_read() as connection, connection.SimpleQueue("shops-own") as messages:
        message = messages.get(timeout=10)
        message.ack()
    args, kwargs, _ = message.payload
    assert (message.headers["task"], args, kwargs["event"]) == ("shop.done", [], "job.cancelled")
    assert (message.headers["id"], kwargs["id"]) == (str(notification(rt, task).id),) * 2
    assert (kwargs["data"].keys(), kwargs["data"]["job"]["id"]) == ({"job"}, str(task)), "there is nothing to store"

    for job_id, reason in ((forbidden, "may no longer name"), (private, "address_refused")):
        until(lambda: notification(rt, job_id).state == Told.DEAD)  # noqa: B023
        (one,) = tries(rt, job_id)
        assert (reason in one.error, one.request, "secret" in str(one)) == (True, None, False)

    (heard,) = until(lambda: receiver.heard)
    said = heard.event(secret(rt, None))
    assert (heard.path, said["type"], said["data"]["reason"]) == ("/ops", "account.halted", "key_refused")


def test_a_name_that_leads_astray_for_a_moment_is_never_called_then_and_tried_again(
    rt: Runtime, caller: Caller, receiver: Receiver
) -> None:
    """DNS may be wrong for a minute. What is wrong in the address itself stays so, and is dead at once."""
    leads_to = [INSIDE]

    def lookup(_host: str, port: int) -> Infos:
        return system_lookup(leads_to[-1], port)

    port = urlsplit(receiver.url).port
    told_at(rt, caller, f"http://shop.example.com:{port}/hook")
    job_id = failed(rt, caller)
    loop = Loop()
    outbound = Outbound(rt.settings.outbound_allow, lookup=lookup)
    notifier = Notifier(rt, new_id(), loop, outbound, wake=lambda: None)
    with wire(says(200), host=INSIDE) as inside:
        notifier.look()
        until(lambda: notification(rt, job_id).attempts == 1)
        assert inside.untouched
    (one,) = tries(rt, job_id)
    assert (one.error.partition(":")[0], INSIDE in one.error, one.request) == ("address_refused", True, None)
    assert notification(rt, job_id).state == Told.PENDING
    leads_to.append("127.0.0.1")
    hurry(rt, job_id)
    notifier.look()
    until(lambda: notification(rt, job_id).state == Told.DELIVERED)
    assert [one.path for one in receiver.heard] == ["/hook"]
    notifier.stop(0.0)
    loop.run(outbound.close())
    loop.stop()


def test_a_long_queue_for_one_receiver_is_sent_to_its_end_at_one_call(
    rt: Runtime, caller: Caller, receiver: Receiver
) -> None:
    """Places that come free while the next are claimed are given out, too: no later sweep has to come for the rest."""
    told_at(rt, caller, receiver.url)
    job_ids, _ = accept_lines(rt, caller.service, b"\n".join([b'{"input": {"prompt": "a fox"}}'] * 400))
    with rt.db.transaction() as tx:
        error = {"code": "rejected", "message": "no", "provider_code": None}
        assert len(advance(tx, [Move(one, State.FAILED, error=error) for one in job_ids])) == 400
    loop = Loop()
    outbound = Outbound(rt.settings.outbound_allow)

    def wake() -> None:
        duty.wake()

    notifier = Notifier(rt, new_id(), loop, outbound, wake)
    duty = Duty("notify", notifier.look, rest_s=0.02)
    duty.start()
    until(lambda: scalar(rt, "SELECT count(*) FROM notifications WHERE state = 'delivered'") == 400)
    duty.stop()
    duty.join(5.0)
    notifier.stop(0.0)
    loop.run(outbound.close())
    loop.stop()


def test_what_was_claimed_and_cannot_be_begun_waits_for_no_lease(
    rt: Runtime, caller: Caller, receiver: Receiver
) -> None:
    """The database goes away between the claim and what it takes to send: another process may send it at once."""
    told_at(rt, caller, receiver.url)
    failed(rt, caller)
    loop = Loop()
    outbound = Outbound(rt.settings.outbound_allow)
    notifier = Notifier(rt, new_id(), loop, outbound, wake=lambda: None)
    execute(rt, "ALTER TABLE services RENAME COLUMN callback_secrets TO away")
    try:
        with pytest.raises(Unavailable):
            notifier.look()
    finally:
        execute(rt, "ALTER TABLE services RENAME COLUMN away TO callback_secrets")
    assert scalar(rt, "SELECT due_at <= clock_timestamp() AND worker_id IS NULL FROM notifications")
    notifier.look()
    until(lambda: receiver.heard)
    notifier.stop(1.0)
    loop.run(outbound.close())
    loop.stop()


def test_a_receiver_that_names_a_date_is_left_alone_until_then(
    rt: Runtime, caller: Caller, start_worker: Callable[..., Worker]
) -> None:
    """Retry-After has two spellings; what is neither is none."""
    named = formatdate(time.time() + 1800, usegmt=True)
    waits = {}
    for said in (named, "Mon, 99 Foo", formatdate(0, usegmt=True)):
        with wire(says(503, **{"Retry-After": said})) as busy:
            told_at(rt, caller, f"{busy.url}/hook")
            job_id = failed(rt, caller)
            start_worker().wake("notify")
            until(lambda: notification(rt, job_id).attempts == 1)  # noqa: B023
        wait_s = "SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM notifications WHERE job_id = :id"
        waits[said] = scalar(rt, wait_s, id=job_id)
    assert 1700 < waits.pop(named) <= 1800
    assert max(waits.values()) < 10


def test_a_worker_that_stops_gives_back_what_nobody_answered(
    rt: Runtime, caller: Caller, receiver: Receiver, start_worker: Callable[..., Worker]
) -> None:
    """Another process sends it at once, and not only when the lease is over."""
    answering = threading.Event()
    receiver.answer = lambda _: 200 if answering.wait(30) else 500
    told_at(rt, caller, receiver.url)
    worker = start_worker()
    job_id = failed(rt, caller)
    worker.wake("notify")
    until(lambda: receiver.heard)

    worker.stop(0.5)
    waits = "SELECT state = 'pending' AND due_at <= clock_timestamp() AND worker_id IS NULL FROM notifications"
    assert scalar(rt, waits)
    answering.set()
    start_worker().wake("notify")
    until(lambda: notification(rt, job_id).state == Told.DELIVERED)
    assert len({one.id for one in receiver.heard}) == 1


def test_an_operator_sees_and_enables_what_was_switched_off(
    rt: Runtime, caller: Caller, receiver: Receiver, environ: dict[str, str], start_worker: Callable[..., Worker]
) -> None:
    """What fails for days is said, and a person does not have to wait for the next probe."""
    told_at(rt, caller, f"{receiver.url}/hook")
    receiver.answer = lambda _: 503
    name = f"shop {receiver.url}"
    worker = start_worker()
    jobs = [failed(rt, caller) for _ in range(OFF_AFTER_TRIES)]
    worker.wake("notify")
    until(lambda: scalar(rt, "SELECT failures FROM endpoints") == len(jobs))
    execute(rt, f"UPDATE endpoints SET failing_since = clock_timestamp() - interval '{OFF_AFTER_S} s'")
    hurry(rt, jobs[0])
    worker.wake("notify")
    until(lambda: scalar(rt, "SELECT off_at FROM endpoints"))
    told = "SELECT array_agg(event ORDER BY created_at) FROM notifications WHERE audience = 'operator'"
    assert scalar(rt, told) == ["endpoint.switched_off"]

    (shown,) = value(command(environ, "notifications", "endpoints", "--json"))
    assert (shown["endpoint"], shown["waiting"], shown["error"]) == (name, len(jobs), "answered 503")
    assert name in command(environ, "notifications", "endpoints").stdout.replace("\n", "")
    receiver.answer = lambda _: 200
    assert command(environ, "notifications", "enable", name).returncode == 0
    assert "switched off" in command(environ, "notifications", "enable", name).stderr
    for job_id in jobs:
        hurry(rt, job_id)
    worker.wake("notify")
    until(lambda: {notification(rt, job_id).state for job_id in jobs} == {Told.DELIVERED})
    assert scalar(rt, told) == ["endpoint.switched_off", "endpoint.switched_on"]
    one = value(command(environ, "notifications", "show", str(notification(rt, jobs[0]).id), "--json"))
    assert [try_["status"] for try_ in one["deliveries"]] == [503, 503, 200]


def test_the_secrets_are_shown_and_rotated_on_the_command_line(
    rt: Runtime, caller: Caller, environ: dict[str, str]
) -> None:
    """Who makes a service gets both of its secrets; what signs may be seen again, the key may not."""
    made = value(command(environ, "services", "create", "new", "--json"))
    assert value(command(environ, "services", "secret", "new", "--json")) == {"name": "new", "secret": made["secret"]}
    rotated = value(command(environ, "services", "secret", "new", "--rotate", "--json"))["secret"]
    assert command(environ, "services", "secret", "new").stdout.strip() == rotated != made["secret"]
    operators = command(environ, "notifications", "secret").stdout.strip()
    assert operators.startswith("whsec_")
    assert secret(rt, None) == operators not in {rotated, made["secret"]}
    for words in (
        ["services", "secret", "nobody"],
        ["notifications", "show", "x"],
        ["notifications", "list", "--since", "x"],
    ):
        assert command(environ, *words).returncode == 1
