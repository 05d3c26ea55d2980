"""Cancel and retry: the row decides who is first, and nothing is paid beside what may still be paid."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from pipeline.errors import NotAllowedNow
from pipeline.jobs import FINAL, State
from pipeline.lifecycle import again
from pipeline.runtime import Runtime
from pipeline.store.moves import Move, advance
from tests.conftest import Caller
from tests.factories import at_once, claimed, execute, happened, kinds, placed, processing, queued, row, scalar, state
from tests.http import Answer, post
from tests.test_api import is_problem
from tests.test_budgets import limit, purse

LIVE = sorted(set(State) - FINAL - {State.EXPIRED})


def cancel(web: str, caller: Caller, job_id: object) -> Answer:
    return post(f"{web}/v1/jobs/{job_id}/cancel", key=caller.key)


def retry(web: str, caller: Caller, job_id: object, key: str | None = None) -> Answer:
    headers = {"Prefer": "wait=0"} | ({} if key is None else {"Idempotency-Key": key})
    return post(f"{web}/v1/jobs/{job_id}/retry", headers=headers, key=caller.key)


# Cancel


def test_a_queued_job_is_taken_back_with_its_money(rt: Runtime, web: str, caller: Caller) -> None:
    """And whoever is to hear of its end is told; a second cancel finds it done."""
    limit(rt, "1")
    job_id = queued(rt, caller.service)

    first, second = cancel(web, caller, job_id), cancel(web, caller, job_id)

    assert (first.status, second.status) == (200, 200)
    assert first.json == second.json
    assert (first.json["state"], first.json["links"].keys()) == ("cancelled", {"self", "events", "evidence", "retry"})
    assert purse(rt) == (0.0, 0.0)
    assert kinds(rt, job_id) == ["job.queued", "job.cancelled"]
    assert happened(rt, job_id, "job.cancelled")[0]["by"] == "shop"
    assert scalar(rt, "SELECT array_agg(event) FROM notifications WHERE job_id = :id", id=job_id) == ["job.cancelled"]
    assert not claimed(rt, 5)


@pytest.mark.parametrize("at", sorted(set(State) - {State.QUEUED, State.CANCELLED}))
def test_only_a_queued_job_can_be_taken_back(at: State, rt: Runtime, web: str, caller: Caller) -> None:
    """The provider has no cancel, and what has ended has ended."""
    job_id = placed(rt, caller.service, at)

    problem = is_problem(cancel(web, caller, job_id), 409, "not_allowed_now")

    assert at in problem["detail"]
    assert state(rt, job_id) == at


def test_of_a_cancel_and_a_claim_at_once_the_row_lets_one_win(rt: Runtime, caller: Caller) -> None:
    """A job that was claimed is paid for; one that was cancelled is never submitted."""
    for _ in range(10):
        job_id = queued(rt, caller.service)

        def act(number: int, job_id: UUID = job_id) -> bool:
            if number == 0:
                return bool(claimed(rt, 5))
            try:
                return again.cancel(rt, caller.service, job_id)
            except NotAllowedNow:
                return False

        claim, *cancels = at_once(act, 4)
        assert (claim, cancels.count(True)) in {(True, 0), (False, 1)}
        assert state(rt, job_id) == (State.SUBMITTING if claim else State.CANCELLED)
        assert kinds(rt, job_id).count("job.cancelled") == cancels.count(True)


# Retry


@pytest.mark.parametrize("at", sorted(FINAL))
def test_what_has_ended_can_be_done_once_more(at: State, rt: Runtime, web: str, caller: Caller) -> None:
    """As a job of its own: the same in all, with time of its own, and a word in the history of the first."""
    asked: dict[str, Any] = {
        "prompt": "a lighthouse",
        "metadata": {"order": "7"},
        "priority": 3,
        "deadline_s": 600,
        "callback_url": "https://shop.example/hook",
    }
    job_id = queued(rt, caller.service, **asked)
    execute(
        rt,
        "UPDATE jobs SET state = :at, due_at = NULL, finished_at = now(), outputs = '[]', error = '{}',"
        " options = '{\"enable_base64_output\": true}', run_at = run_at - interval '1 day',"
        " deadline_at = deadline_at - interval '1 day' WHERE id = :id",
        at=at,
        id=job_id,
    )

    answer = retry(web, caller, job_id)

    assert answer.status == 201
    new = answer.json
    assert answer.headers["location"] == f"/v1/jobs/{new['id']}"
    assert answer.headers["preference-applied"] == "wait=0"
    assert (new["state"], new["retry_of"], new["metadata"]) == ("queued", str(job_id), {"order": "7"})
    assert (new["priority"], new["input"]) == (3, {"prompt": "a lighthouse", "enable_base64_output": True})
    assert row(rt, UUID(new["id"])).input == {"prompt": "a lighthouse"}
    assert row(rt, UUID(new["id"])).callback_url == "https://shop.example/hook"
    run_at, deadline_at = (datetime.fromisoformat(new[name]) for name in ("run_at", "deadline_at"))
    assert deadline_at - run_at == timedelta(seconds=600)
    assert datetime.now(UTC) - run_at < timedelta(minutes=1)
    assert happened(rt, job_id, "job.retried") == [{"retry": new["id"], "by": "shop"}]
    assert state(rt, job_id) == at


@pytest.mark.parametrize("at", LIVE)
def test_what_has_not_ended_is_not_done_twice(at: State, rt: Runtime, web: str, caller: Caller) -> None:
    """It will end by itself."""
    problem = is_problem(retry(web, caller, placed(rt, caller.service, at)), 409, "not_allowed_now")

    assert at in problem["detail"]
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1


def test_an_expired_job_is_retried_only_when_nothing_of_it_may_still_complete(
    rt: Runtime, web: str, caller: Caller
) -> None:
    """One that was never submitted at once; one whose task may run still, when it is not asked about any more."""
    runs, waited = processing(rt, caller.service).job_id, queued(rt, caller.service)
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(waited, State.EXPIRED), Move(runs, State.EXPIRED, due_s=60.0)])

    assert retry(web, caller, waited).status == 201
    problem = is_problem(retry(web, caller, runs), 409, "not_allowed_now")
    assert "paid twice" in problem["detail"]
    execute(rt, "UPDATE jobs SET due_at = NULL WHERE id = :id", id=runs)
    assert retry(web, caller, runs).status == 201


def test_the_same_retry_again_is_the_same_job(rt: Runtime, web: str, caller: Caller) -> None:
    """Twenty at once too; and its key stands for no other job's retry, nor for a new job."""
    one, other = (placed(rt, caller.service, State.FAILED) for _ in range(2))

    answers = at_once(lambda _: retry(web, caller, one, "again"), 20)

    assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
    assert len({answer.json["id"] for answer in answers}) == 1
    assert len(happened(rt, one, "job.retried")) == 1
    is_problem(retry(web, caller, other, "again"), 409, "idempotency_conflict")
    single = post(f"{web}/v1/jobs", {"input": {"prompt": "a"}}, {"Idempotency-Key": "again"}, key=caller.key)
    is_problem(single, 409, "idempotency_conflict")
    assert scalar(rt, "SELECT count(*) FROM jobs") == 3


