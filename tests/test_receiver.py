"""The receiver over real HTTP: every row of its table, and everything a stranger may send instead."""

import contextlib
import http.client
import json
import secrets as randomness
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from sqlalchemy import event

from pipeline.embedded import postgres as embedded_postgres
from pipeline.embedded.processes import Server
from pipeline.errors import Unavailable
from pipeline.jobs import Outcome, State, Via
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import account, schema, services
from pipeline.store.answers import Answer as Answered
from pipeline.store.answers import record
from pipeline.store.database import Database
from pipeline.store.moves import Move, advance
from pipeline.store.tables import new_id
from pipeline.web import create_app
from tests.conftest import WEBHOOK_SECRET, Caller
from tests.factories import (
    Attempted,
    attempts,
    claimed,
    encoded,
    execute,
    kinds,
    prediction,
    prediction_id,
    priced,
    processing,
    queued,
    row,
    scalar,
    signed,
    state,
    submitting,
    unknown,
    until,
)
from tests.http import Answer, request
from tests.serving import Served, serving

MIB = 1024 * 1024
OTHER_SECRET = "whsec_e9EE3BdyXSxcB4ZyZUKjQUEoQX4sF9P1+eMpb/KluCM="


def deliver(
    web: str,
    token: str,
    body: bytes | Mapping[str, Any],
    *,
    secret: str = WEBHOOK_SECRET,
    at: int | None = None,
    webhook_id: str = "evt_1",
) -> Answer:
    """Send one callback as the provider does."""
    raw = body if isinstance(body, bytes) else encoded(body)
    headers = signed(secret, raw, at=at, webhook_id=webhook_id)
    return request("POST", f"{web}/webhooks/wavespeed/{token}", raw, headers)


def stored(rt: Runtime) -> list[Any]:
    """The inbox, oldest first."""
    with rt.db.transaction() as tx:
        return list(tx.exec_driver_sql("SELECT * FROM callbacks ORDER BY received_at, id"))


def verdicts(rt: Runtime) -> list[str]:
    return [callback.verdict for callback in stored(rt)]


def due_now(rt: Runtime, job: Attempted) -> bool:
    return bool(scalar(rt, "SELECT due_at <= clock_timestamp() FROM jobs WHERE id = :id", id=job.job_id))


def put_off(rt: Runtime, job: Attempted) -> None:
    """Set the job's alarm to an hour from now."""
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() + interval '1 hour' WHERE id = :id", id=job.job_id)


def is_problem(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["code"] == code
    assert answer.json["status"] == status


# What moves a job


def test_the_first_callback_completes_the_job(rt: Runtime, web: str, caller: Caller) -> None:
    """State, outputs, history and inbox are one commit; nothing is left to do afterwards."""
    job = processing(rt, caller.service)
    body = encoded(prediction(job))

    answer = deliver(web, job.token, body)

    assert (answer.status, answer.body) == (204, b"")
    found = row(rt, job.job_id)
    assert (found.state, found.settled_by, found.due_at) == (State.COMPLETED, Via.WEBHOOK, None)
    assert found.outputs == [
        {"url": f"https://cdn.example.com/predictions/{job.prediction_id}/1.png", "nsfw": False},
    ]
    assert (found.prediction_id, found.inference_ms, found.error) == (job.prediction_id, 8421, None)
    assert found.finished_at
    assert kinds(rt, job.job_id)[-1] == "job.completed"
    (callback,) = stored(rt)
    assert (callback.verdict, callback.job_id, callback.attempt_id) == ("applied", job.job_id, job.attempt_id)
    assert (callback.token, callback.prediction_id) == (job.token, job.prediction_id)
    assert bytes(callback.body) == body
    assert callback.headers["webhook-id"] == "evt_1"
    assert callback.headers["webhook-signature"].startswith("v3,")
    assert callback.headers["webhook-timestamp"].isdigit()


def test_a_failed_verdict_tells_why(rt: Runtime, web: str, caller: Caller) -> None:
    """The caller sees a stable code of ours, the provider's words, and its code."""
    job = processing(rt, caller.service)

    assert deliver(web, job.token, prediction(job, "failed")).status == 204

    found = row(rt, job.job_id)
    assert (found.state, found.settled_by, found.outputs) == (State.FAILED, Via.WEBHOOK, None)
    assert found.error == {
        "code": "content_moderation",
        "message": "The content contains sensitive information.",
        "provider_code": 1200,
    }
    assert kinds(rt, job.job_id)[-1] == "job.failed"


@pytest.mark.parametrize("status", ["cancelled", "timeout", "deleted"])
def test_every_way_to_fail_ends_the_job(status: str, rt: Runtime, web: str, caller: Caller) -> None:
    """The documentation announces two statuses; its clients know five."""
    job = processing(rt, caller.service)

    assert deliver(web, job.token, prediction(job, status, error="", code=0)).status == 204

    assert row(rt, job.job_id).error["code"] == "generation_failed"
    assert status in row(rt, job.job_id).error["message"]


@pytest.mark.parametrize("status", ["processing", "a word of next year"])
def test_a_callback_that_it_still_runs_ends_nothing(status: str, rt: Runtime, web: str, caller: Caller) -> None:
    """Unknown statuses mean: keep waiting."""
    job = processing(rt, caller.service)

    assert deliver(web, job.token, prediction(job, status)).status == 204

    assert state(rt, job.job_id) == State.PROCESSING
    assert verdicts(rt) == ["duplicate"]


def test_a_callback_before_the_submits_answer_completes_the_job(rt: Runtime, web: str, caller: Caller) -> None:
    """The provider may be quicker than its own answer; that changes nothing when it comes."""
    job = submitting(rt, caller.service)

    assert deliver(web, job.token, prediction(job)).status == 204
    before = row(rt, job.job_id)
    move = Move(job.job_id, State.PROCESSING, attempt_id=job.attempt_id, due_s=30.0, prediction_id=job.prediction_id)
    with rt.db.transaction() as tx:
        moved = record(
            tx, [Answered(job.attempt_id, Outcome.ACCEPTED, move, prediction_id=job.prediction_id, http_status=200)]
        )

    assert before.state == State.COMPLETED
    assert moved == set()
    assert row(rt, job.job_id) == before
    assert kinds(rt, job.job_id) == ["job.queued", "job.submitting", "job.completed"]
    (attempt,) = attempts(rt, job.job_id)
    assert (attempt.outcome, attempt.prediction_id) == ("accepted", job.prediction_id)


def test_an_early_callback_that_it_runs_is_the_submits_answer(rt: Runtime, web: str, caller: Caller) -> None:
    """It names the task: from now on the job can be polled, whatever becomes of the answer."""
    job = submitting(rt, caller.service)

    assert deliver(web, job.token, prediction(job, "processing")).status == 204

    found = row(rt, job.job_id)
    assert (found.state, found.prediction_id) == (State.PROCESSING, job.prediction_id)
    assert found.due_at


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_callback_finds_the_job_whose_answer_was_lost(status: str, rt: Runtime, web: str, caller: Caller) -> None:
    """The token in its address is the only thread that leads back."""
    job = unknown(rt, caller.service)

    assert deliver(web, job.token, prediction(job, status)).status == 204

    assert state(rt, job.job_id) == status
    (attempt,) = attempts(rt, job.job_id)
    assert (attempt.outcome, attempt.prediction_id) == ("accepted", job.prediction_id)


def test_a_late_verdict_ends_an_expired_job(rt: Runtime, web: str, caller: Caller) -> None:
    """It was paid for."""
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(job.job_id, State.EXPIRED, attempt_id=job.attempt_id, due_s=60, via=Via.DEADLINE)])

    assert deliver(web, job.token, prediction(job)).status == 204

    assert (row(rt, job.job_id).state, row(rt, job.job_id).settled_by) == (State.COMPLETED, Via.WEBHOOK)


