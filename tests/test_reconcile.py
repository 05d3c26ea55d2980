"""Reconcile: a paid POST whose answer was lost is found, or proven never to have been; only then is it repeated."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import State, Via
from pipeline.lifecycle.reconcile import Reconciler
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import missing, reading, workers
from pipeline.store.alarms import DEAD_AFTER_S
from pipeline.store.tables import new_id
from pipeline.threads import Loop
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import (
    MODEL,
    account,
    attempts,
    claimed,
    execute,
    happened,
    kinds,
    prediction_id,
    queued,
    row,
    scalar,
    state,
    swept,
    unknown,
    until,
)
from tests.http import post
from tests.wire import Handler, Request, http, says, wire

StartWorker = Callable[..., Worker]
MakeRuntime = Callable[..., Runtime]

LOST: dict[str, object] = {"lose_answer": 1, "webhook_drop": 1}
"""The task runs, and no word of it ever comes."""

NEVER: dict[str, object] = {"redirect_307": 1}
"""No answer that says so, and no task either."""

ASKED_SEEN_CONCLUDED = {"window", "listed", "candidates", "complete", "patience_s", "absent", "next_look_s"}

WELL: dict[str, object] = {"lose_answer": 0, "redirect_307": 0}


def lose(
    rt: Runtime, caller: Caller, sandbox: Sandbox, worker: Worker, *prompts: str, how: dict[str, object] = LOST
) -> list[UUID]:
    """Have jobs submitted whose answers get lost; their alarms are set an hour off, until `look_now`."""
    sandbox.faults(**how)
    jobs = [queued(rt, caller.service, prompt) for prompt in prompts]
    swept(worker, lambda: {state(rt, job_id) for job_id in jobs} == {State.UNKNOWN})
    for job_id in jobs:
        execute(rt, "UPDATE jobs SET due_at = due_at + interval '1 hour' WHERE id = :id", id=job_id)
    dial: Any = sandbox.faults(**(dict.fromkeys(how, 0) | {"webhook_drop": 0}))
    until(lambda: dial["generation_s"] > 1 or sandbox.arrivals()["running"] == 0)
    execute(rt, "UPDATE account SET trial = false, recent = '', backoff_until = NULL, pacer = NULL")
    return jobs


def look_now(rt: Runtime) -> None:
    """Let the alarms of all unknown jobs go off."""
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() WHERE state = 'unknown'")


def looked(rt: Runtime, worker: Worker, job_id: UUID) -> dict[str, Any]:
    """Have a job looked for once more; give what was seen."""
    before = len(happened(rt, job_id, "attempt.looked_for"))
    look_now(rt)
    seen = swept(worker, lambda: happened(rt, job_id, "attempt.looked_for")[before:])
    return dict(seen[-1])


def own_task(rt: Runtime, sandbox: Sandbox, job_id: UUID) -> bool:
    """Whether a job holds a task that was made from its own prompt."""
    job = row(rt, job_id)
    prompts = {charge["prediction_id"]: charge["prompt"] for charge in sandbox.ledger()}
    return bool(prompts[job.prediction_id] == job.input["prompt"])


# Found in the list


def test_a_job_with_an_option_that_is_never_sent_is_found_all_the_same(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """One written straight into the database may have it; not found, it would be paid for once more."""
    worker = start_worker()
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse")
    options = '{"prompt": "a lighthouse", "enable_base64_output": false}'
    execute(rt, "UPDATE jobs SET input = :input WHERE id = :id", id=job_id, input=options)

    look_now(rt)
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)
    assert len(sandbox.ledger()) == 1


@pytest.mark.parametrize(
    ("faults", "end"),
    [
        ({}, State.COMPLETED),
        ({"fail": 1}, State.FAILED),
        ({"ends_as": "cancelled"}, State.FAILED),
        ({"generation_s": 60}, State.PROCESSING),
    ],
)
def test_a_lost_task_is_found_in_the_list_and_adopted_as_it_is(
    rt: Runtime,
    caller: Caller,
    sandbox: Sandbox,
    start_worker: StartWorker,
    faults: dict[str, object],
    end: State,
) -> None:
    """It was paid for: whatever became of it is the job's, at no further charge."""
    sandbox.faults(**faults)
    worker = start_worker()
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse")

    look_now(rt)
    swept(worker, lambda: state(rt, job_id) == end)

    job, (attempt,) = row(rt, job_id), attempts(rt, job_id)
    (charge,) = sandbox.ledger()
    assert job.prediction_id == attempt.prediction_id == charge["prediction_id"]
    assert attempt.outcome == "accepted"
    assert job.settled_by == (None if end is State.PROCESSING else Via.LIST)
    (told,) = happened(rt, job_id, f"job.{end}")
    assert told["via"] == "list"
    assert "model and input" in told["why"]