def test_a_retry_costs_what_a_job_costs(rt: Runtime, web: str, caller: Caller) -> None:
    """A refused one leaves no trace, in the history of the first neither."""
    limit(rt, "0.12")
    job_id = placed(rt, caller.service, State.FAILED)
    assert retry(web, caller, job_id).status == 201
    is_problem(retry(web, caller, job_id, "k"), 402, "budget_exceeded")
    assert purse(rt) == (0.12, 0.0)
    assert len(happened(rt, job_id, "job.retried")) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9"], ids=ascii)
def test_a_retry_with_an_odd_key_is_refused(key: str, rt: Runtime, web: str, caller: Caller) -> None:
    """As everywhere."""
    problem = is_problem(retry(web, caller, placed(rt, caller.service, State.FAILED), key), 422, "invalid_input")
    assert [error["field"] for error in problem["errors"]] == ["Idempotency-Key"]


# Whose


def test_nobody_touches_the_jobs_of_others_but_operators(
    rt: Runtime, web: str, make_caller: Callable[..., Caller]
) -> None:
    """To every other service they do not exist. What an operator retries is the service's own job, and its money."""
    shop, blog, operator = make_caller("shop"), make_caller("blog"), make_caller("ops", operator=True)
    waiting, ended = queued(rt, shop.service), placed(rt, shop.service, State.FAILED)
    limit(rt, "1", shop.service)

    for act, job_id in ((cancel, waiting), (retry, ended)):
        other = is_problem(act(web, blog, job_id), 404, "unknown_job")
        assert other == is_problem(act(web, blog, uuid4()), 404, "unknown_job")
        assert other == is_problem(act(web, blog, "x"), 404, "unknown_job")
        is_problem(post(f"{web}/v1/jobs/{job_id}/{act.__name__}"), 401, "unauthorized")
    assert post(f"{web}/v1/jobs", {"input": {"prompt": "a"}}, {"Idempotency-Key": "k"}, key=shop.key).status == 201
    assert cancel(web, operator, waiting).json["state"] == State.CANCELLED
    answers = [retry(web, operator, ended, "k") for _ in range(2)]

    assert [answer.status for answer in answers] == [201, 200]
    assert (answers[0].json["service"], purse(rt)) == ("shop", (0.24, 0.0))