# Earlier attempts


@pytest.fixture
def retried(rt: Runtime, caller: Caller) -> tuple[Attempted, Attempted]:
    """Give the two attempts of one job: the first one's answer was lost, the second is in flight."""
    first = unknown(rt, caller.service)
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(first.job_id, State.QUEUED, attempt_id=first.attempt_id, due_s=0)])
    (start,) = claimed(rt)
    return first, Attempted(start.job_id, start.attempt_id, start.token, prediction_id())


def accept(rt: Runtime, job: Attempted) -> None:
    """Record that the provider accepted this attempt."""
    move = Move(job.job_id, State.PROCESSING, attempt_id=job.attempt_id, due_s=30.0, prediction_id=job.prediction_id)
    with rt.db.transaction() as tx:
        record(tx, [Answered(job.attempt_id, Outcome.ACCEPTED, move, prediction_id=job.prediction_id, http_status=200)])


@pytest.mark.parametrize("accepted", ["before", "after"])
def test_an_earlier_attempts_result_is_taken_and_the_later_one_flagged(
    accepted: str, rt: Runtime, web: str, retried: tuple[Attempted, Attempted]
) -> None:
    """The result is there and paid for; when the provider takes a second one, somebody must see what that costs."""
    first, second = retried
    if accepted == "before":
        accept(rt, second)

    assert deliver(web, first.token, prediction(first)).status == 204
    if accepted == "after":
        assert kinds(rt, first.job_id)[-1] == "job.completed"
        accept(rt, second)

    found = row(rt, first.job_id)
    assert (found.state, found.prediction_id) == (State.COMPLETED, first.prediction_id)
    assert kinds(rt, first.job_id)[-2:] == ["job.completed", "job.charged_twice"]
    assert verdicts(rt) == ["applied"]


def test_an_earlier_attempts_failure_does_not_end_the_job(
    rt: Runtime, web: str, retried: tuple[Attempted, Attempted]
) -> None:
    """The later attempt is paid for as well, and may yet succeed."""
    first, second = retried

    assert deliver(web, first.token, prediction(first, "failed")).status == 204
    assert state(rt, first.job_id) == State.SUBMITTING
    assert verdicts(rt) == ["late"]
    assert [attempt.outcome for attempt in attempts(rt, first.job_id)] == ["accepted", None]

    assert deliver(web, second.token, prediction(second)).status == 204
    assert (row(rt, first.job_id).state, row(rt, first.job_id).prediction_id) == (
        State.COMPLETED,
        second.prediction_id,
    )


def test_an_earlier_attempts_verdict_ends_a_job_that_waits_again(rt: Runtime, web: str, caller: Caller) -> None:
    """Nothing is in flight, so nothing speaks against it: no second POST is paid."""
    job = unknown(rt, caller.service)
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(job.job_id, State.QUEUED, attempt_id=job.attempt_id, due_s=3600)])

    assert deliver(web, job.token, prediction(job, "failed")).status == 204

    assert state(rt, job.job_id) == State.FAILED
    assert "job.charged_twice" not in kinds(rt, job.job_id)