def test_equal_lost_jobs_get_one_task_each(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Tasks for equal requests are interchangeable, but none may serve twice."""
    worker = start_worker()
    jobs = lose(rt, caller, sandbox, worker, *["a lighthouse"] * 4)

    look_now(rt)
    swept(worker, lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED})

    assert len({row(rt, job_id).prediction_id for job_id in jobs}) == 4
    assert len(sandbox.ledger()) == 4


def test_of_equal_lost_jobs_the_one_without_a_task_is_submitted_again(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Which of the two it was nobody can tell, and it does not matter: two jobs, two charges."""
    worker = start_worker()
    jobs = lose(rt, caller, sandbox, worker, "a lighthouse") + lose(
        rt, caller, sandbox, worker, "a lighthouse", how=NEVER
    )

    look_now(rt)
    swept(worker, lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED})

    assert len({row(rt, job_id).prediction_id for job_id in jobs}) == 2
    assert len(sandbox.ledger()) == 2


def test_a_task_from_another_input_is_nobodys(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """A picture of something else would be worse than none."""
    worker = start_worker()
    (cat,) = lose(rt, caller, sandbox, worker, "a cat")
    (dog,) = lose(rt, caller, sandbox, worker, "a dog", how=NEVER)

    look_now(rt)
    swept(worker, lambda: state(rt, cat) == state(rt, dog) == State.COMPLETED)

    assert own_task(rt, sandbox, cat)
    assert own_task(rt, sandbox, dog)
    assert [len(attempts(rt, job_id)) for job_id in (cat, dog)] == [1, 2]
    assert len(sandbox.ledger()) == 2


@pytest.mark.parametrize(
    "echo",
    [
        pytest.param({"prompt": "a lighthouse", "size": "1024*1024", "seed": -1}, id="defaults filled in"),
        pytest.param({"prompt": " A  lighthouse ", "n": 1}, id="words tidied up"),
        pytest.param({"inputs": {}}, id="another shape"),
    ],
)
def test_a_task_whose_input_is_shown_in_another_form_may_be_ours_and_is_no_proof_of_absence(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker, echo: dict[str, Any]
) -> None:
    """Nobody promised that the list repeats an input to the letter: taken for another's, ours would be paid again."""

    def answer(request: Request, connection: socket.socket) -> None:
        now = datetime.now(UTC)
        item = {"id": "a" * 32, "model": MODEL, "status": "processing", "input": echo}
        shown = {"data": {"items": [item] if "model" in json.loads(request.body) else []}}
        connection.sendall(http(200, shown, Date=format_datetime(now, usegmt=True)))

    with wire(answer) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=1)
        job = unknown(rt, caller.service)
        execute(rt, "UPDATE attempts SET ended_at = now() - interval '1 hour', absent_at = now() - interval '1 hour'")
        look_now(rt)
        worker = start_worker(rt)
        swept(worker, lambda: "attempt.looked_for" in kinds(rt, job.job_id) or state(rt, job.job_id) != State.UNKNOWN)
        worker.stop()

    assert [attempt.outcome for attempt in attempts(rt, job.job_id)] == ["lost"]
    assert row(rt, job.job_id).held_at is not None