def test_a_job_that_waits_again_runs_on_with_the_task_of_an_earlier_attempt(
    rt: Runtime, web: str, caller: Caller
) -> None:
    """What is asked of its task from now on is asked of the attempt that made it, whatever came of a later one."""
    job = unknown(rt, caller.service)
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(job.job_id, State.QUEUED, attempt_id=job.attempt_id, due_s=0)])
    (again,) = claimed(rt)
    with rt.db.transaction() as tx:
        record(tx, [Answered(again.attempt_id, Outcome.NOT_SENT, Move(job.job_id, State.QUEUED, again.attempt_id, 60))])

    assert deliver(web, job.token, prediction(job, "processing")).status == 204

    found = scalar(rt, "SELECT (state, prediction_id, current_attempt) FROM jobs")
    assert found == (State.PROCESSING, job.prediction_id, str(job.attempt_id))


def test_two_results_of_one_job_are_a_double_charge_in_either_order(
    rt: Runtime, web: str, retried: tuple[Attempted, Attempted]
) -> None:
    """The later attempt may be the quicker one; the earlier one's result was paid for all the same."""
    first, second = retried
    accept(rt, second)

    assert deliver(web, second.token, prediction(second)).status == 204
    assert deliver(web, first.token, prediction(first)).status == 204

    found = row(rt, first.job_id)
    assert (found.state, found.prediction_id) == (State.COMPLETED, second.prediction_id)
    assert verdicts(rt) == ["applied", "late"]
    assert kinds(rt, first.job_id)[-2:] == ["job.completed", "job.charged_twice"]


def test_a_double_charge_is_not_said_again_and_again(
    rt: Runtime, web: str, retried: tuple[Attempted, Attempted]
) -> None:
    """Each delivery of the same news would be another entry in the history, and another alarm."""
    first, second = retried
    accept(rt, second)

    def both() -> list[str]:
        assert deliver(web, first.token, prediction(first)).status == 204
        assert deliver(web, second.token, prediction(second)).status == 204
        return kinds(rt, first.job_id)

    once = both()
    assert "job.charged_twice" in once
    assert once.count("job.completed") == 1
    assert both() == once


# What moves nothing


def test_a_duplicate_changes_nothing(rt: Runtime, web: str, caller: Caller) -> None:
    """Providers deliver twice, and again when the answer to the first was lost."""
    job = processing(rt, caller.service)
    assert deliver(web, job.token, prediction(job)).status == 204
    before = row(rt, job.job_id)

    assert deliver(web, job.token, prediction(job, outputs=["https://elsewhere.example.com"])).status == 204

    assert row(rt, job.job_id) == before
    assert kinds(rt, job.job_id).count("job.completed") == 1
    assert verdicts(rt) == ["applied", "duplicate"]


@pytest.mark.parametrize(("first", "second"), [("completed", "failed"), ("failed", "completed")])
def test_a_contradiction_after_the_end_changes_nothing(
    first: str, second: str, rt: Runtime, web: str, caller: Caller
) -> None:
    """The caller was told already; the inbox keeps the evidence."""
    job = processing(rt, caller.service)
    assert deliver(web, job.token, prediction(job, first)).status == 204
    before = row(rt, job.job_id)

    assert deliver(web, job.token, prediction(job, second)).status == 204

    assert row(rt, job.job_id) == before
    assert verdicts(rt) == ["applied", "late"]


def test_a_callback_after_the_poller_is_late(rt: Runtime, web: str, caller: Caller) -> None:
    """The first to come moves the job."""
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        move = Move(job.job_id, State.COMPLETED, attempt_id=job.attempt_id, via=Via.POLL, outputs=[])
        assert advance(tx, [move])

    assert deliver(web, job.token, prediction(job)).status == 204

    assert (row(rt, job.job_id).settled_by, row(rt, job.job_id).outputs) == (Via.POLL, [])
    assert verdicts(rt) == ["late"]


def test_news_that_it_runs_does_not_wake_the_dead(rt: Runtime, web: str, caller: Caller) -> None:
    """Deliveries overtake one another."""
    job = processing(rt, caller.service)
    assert deliver(web, job.token, prediction(job)).status == 204

    assert deliver(web, job.token, prediction(job, "processing")).status == 204

    assert state(rt, job.job_id) == State.COMPLETED
    assert verdicts(rt) == ["applied", "late"]


def test_of_many_equal_deliveries_at_once_one_is_applied(rt: Runtime, web: str, caller: Caller) -> None:
    """A provider's retries may overlap; the row decides."""
    job = submitting(rt, caller.service)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: deliver(web, job.token, prediction(job)).status, range(20)))

    assert answers == [204] * 20
    assert sorted(verdicts(rt)) == ["applied"] + ["duplicate"] * 19
    assert kinds(rt, job.job_id) == ["job.queued", "job.submitting", "job.completed"]


# What is not believed


@pytest.mark.parametrize("away_s", [-330, 330])
@pytest.mark.parametrize("make", [processing, unknown])
def test_a_stale_callback_is_a_hint_to_ask(
    away_s: int, make: Callable[..., Attempted], rt: Runtime, web: str, caller: Caller
) -> None:
    """Authentic, but it may be a replay: the body is not believed, its id is the one to ask for, and now."""
    job = make(rt, caller.service)
    put_off(rt, job)

    assert deliver(web, job.token, prediction(job), at=int(time.time()) + away_s).status == 204

    assert state(rt, job.job_id) == ("processing" if make is processing else "unknown")
    assert row(rt, job.job_id).outputs is None
    assert due_now(rt, job)
    assert scalar(rt, "SELECT hint_id FROM attempts") == job.prediction_id
    assert verdicts(rt) == ["stale"]


def test_callbacks_that_are_not_believed_provoke_one_poll_in_ten_seconds(rt: Runtime, web: str, caller: Caller) -> None:
    """Whoever recorded one callback could replay it all day long, at our expense."""
    job = processing(rt, caller.service)
    stale = int(time.time()) - 1000
    assert deliver(web, job.token, prediction(job), at=stale).status == 204
    put_off(rt, job)

    for _ in range(3):
        assert deliver(web, job.token, prediction(job), at=stale).status == 204
        assert deliver(web, job.token, prediction(job, id=prediction_id())).status == 204
        assert deliver(web, job.token, b"no JSON").status == 400
    assert not due_now(rt, job)
    assert sorted(set(verdicts(rt))) == ["stale", "suspicious", "unreadable"]

    execute(rt, "UPDATE attempts SET hinted_at = hinted_at - interval '11 seconds'")
    assert deliver(web, job.token, prediction(job), at=stale).status == 204
    assert due_now(rt, job)


def test_a_stale_callback_does_not_wake_what_has_ended(rt: Runtime, web: str, caller: Caller) -> None:
    """There is nothing to ask."""
    job = processing(rt, caller.service)
    assert deliver(web, job.token, prediction(job)).status == 204
    before = row(rt, job.job_id)

    assert deliver(web, job.token, prediction(job), at=1).status == 204

    assert row(rt, job.job_id) == before
    assert verdicts(rt) == ["applied", "stale"]


def test_a_body_of_another_task_is_suspicious(rt: Runtime, web: str, caller: Caller) -> None:
    """The signature does not cover the address: somebody may have sent another task's result to it."""
    job = processing(rt, caller.service)
    put_off(rt, job)

    assert deliver(web, job.token, prediction(job, id=prediction_id())).status == 204

    assert (row(rt, job.job_id).state, row(rt, job.job_id).outputs) == (State.PROCESSING, None)
    assert row(rt, job.job_id).prediction_id == job.prediction_id
    assert due_now(rt, job)
    assert verdicts(rt) == ["suspicious"]


@pytest.mark.parametrize("make", [submitting, unknown])
def test_a_body_that_is_another_attempts_is_suspicious(
    make: Callable[..., Attempted], rt: Runtime, web: str, caller: Caller
) -> None:
    """The attempt's own id is not known yet; but that this one is taken is."""
    other = processing(rt, caller.service)
    job = make(rt, caller.service)

    assert deliver(web, job.token, prediction(other)).status == 204

    assert state(rt, job.job_id) in {State.SUBMITTING, State.UNKNOWN}
    assert state(rt, other.job_id) == State.PROCESSING
    assert verdicts(rt) == ["suspicious"]
    assert scalar(rt, "SELECT prediction_id FROM attempts WHERE id = :id", id=job.attempt_id) is None


def test_a_body_of_another_model_is_suspicious(rt: Runtime, web: str, caller: Caller) -> None:
    """While the id is not known, the model is what a body can prove itself by."""
    job = unknown(rt, caller.service)
    put_off(rt, job)

    assert deliver(web, job.token, prediction(job, model="openai/dall-e-3")).status == 204

    assert state(rt, job.job_id) == State.UNKNOWN
    assert due_now(rt, job)
    assert verdicts(rt) == ["suspicious"]


def test_a_body_without_a_model_is_believed(rt: Runtime, web: str, caller: Caller) -> None:
    """The field is optional; the token, the signature and a new id are enough."""
    job = unknown(rt, caller.service)

    assert deliver(web, job.token, prediction(job, model=None)).status == 204

    assert state(rt, job.job_id) == State.COMPLETED


@pytest.mark.parametrize("at", [None, 1])
def test_a_callback_for_nobody_is_kept_as_an_orphan(at: int | None, rt: Runtime, web: str) -> None:
    """Perhaps a job of a restored backup: an operator will want to see it."""
    lost = Attempted(new_id(), new_id(), randomness.token_urlsafe(32), prediction_id())

    assert deliver(web, lost.token, prediction(lost), at=at).status == 204

    (callback,) = stored(rt)
    assert (callback.verdict, callback.token, callback.job_id) == ("orphan", lost.token, None)
    assert callback.prediction_id == lost.prediction_id


@pytest.mark.parametrize(
    "body",
    [b"", b"no JSON", b"[]", b'{"status":"completed"}', b"\xff\xfe", b"[" * 100_000, b'{"id":"x","n":' + b"9" * 9999],
    ids=lambda body: ascii(body[:20]),
)
def test_an_unreadable_body_is_kept_and_asked_about(body: bytes, rt: Runtime, web: str, caller: Caller) -> None:
    """The provider meant to tell something: its answer says 400, and we ask what it was."""
    job = processing(rt, caller.service)
    put_off(rt, job)

    is_problem(deliver(web, job.token, body), 400, "malformed_request")

    (callback,) = stored(rt)
    assert (callback.verdict, callback.job_id, bytes(callback.body)) == ("unreadable", job.job_id, body)
    assert due_now(rt, job)
    assert state(rt, job.job_id) == State.PROCESSING