def test_a_task_of_another_model_is_nobodys(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Equal words mean another picture there, at another price."""
    rt = make_rt(unknown_patience_s=60)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse", how=NEVER)
    post(f"{sandbox.url}/api/v3/openai/dall-e-3", {"prompt": "a lighthouse"}, key="somebody")

    assert looked(rt, worker, job_id)["candidates"] == []


def test_a_task_that_is_an_accepted_jobs_is_not_adopted_by_another(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The list shows what we know, too."""
    rt = make_rt(unknown_patience_s=60)
    worker = start_worker(rt)
    known = queued(rt, caller.service, "a lighthouse")
    swept(worker, lambda: state(rt, known) == State.COMPLETED)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse", how=NEVER)

    assert looked(rt, worker, job_id)["candidates"] == []
    assert state(rt, job_id) == State.UNKNOWN


def test_a_task_that_enters_the_list_late_is_waited_for(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """That is what the patience is for: the first read without it proves nothing."""
    rt = make_rt(unknown_patience_s=30)
    sandbox.faults(list_lag_s=1)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse")
    first = looked(rt, worker, job_id)

    swept(worker, lambda: look_now(rt) or state(rt, job_id) == State.COMPLETED)  # type: ignore[func-returns-value]

    assert (first["candidates"], first["absent"]) == ([], False)
    assert len(sandbox.ledger()) == 1


def test_a_list_of_many_pages_is_read_to_its_end(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """A page holds a hundred tasks; on a busy account many more stand before ours."""
    worker = start_worker()
    jobs = lose(rt, caller, sandbox, worker, "job 0", "job 1", "job 2")
    asyncio.run(crowd(rt, 220))

    look_now(rt)
    swept(worker, lambda: scalar(rt, "SELECT count(*) FROM jobs WHERE state = 'completed'") == 3)

    assert all(own_task(rt, sandbox, job_id) for job_id in jobs)
    assert len(sandbox.ledger()) == 223


async def crowd(rt: Runtime, count: int) -> None:
    """Make tasks of the same model, as others on the account would."""
    provider = rt.provider()
    await asyncio.gather(*(provider.submit(MODEL, {"prompt": f"other {number}"}) for number in range(count)))
    await provider.close()


def test_the_window_is_reckoned_by_the_providers_clock(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """Ours and theirs may differ by an hour; the list's own Date header tells."""
    ahead = timedelta(hours=1)

    def answer(request: Request, connection: socket.socket) -> None:
        item = {
            "id": "f" * 32,
            "model": MODEL,
            "status": "completed",
            "outputs": ["https://cdn.example.com/1.png"],
            "input": {"prompt": "a lighthouse"},
            "created_at": (begun + ahead).isoformat(),
        }
        date = format_datetime(datetime.now(UTC) + ahead, usegmt=True)
        connection.sendall(http(200, {"code": 200, "data": {"page": 1, "items": [item]}}, Date=date))

    with wire(answer) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        begun = datetime.now(UTC)
        job = unknown(rt, caller.service)
        worker = start_worker(rt)
        look_now(rt)
        swept(worker, lambda: state(rt, job.job_id) == State.COMPLETED)

    windows = [json.loads(request.body) for request in server.requests if b"created_after" in request.body]
    assert datetime.fromisoformat(windows[0]["created_after"]) > begun + ahead - timedelta(seconds=10)
    assert datetime.fromisoformat(windows[0]["created_before"]) < begun + ahead + timedelta(seconds=60)


# A list that does not show inputs


def test_a_task_without_its_input_is_not_adopted_on_a_shared_account(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """It may be anybody's, made in a browser. But while it is there nothing is proven, so nothing is repeated."""
    rt = make_rt(unknown_patience_s=0.1)
    sandbox.faults(list_input=False)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse")

    for _ in range(4):
        seen = looked(rt, worker, job_id)
        assert (len(seen["candidates"]), seen["complete"], seen["absent"]) == (1, True, False)

    assert state(rt, job_id) == State.UNKNOWN
    assert sandbox.arrivals()["count"] == 1


def test_on_an_account_of_our_own_the_only_task_is_the_only_jobs(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """One lost job, one task that is nobody's, and nobody else there."""
    rt = make_rt(account_exclusive=True)
    sandbox.faults(list_input=False)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse")

    look_now(rt)
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    assert "nobody else uses" in happened(rt, job_id, "job.completed")[0]["why"]
    assert len(sandbox.ledger()) == 1


@pytest.mark.parametrize("second", [LOST, NEVER], ids=["two tasks", "one task"])
def test_even_there_two_lost_jobs_are_not_told_apart(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker, second: dict[str, object]
) -> None:
    """Either task may be either job's: a wrong picture would be delivered as the right one."""
    rt = make_rt(account_exclusive=True, unknown_patience_s=0.1)
    sandbox.faults(list_input=False)
    worker = start_worker(rt)
    jobs = lose(rt, caller, sandbox, worker, "a cat") + lose(rt, caller, sandbox, worker, "a dog", how=second)

    for job_id in jobs * 2:
        assert looked(rt, worker, job_id)["absent"] is False

    assert {state(rt, job_id) for job_id in jobs} == {State.UNKNOWN}
    assert sandbox.arrivals()["count"] == 2


# Proven never to have been


def test_a_post_that_never_was_is_repeated_after_two_complete_reads_and_no_sooner(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The first begins when patience ends, the second a fifth of it later: a task had all that time to show."""
    worker = start_worker()
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse", how=NEVER)
    lost_at = attempts(rt, job_id)[0].ended_at

    look_now(rt)
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    with rt.db.transaction() as tx:
        events = reading.events(tx, job_id)
    absent = [event.at for event in events if event.kind == "attempt.looked_for" and event.data["absent"]]
    repeated = next(event for event in events if event.kind == "job.queued" and event.data.get("from") == "unknown")
    patience = timedelta(seconds=rt.settings.unknown_patience_s)
    assert absent[0] - lost_at >= patience
    assert repeated.at - absent[0] >= patience / 5
    assert "two complete reads" in repeated.data["why"]
    assert [attempt.outcome for attempt in attempts(rt, job_id)] == ["absent", "accepted"]
    assert len(sandbox.ledger()) == 1


def test_a_worker_that_died_before_its_post_leaves_a_job_that_is_submitted_again(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The intent was written, the POST never left: from outside this looks like any lost answer."""
    job_id = queued(rt, caller.service)
    dead = new_id()
    claimed(rt, worker_id=dead)
    with rt.db.transaction() as tx:
        workers.leave(tx, dead)
    worker = start_worker()

    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    assert happened(rt, job_id, "job.unknown") == [{"from": "submitting", "why": "worker dead"}]
    assert [attempt.outcome for attempt in attempts(rt, job_id)] == ["absent", "accepted"]
    assert len(sandbox.ledger()) == 1


def test_a_verdict_that_comes_after_absence_was_proven_is_still_taken(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The provider hid a task for longer than we waited; before the job is submitted again, it has its result."""
    rt = make_rt(unknown_patience_s=0.2)
    sandbox.faults(list_lag_s=60, lose_answer=1, webhook_drop=1)
    job_id = queued(rt, caller.service)
    worker = start_worker(rt)
    until(lambda: state(rt, job_id) == State.UNKNOWN)
    execute(rt, "UPDATE account SET backoff_until = clock_timestamp() + interval '1 hour'")
    swept(worker, lambda: look_now(rt) or state(rt, job_id) == State.QUEUED)  # type: ignore[func-returns-value]

    sandbox.resend(until(sandbox.deliveries)[0]["id"])
    until(lambda: state(rt, job_id) == State.COMPLETED)

    assert [attempt.outcome for attempt in attempts(rt, job_id)] == ["accepted"]
    assert len(sandbox.ledger()) == 1
    with rt.db.transaction() as tx:
        assert missing.lateness_s(tx)  # and what the list's word is worth is known now


def test_a_list_that_cannot_be_read_proves_nothing(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The provider fails in all its calls at a time: that its list shows nothing then is no proof."""
    rt = make_rt(unknown_patience_s=0.1)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse")
    sandbox.faults(read_500=1)
    for number in range(1, 4):
        look_now(rt)
        swept(worker, lambda: sandbox.arrivals()["refused"].get("list", 0) >= number)  # noqa: B023
        until(lambda: scalar(rt, "SELECT due_at < clock_timestamp() + interval '1 minute' FROM jobs"))

    assert state(rt, job_id) == State.UNKNOWN
    assert happened(rt, job_id, "attempt.looked_for") == []
    assert happened(rt, job_id, "attempt.look_failed") == [{"why": "provider_unavailable"}]

    sandbox.faults(read_500=0)
    look_now(rt)
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)
    assert len(sandbox.ledger()) == 1


@pytest.mark.parametrize(
    "items", [[{"id": ""}], [None], [{"id": "a", "model": MODEL}]], ids=["no id", "nothing", "no status"]
)
def test_an_item_that_cannot_be_read_makes_a_reading_incomplete(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker, items: list[object]
) -> None:
    """It might be the very task."""
    with wire(says(200, {"code": 200, "data": {"page": 1, "items": items}})) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=0.1)
        job = unknown(rt, caller.service)
        worker = start_worker(rt)
        for _ in range(3):
            seen = looked(rt, worker, job.job_id)
            assert (seen["complete"], seen["absent"]) == (False, False)

    assert state(rt, job.job_id) == State.UNKNOWN


def test_a_list_without_an_end_proves_nothing(make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker) -> None:
    """A provider that ignores the page number would have us read one page for ever."""
    items = [{"id": f"{number:032x}", "model": "x/y", "status": "completed"} for number in range(100)]
    with wire(says(200, {"code": 200, "data": {"page": 1, "items": items}})) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=0.1)
        job = unknown(rt, caller.service)
        seen = looked(rt, start_worker(rt), job.job_id)

    assert (seen["complete"], seen["absent"]) == (False, False)
    assert len(server.requests) <= 110


def test_every_look_is_written_down(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Whoever is asked where a job has been all night finds it in the job's history."""
    rt = make_rt(unknown_patience_s=600)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse", how=NEVER)

    seen = [looked(rt, worker, job_id) for _ in range(3)]

    assert kinds(rt, job_id) == ["job.queued", "job.submitting", "job.unknown"] + ["attempt.looked_for"] * 3
    assert all(each.keys() == ASKED_SEEN_CONCLUDED for each in seen)


def test_looks_grow_rarer_until_patience_ends(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Soon at first, for a task shows within seconds; then once a minute; and exactly when the proof may begin."""
    rt = make_rt(unknown_patience_s=900)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse", how=NEVER)
    waits = []
    for age_s in (0, 60, 600, 880):
        execute(rt, "UPDATE attempts SET started_at = ended_at - interval '1 second'")
        execute(
            rt,
            "UPDATE attempts SET ended_at = clock_timestamp() - make_interval(secs => :s),"
            " started_at = clock_timestamp() - make_interval(secs => :s)",
            s=age_s,
        )
        waits.append(round(looked(rt, worker, job_id)["next_look_s"]))

    assert waits == [2, 30, 60, 20]


# A callback that may not be believed


def test_a_stale_callback_names_the_task_and_the_provider_confirms_it(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Replayed or late, it is a hint: what the GET says is believed."""
    sandbox.faults(lose_answer=1, webhook_stale=1, list_lag_s=60)
    job_id = queued(rt, caller.service)
    worker = start_worker()

    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    assert row(rt, job_id).settled_by == Via.LIST
    assert "callback named" in happened(rt, job_id, "job.completed")[0]["why"]
    assert len(sandbox.ledger()) == 1


def hint(rt: Runtime, prediction_id: str) -> None:
    execute(rt, "UPDATE attempts SET hint_id = :id", id=prediction_id)


@pytest.mark.parametrize(
    ("model", "prompt"), [("openai/dall-e-3", "a lighthouse"), (MODEL, "something else"), (None, "")]
)
def test_a_hint_that_the_provider_does_not_confirm_is_dropped(
    make_rt: MakeRuntime,
    caller: Caller,
    sandbox: Sandbox,
    start_worker: StartWorker,
    model: str | None,
    prompt: str,
) -> None:
    """An authentic body of another task, sent to this job's address: the signature does not cover the address."""
    rt = make_rt(unknown_patience_s=600)
    sandbox.faults(result_input=True, list_lag_s=60)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse", how=NEVER)
    other = post(f"{sandbox.url}/api/v3/{model}", {"prompt": prompt}, key="k").json["data"]["id"] if model else "f" * 32

    hint(rt, other)
    looked(rt, worker, job_id)

    assert state(rt, job_id) == State.UNKNOWN
    assert attempts(rt, job_id)[0].prediction_id is None
    assert scalar(rt, "SELECT hint_id FROM attempts") is None


def test_a_hint_is_kept_while_the_provider_does_not_answer(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """No answer is no refutation; it may be all that ever leads to the task."""
    wanted = prediction_id()

    def failing(request: Request, connection: socket.socket) -> None:
        body = http(200, {"data": {"page": 1, "items": []}}) if request.method == "POST" else http(500)
        connection.sendall(body)

    with wire(failing) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=600)
        job = unknown(rt, caller.service)
        hint(rt, wanted)
        worker = start_worker(rt)
        looked(rt, worker, job.job_id)
        assert scalar(rt, "SELECT hint_id FROM attempts") == wanted

        server.handler = says(200, {"data": {"id": wanted, "model": MODEL, "status": "processing"}})
        look_now(rt)
        swept(worker, lambda: state(rt, job.job_id) == State.PROCESSING)

    assert attempts(rt, job.job_id)[0].prediction_id == wanted


@pytest.mark.parametrize("broken", ["before", "after"])
def test_a_read_that_breaks_off_says_nothing_of_those_lost_at_another_time(
    broken: str, make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """Read as one, the times of all whom nothing can prove would grow until no read ever ended: nobody was found."""
    widths: list[timedelta] = []

    def answer(request: Request, connection: socket.socket) -> None:
        asked = json.loads(request.body)
        now = datetime.now(UTC)
        asked_of = ""
        if "created_after" in asked:
            first, last = (datetime.fromisoformat(asked[name]) for name in ("created_after", "created_before"))
            widths.append(last - first)
            asked_of = "before" if last < now - timedelta(minutes=5) else "after"
        empty = {"data": {"page": 1, "items": []}}
        fine = http(200, empty, Date=format_datetime(now, usegmt=True))
        connection.sendall(http(500) if asked_of == broken else fine)

    with wire(answer) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=3600)
        jobs = {"before": unknown(rt, caller.service), "after": unknown(rt, caller.service)}
        earlier = "started_at = started_at - interval '9 minutes', ended_at = ended_at - interval '9 minutes'"
        execute(rt, f"UPDATE attempts SET {earlier} WHERE job_id = :id", id=jobs["before"].job_id)
        unread = jobs.pop(broken)
        (read,) = jobs.values()
        look_now(rt)
        worker = start_worker(rt)
        swept(worker, lambda: "attempt.look_failed" in kinds(rt, unread.job_id))
        swept(worker, lambda: "attempt.looked_for" in kinds(rt, read.job_id))
        worker.stop()

    assert "attempt.look_failed" not in kinds(rt, read.job_id)
    assert max(widths) < timedelta(minutes=1)


def test_a_list_that_is_refused_for_one_model_says_nothing_of_the_others(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """A withdrawn model's list may be refused for good: those lost before it would be looked for never again."""

    def answer(request: Request, connection: socket.socket) -> None:
        refused = json.loads(request.body).get("model") == "acme/withdrawn"
        empty = http(200, {"data": {"items": []}}, Date=format_datetime(datetime.now(UTC), usegmt=True))
        connection.sendall(http(400, {"message": "model not found"}) if refused else empty)

    with wire(answer) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=3600)
        before, after = unknown(rt, caller.service), unknown(rt, caller.service)
        execute(rt, "UPDATE jobs SET model = 'acme/withdrawn' WHERE id = :id", id=after.job_id)
        look_now(rt)
        worker = start_worker(rt)
        swept(worker, lambda: "attempt.look_failed" in kinds(rt, after.job_id))
        worker.stop()

    assert "attempt.looked_for" in kinds(rt, before.job_id)
    assert "attempt.look_failed" not in kinds(rt, before.job_id)


# Many processes


def test_three_processes_adopt_each_task_once(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Whoever looks: a task belongs to one job."""
    several = [start_worker() for _ in range(3)]
    jobs = lose(rt, caller, sandbox, several[0], *["a lighthouse"] * 10, *["a cat"] * 10)

    look_now(rt)
    for worker in several:
        worker.wake("reconcile")
    swept(several[1], lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED})

    assert len({row(rt, job_id).prediction_id for job_id in jobs}) == 20
    assert all(own_task(rt, sandbox, job_id) for job_id in jobs)
    assert len(sandbox.ledger()) == 20


def held(release: threading.Event) -> Handler:
    """A list that takes until it is released."""

    def answer(request: Request, connection: socket.socket) -> None:
        release.wait(60)
        connection.sendall(http(200, {"data": {"page": 1, "items": []}}))

    return answer


def test_one_process_at_a_time_reads_the_list_and_a_dead_one_holds_nobody_up(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """Two readers could adopt for equal jobs at once; one that died in the middle must not cost two minutes."""
    release = threading.Event()
    with wire(held(release)) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=600)
        unknown(rt, caller.service)
        look_now(rt)
        worker = start_worker(rt)
        swept(worker, lambda: len(server.requests) == 1)

        look_now(rt)
        loop = Loop()
        provider = rt.provider()
        other = Reconciler(rt, new_id(), loop, provider)
        assert other.look() is None
        assert len(server.requests) == 1

        look = worker._duties["reconcile"]  # a worker that stops does not wait for it, and it would write once more
        look.stop()
        release.set()
        look.join(30)
        worker.stop()
        gone = "UPDATE account SET reconciler = :id, reconciler_until = clock_timestamp() + interval '1 minute'"
        execute(rt, gone, id=new_id())
        look_now(rt)
        before = len(server.requests)
        other.look()
        assert len(server.requests) > before
        loop.run(provider.close())
        loop.stop()


def test_the_jobs_of_a_look_that_never_ended_are_due_as_soon_as_another_may_look(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """The process was killed, or the database restarted, in the middle: nobody else knows that they are left."""
    release = threading.Event()
    with wire(held(release)) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=600)
        job = unknown(rt, caller.service)
        look_now(rt)
        worker = start_worker(rt)
        swept(worker, lambda: len(server.requests) == 1)
        due_s = "SELECT extract(epoch FROM due_at - clock_timestamp()) FROM jobs WHERE id = :id"
        assert scalar(rt, due_s, id=job.job_id) <= DEAD_AFTER_S
        release.set()
        worker.stop()


def test_a_refused_list_halts_the_account(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """With nothing queued and nothing running, the list is the first to notice a revoked key."""
    rt = make_rt(unknown_patience_s=600)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse")
    sandbox.faults(revoked=True)

    look_now(rt)
    swept(worker, lambda: account(rt).halted_reason == "key_refused")
    asked = sandbox.arrivals()["refused"]["list"]
    look_now(rt)
    for _ in range(3):
        worker.sweep()
    worker.stop()

    assert state(rt, job_id) == State.UNKNOWN
    assert sandbox.arrivals()["refused"]["list"] == asked


def test_an_account_that_may_not_read_the_list_goes_on_with_everything_else(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """Halted for that, it would resume at each probe and halt at the next look, for good."""

    def answer(request: Request, connection: socket.socket) -> None:
        refused = "balance" not in request.target
        connection.sendall(http(403, {"message": "no"}) if refused else http(200, {"data": {"balance": 5}}))

    with wire(answer) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=600)
        job = unknown(rt, caller.service)
        look_now(rt)
        worker = start_worker(rt)
        swept(worker, lambda: "attempt.look_failed" in kinds(rt, job.job_id))
        worker.stop()

    assert account(rt).halted_reason is None
    assert state(rt, job.job_id) == State.UNKNOWN