TOWER = b'{"a":' * 900 + b"1" + b"}" * 900


@pytest.mark.parametrize(
    "odd",
    [
        rb'"error":"\u0000"',
        rb'"error":"\ud800"',
        rb'"input":{"\u0000\udfff":"\ud800"}',
        rb'"outputs":["https://cdn.example.com/\u0000\ud800.png",1e400,-1e400,NaN]',
        b'"outputs":[' + TOWER + b"]",
        b'"input":' + TOWER,
        b'"outputs":[' + b"9" * 4000 + b"]",
        b'"code":1e400,"timings":{"inference":1e400},"executionTime":99999999999',
        b'"outputs":{},"has_nsfw_contents":7,"created_at":[],"timings":"","urls":null,"input":[]',
        b'"error":{"message":{"message":[]}}',
    ],
    ids=lambda odd: ascii(odd[:40]),
)
@pytest.mark.parametrize("status", [b"completed", b"failed"])
def test_an_odd_field_does_not_cost_the_verdict(
    odd: bytes, status: bytes, rt: Runtime, web: str, caller: Caller
) -> None:
    """Postgres keeps no NUL, no lone surrogate and no infinity: a 500 here would lose a paid result."""
    job = processing(rt, caller.service)
    body = b'{"id":"%s","status":"%s",%s}' % (job.prediction_id.encode(), status, odd)

    assert deliver(web, job.token, body).status == 204

    assert state(rt, job.job_id) == status.decode()
    assert [bytes(callback.body) for callback in stored(rt)] == [body]


# What is refused


def corrupted(job: Attempted) -> dict[str, dict[str, str]]:
    """Signature headers for this job's callback, each with one thing wrong."""
    good = signed(WEBHOOK_SECRET, encoded(prediction(job)))
    without = {f"no {name}": {k: v for k, v in good.items() if k != name} for name in good}
    return without | {
        "another secret": signed(OTHER_SECRET, encoded(prediction(job))),
        "another body": signed(WEBHOOK_SECRET, b"{}"),
        "v1": good | {"webhook-signature": good["webhook-signature"].replace("v3", "v1")},
        "a third part": good | {"webhook-signature": good["webhook-signature"] + ","},
        "upper case": good | {"webhook-signature": "v3," + good["webhook-signature"][3:].upper()},
        "no version": good | {"webhook-signature": good["webhook-signature"][3:]},
        "empty": good | {"webhook-signature": ""},
        "another id": good | {"webhook-id": "evt_2"},
        "another time": good | {"webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)},
        "no time": good | {"webhook-timestamp": "now"},
        "400 digits": good | {"webhook-timestamp": "9" * 400},
        "commas": good | {"webhook-signature": "v3" + "," * 4000},
        "latin-1": good | {"webhook-signature": "v3," + "\xe9" * 64},
        "a long id": good | {"webhook-id": "x" * 4000},
    }


WRONG = sorted(corrupted(Attempted(new_id(), new_id(), "t", "p")))


@pytest.mark.parametrize("wrong", WRONG)
def test_what_the_provider_did_not_sign_is_refused(wrong: str, rt: Runtime, web: str, caller: Caller) -> None:
    """And leaves no trace: strangers must not fill our disk."""
    job = processing(rt, caller.service)
    before = row(rt, job.job_id)

    headers = corrupted(job)[wrong]
    answer = request("POST", f"{web}/webhooks/wavespeed/{job.token}", encoded(prediction(job)), headers)

    is_problem(answer, 401, "bad_signature")
    assert row(rt, job.job_id) == before
    assert stored(rt) == []


@pytest.mark.parametrize(
    "path",
    [
        "%00",
        "a%00b",
        "%ED%A0%80",
        "%FF%FE",
        "%C3%A9",
        "a%20b",
        "%0d%0aX-Evil:1",
        "x" * 129,
        "x" * 60_000,
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "a/b",
        "a%2Fb",
        "",
        "%",
        "%zz",
        "a;b",
        "'--",
        "{}",
    ],
    ids=lambda path: path[:24] or "empty",
)
def test_a_hostile_path_is_refused(path: str, rt: Runtime, web: str) -> None:
    """Even with a true signature: never a 500, nothing stored."""
    lost = Attempted(new_id(), new_id(), "none", prediction_id())

    answer = deliver(web, path, prediction(lost))

    assert answer.status in {400, 404, 414}, answer
    assert stored(rt) == []


def talk(web: str, raw: bytes) -> bytes:
    """Say *raw* to the web server and hear its first line; empty when it hung up."""
    parts = urlsplit(web)
    heard = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as wire:
        with contextlib.suppress(ConnectionError):  # it may hang up before it has read everything
            wire.sendall(raw)
        with contextlib.suppress(ConnectionError):
            while b"\r\n" not in heard and (more := wire.recv(65536)):
                heard += more
    return heard.partition(b"\r\n")[0]


def raw_request(headers: Sequence[tuple[bytes, bytes]], body: bytes = b"{}") -> bytes:
    lines = [b"POST /webhooks/wavespeed/abc HTTP/1.1", b"Host: test", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, *(name + b": " + value for name, value in headers), b"", body])


TRUE = [(name.encode(), value.encode()) for name, value in signed(WEBHOOK_SECRET, b"{}").items()]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"webhook-id", b"\xff\xfe\x80"), *TRUE[1:]],
        [*TRUE[:2], (b"webhook-signature", b"v3," + b"\xe9" * 64)],
        [*TRUE[:2], (b"webhook-signature", b"v3," + bytes(range(0x80, 0xC0)))],
        [TRUE[0], (b"webhook-timestamp", b"\xd9\xa1\xd9\xa2"), TRUE[2]],
        [TRUE[0], (b"webhook-timestamp", b"9" * 4000), TRUE[2]],
        [(b"webhook-id", b"x" * 100_000), *TRUE[1:]],
        [*TRUE[:2], (b"webhook-signature", b"v3," * 20_000)],
        [*TRUE, *TRUE],
        [(b"webhook-id", b"a"), *TRUE, (b"webhook-signature", b"v3," + b"0" * 64)],
        [(b"X-%d" % n, b"y") for n in range(2000)],
        [(b"webhook-id", b"a\x00b"), *TRUE[1:]],
        [(b"\xff\xff", b"y"), *TRUE],
        [(b"Authorization", b"Bearer \xff\x00")],
        [(b"Content-Type", b"application/json; charset=\xff"), (b"Content-Encoding", b"gzip")],
        [(b"Content-Length", b"7"), (b"Transfer-Encoding", b"chunked")],
        [(b"Host", b"\xff"), (b"X-Forwarded-For", b"'; DROP TABLE jobs; --")],
        [],
    ],
    ids=lambda headers: ascii(headers)[:40],
)
def test_a_hostile_header_is_refused(headers: Sequence[tuple[bytes, bytes]], rt: Runtime, web: str) -> None:
    """Whatever bytes come: a refusal or a closed connection, never a crash of ours, nothing stored."""
    line = talk(web, raw_request(headers))

    assert line == b"" or line.split()[1] in {b"400", b"401", b"413", b"431"}, line
    assert stored(rt) == []
    assert request("GET", f"{web}/healthz").status == 200


@pytest.mark.parametrize(
    "body",
    [b"x" * (MIB + 1), b"x" * (5 * MIB)],
    ids=["by one byte", "by far"],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_one_mebibyte_is_refused(chunked: bool, body: bytes, rt: Runtime, web: str) -> None:
    """With or without a length in front: what is read is counted."""
    url = f"{web}/webhooks/wavespeed/abc"
    sent = iter([body[n : n + 65536] for n in range(0, len(body), 65536)]) if chunked else body

    answer = request("POST", url, sent, signed(WEBHOOK_SECRET, body))

    if answer.status:  # the server hangs up on what it will not read; then the answer may be lost on its way
        is_problem(answer, 413, "body_too_large")
    assert stored(rt) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_exactly_one_mebibyte_is_taken(chunked: bool, rt: Runtime, web: str, caller: Caller) -> None:
    """The limit is the last size that is fine."""
    job = processing(rt, caller.service)
    body = encoded(prediction(job, input={"prompt": ""}))
    body = encoded(prediction(job, input={"prompt": "x" * (MIB - len(body))}))
    assert len(body) == MIB
    sent = iter([body[n : n + 65536] for n in range(0, len(body), 65536)]) if chunked else body

    answer = request("POST", f"{web}/webhooks/wavespeed/{job.token}", sent, signed(WEBHOOK_SECRET, body))

    assert answer.status == 204
    assert state(rt, job.job_id) == State.COMPLETED
    assert [len(callback.body) for callback in stored(rt)] == [MIB]


def test_a_length_that_promises_a_mebibyte_more_is_refused_before_it_is_read(rt: Runtime, web: str) -> None:
    """Else a stranger could keep a thread waiting for what never comes."""
    line = talk(web, b"POST /webhooks/wavespeed/abc HTTP/1.1\r\nHost: test\r\nContent-Length: 99999999\r\n\r\n")

    assert line.split()[1] == b"413"


def test_a_connection_survives_a_body_that_nobody_wants(rt: Runtime, web: str, caller: Caller) -> None:
    """It comes after its head, which has its answer by then: left there it would cost the next request its own."""
    job_id = queued(rt, caller.service)
    head = f"POST /v1/jobs/{job_id}/cancel HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {caller.key}\r\n"
    parts = urlsplit(web)
    statuses = []
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        for _ in range(3):
            connection.sendall(f"{head}Content-Length: 5\r\n\r\n".encode())
            select.select([connection], [], [], 0.05)  # an answer that did not wait for the body is there by then
            connection.sendall(b"abcde")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            answer.read()
            statuses.append(answer.status)
            assert answer.headers["connection"] is None
    assert statuses == [200, 200, 200]


@pytest.mark.parametrize("length", ["5", "70000"])
@pytest.mark.parametrize("path", ["/webhooks/wavespeed/!", "/v1/jobs", "/nowhere", "/healthz"])
def test_a_strangers_body_is_not_waited_for_and_the_end_of_the_connection_is_said(
    path: str, length: str, rt: Runtime, web: str
) -> None:
    """Waiting, 320 of them would stop the server; and a client that is told sends its next request on another one."""
    parts = urlsplit(web)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert 400 <= answer.status < 500
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
def test_only_post_is_allowed(method: str, rt: Runtime, web: str) -> None:
    """A person who opens the address learns what it is for."""
    answer = request(method, f"{web}/webhooks/wavespeed/abc")

    assert answer.status == 405
    assert "POST" in answer.headers["allow"]


# Secrets


@pytest.fixture(scope="module")
def two_secrets(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a web server with two secrets in its environment."""
    changed = environ | {"WAVESPEED_WEBHOOK_SECRET": f"{OTHER_SECRET}, {WEBHOOK_SECRET}"}
    with serving(changed, tmp_path_factory.mktemp("two-secrets")) as served:
        yield served


@pytest.mark.parametrize("secret", [OTHER_SECRET, WEBHOOK_SECRET])
def test_each_secret_of_the_environment_is_believed(
    secret: str, rt: Runtime, two_secrets: Served, caller: Caller
) -> None:
    """An operator rotates by naming both for a while."""
    job = processing(rt, caller.service)

    assert deliver(two_secrets.url, job.token, prediction(job), secret=secret).status == 204
    assert deliver(two_secrets.url, job.token, prediction(job), secret="whsec_third").status == 401

    assert state(rt, job.job_id) == State.COMPLETED


@pytest.fixture
def fetched(rt: Runtime, environ: dict[str, str], valkey: Server, tmp_path: Path) -> Iterator[Served]:
    """Run a web server that knows only what workers fetched into Postgres (nothing yet), beside a broker."""
    changed = environ | {"WAVESPEED_WEBHOOK_SECRET": "", "BROKER_URL": valkey.url}
    with serving(changed, tmp_path) as served:
        yield served


@pytest.fixture
def nudged(valkey: Server) -> Iterator[Callable[[], list[str]]]:
    """Give what was asked of workers so far; nobody listens to the queue."""
    with redis.Redis.from_url(valkey.url) as broker:
        broker.delete("pipeline")

        def kinds_sent() -> list[str]:
            sent: Any = broker.lrange("pipeline", 0, -1)
            return [json.loads(message)["headers"]["task"] for message in sent]

        yield kinds_sent


def keep_secret(rt: Runtime, secret: str) -> None:
    with rt.db.transaction() as tx:
        assert account.keep_secret(tx, secret)


def knows(served: Served, secret: str) -> bool:
    """True once the web server believes this secret: it reads them again every few seconds."""
    lost = Attempted(new_id(), new_id(), randomness.token_urlsafe(32), prediction_id())
    return deliver(served.url, lost.token, prediction(lost), secret=secret).status == 204


def test_without_any_secret_the_provider_is_asked_to_try_again(rt: Runtime, fetched: Served, caller: Caller) -> None:
    """On the first start a callback may come before the secret: it is not lost for it."""
    job = processing(rt, caller.service)

    answer = deliver(fetched.url, job.token, prediction(job))
    is_problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert stored(rt) == []

    keep_secret(rt, WEBHOOK_SECRET)
    assert deliver(fetched.url, job.token, prediction(job)).status == 204
    assert state(rt, job.job_id) == State.COMPLETED


def test_a_rotated_secret_is_fetched_and_believed(
    rt: Runtime, fetched: Served, nudged: Callable[[], list[str]]
) -> None:
    """The provider told nobody: a well-formed signature that matches none is how we learn of it."""
    new, newest = f"whsec_{randomness.token_urlsafe(32)}", f"whsec_{randomness.token_urlsafe(32)}"
    keep_secret(rt, new)
    assert knows(fetched, new)

    assert not knows(fetched, newest)
    until(lambda: "pipeline.secrets" in nudged())

    keep_secret(rt, newest)  # what the worker does then
    until(lambda: knows(fetched, newest))
    assert knows(fetched, new)  # deliveries signed before are still under way


@pytest.mark.parametrize(("retired_s", "status"), [(590, 400), (601, 401)])
def test_the_former_secret_is_believed_for_ten_minutes(
    retired_s: int, status: int, rt: Runtime, make_rt: Callable[..., Runtime]
) -> None:
    """If it leaked, that has to end."""
    former, present = f"whsec_{randomness.token_urlsafe(32)}", f"whsec_{randomness.token_urlsafe(32)}"
    keep_secret(rt, former)
    keep_secret(rt, present)
    execute(
        rt,
        """
        UPDATE account SET webhook_secrets = jsonb_set(webhook_secrets, '{1,retired_at}',
            to_jsonb(extract(epoch FROM clock_timestamp()) - :retired_s))
        """,
        retired_s=retired_s,
    )

    client = create_app(make_rt(wavespeed_webhook_secret=())).test_client()
    for secret, expected in ((former, status), (present, 400)):  # 400: authentic, though it says nothing
        answer = client.post("/webhooks/wavespeed/nobody", data=b"{}", headers=signed(secret, b"{}"))
        assert answer.status_code == expected


def test_a_strangers_noise_does_not_ask_for_the_secret(rt: Runtime, make_rt: Callable[..., Runtime]) -> None:
    """Only what may be a rotation is worth a request to the provider."""
    keep_secret(rt, WEBHOOK_SECRET)
    nudges: list[str] = []
    served = Runtime(make_rt(wavespeed_webhook_secret=()).settings, rt.db, lambda *kinds: nudges.extend(kinds))
    client = create_app(served).test_client()
    good = signed(WEBHOOK_SECRET, b"{}")

    def send(headers: Mapping[str, str]) -> int:
        return client.post("/webhooks/wavespeed/abc", data=b"{}", headers=dict(headers)).status_code

    for noise in ({}, {"webhook-signature": "v3,0"}, good | {"webhook-timestamp": "x"}, good | {"webhook-id": ""}):
        assert send(noise) == 401
    assert nudges == []

    assert send(signed(OTHER_SECRET, b"{}")) == 401
    assert nudges == ["secrets"]


def test_a_wrong_secret_of_the_environment_is_not_fetched(rt: Runtime) -> None:
    """The operator's word counts; what workers fetch would not be used."""
    nudges: list[str] = []
    client = create_app(Runtime(rt.settings, rt.db, lambda *kinds: nudges.extend(kinds))).test_client()

    headers = signed(OTHER_SECRET, b"{}")
    assert client.post("/webhooks/wavespeed/abc", data=b"{}", headers=headers).status_code == 401
    assert nudges == []


# The database


def test_while_the_database_is_away_the_provider_is_asked_to_try_again(environ: dict[str, str], tmp_path: Path) -> None:
    """503 until it is back, then as before: nobody restarts anything."""
    with embedded_postgres.running() as server:
        settings = load(environ | {"DATABASE_URL": server.url})
        schema.upgrade(settings.database_url)
        database = Database(settings.database_url, name="test")
        rt = Runtime(settings, database)
        with database.transaction() as tx:
            priced(tx)
            services.create(tx, "shop")
            service = services.by_name(tx, "shop")
        assert service
        job, other = processing(rt, service), processing(rt, service)
        with serving(environ | {"DATABASE_URL": server.url}, tmp_path) as web:
            assert deliver(web.url, job.token, prediction(job)).status == 204

            server.stop()
            for _ in range(3):
                answer = deliver(web.url, other.token, prediction(other))
                is_problem(answer, 503, "unavailable")
                assert int(answer.headers["retry-after"]) > 0
            is_problem(request("GET", f"{web.url}/readyz"), 503, "unavailable")
            is_problem(request("GET", f"{web.url}/v1/jobs/{job.job_id}", key="k"), 503, "unavailable")
            assert request("GET", f"{web.url}/healthz").status == 200
            assert deliver(web.url, other.token, prediction(other), secret=OTHER_SECRET).status == 401

            server.start()
            until(lambda: deliver(web.url, other.token, prediction(other)).status == 204)
            until(lambda: state_when_back(rt, other) == State.COMPLETED)
        database.close()


def state_when_back(rt: Runtime, job: Attempted) -> str | None:
    """The job's state; None while the connections of before are found dead."""
    try:
        return state(rt, job.job_id)
    except Unavailable:
        return None


# What it costs


@contextlib.contextmanager
def statements(db: Database) -> Iterator[list[str]]:
    """Collect the statements sent meanwhile; BEGIN and COMMIT are not among them."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("where", ["environment", "postgres"])
@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_callback_that_settles_a_job_costs_one_statement(
    where: str, status: str, rt: Runtime, make_rt: Callable[..., Runtime], caller: Caller
) -> None:
    """Each is a journey to the database; a thousand callbacks a second leave time for few."""
    served = rt if where == "environment" else make_rt(wavespeed_webhook_secret=())
    keep_secret(rt, WEBHOOK_SECRET)
    client = create_app(served).test_client()

    def send(job: Attempted) -> int:
        body = encoded(prediction(job, status))
        path = f"/webhooks/wavespeed/{job.token}"
        return client.post(path, data=body, headers=signed(WEBHOOK_SECRET, body)).status_code

    assert send(processing(rt, caller.service)) == 204  # warm: the secrets are known from here on
    job = processing(rt, caller.service)
    with statements(rt.db) as sent:
        assert send(job) == 204

    assert state(rt, job.job_id) == status
    assert len(sent) == 1, sent


def test_a_callback_that_reveals_a_double_charge_costs_little_more(
    rt: Runtime, retried: tuple[Attempted, Attempted]
) -> None:
    """When the provider hides tasks from us there may be many of these at once."""
    first, second = retried
    accept(rt, second)
    body = encoded(prediction(first))

    with statements(rt.db) as sent:
        answer = (
            create_app(rt)
            .test_client()
            .post(f"/webhooks/wavespeed/{first.token}", data=body, headers=signed(WEBHOOK_SECRET, body))
        )

    assert answer.status_code == 204
    assert "job.charged_twice" in kinds(rt, first.job_id)
    assert len(sent) <= 8, sent


@pytest.mark.parametrize(("archive_url", "kind"), [("", "archive"), ("off", "submit")])
def test_a_callback_wakes_whoever_waits_for_its_place_by_one_message(
    rt: Runtime, caller: Caller, archive_url: str, kind: str
) -> None:
    """A place at the provider came free: who comes for the files looks for the next job, too (`pipeline.tasks`)."""
    nudges: list[str] = []
    settings = rt.settings.model_copy(update={"archive_url": archive_url})
    client = create_app(Runtime(settings, rt.db, lambda *kinds: nudges.extend(kinds))).test_client()
    job = processing(rt, caller.service)
    queued(rt, caller.service)
    body = encoded(prediction(job))

    answer = client.post(f"/webhooks/wavespeed/{job.token}", data=body, headers=signed(WEBHOOK_SECRET, body))

    assert answer.status_code == 204
    assert nudges == [kind]
