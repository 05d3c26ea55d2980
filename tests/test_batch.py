"""Batches over real HTTP: all or nothing, every wrong line named, the same batch stored once."""

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.web import create_app
from pipeline.web.api import batch as page
from tests.conftest import Caller
from tests.factories import at_once, execute, row, scalar
from tests.http import Answer, post
from tests.test_api import anything, is_problem, nothing_is_stored
from tests.test_budgets import limit, purse

A_JOB = {"input": {"prompt": "a lighthouse"}}


def lines(*jobs: Any) -> bytes:
    return b"".join(json.dumps(job).encode() + b"\n" for job in jobs)


def send(web: str, caller: Caller, *jobs: Any, key: str | None = None, body: bytes | None = None) -> Answer:
    headers = {"Content-Type": "application/x-ndjson"} | ({"Idempotency-Key": key} if key is not None else {})
    return post(f"{web}/v1/jobs/batch", lines(*jobs) if body is None else body, headers, key=caller.key)


def prompts(rt: Runtime, ids: Sequence[str]) -> list[str]:
    return [row(rt, UUID(job_id)).input["prompt"] for job_id in ids]


def wrong(answer: Answer, status: int = 422, code: str = "invalid_input") -> list[tuple[int, str]]:
    """Check that it is a problem, and give the line and the field of each error."""
    assert (answer.status, answer.json["code"]) == (status, code), answer
    return [(error["line"], error["field"]) for error in answer.json["errors"]]


def test_ten_thousand_jobs_are_one_request(rt: Runtime, web: str, caller: Caller) -> None:
    """In the order of the lines, each with its history; and the last line needs no end."""
    jobs = [{"input": {"prompt": f"lighthouse {n}"}, "metadata": {"n": str(n % 7)}} for n in range(10_000)]

    answer = send(web, caller, body=lines(*jobs).rstrip())

    assert answer.status == 201
    assert answer.json["count"] == len(answer.json["ids"]) == len(set(answer.json["ids"])) == 10_000
    assert prompts(rt, answer.json["ids"][:2] + answer.json["ids"][-1:]) == [f"lighthouse {n}" for n in (0, 1, 9999)]
    assert scalar(rt, "SELECT count(*) FROM jobs j JOIN events e ON e.job_id = j.id WHERE j.due_at <= now()") == 10_000
    assert scalar(rt, "SELECT count(*) FROM labels WHERE name = 'n' AND value = '3'") == 1429


def test_one_wrong_line_of_ten_thousand_refuses_all(rt: Runtime, web: str, caller: Caller) -> None:
    """Half a batch would be the caller's riddle."""
    jobs: list[Any] = [A_JOB] * 10_000
    jobs[7311] = {"input": {"prompt": 7}}

    assert wrong(send(web, caller, *jobs)) == [(7312, "input.prompt")]
    assert nothing_is_stored(rt)


def test_a_batch_is_ten_thousand_lines_at_most(rt: Runtime, web: str, caller: Caller) -> None:
    """So that one request's work has a bound."""
    is_problem(send(web, caller, body=b'{"input":{"prompt":"a"}}\n' * 10_001), 413, "body_too_large")
    assert nothing_is_stored(rt)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"[]", [(1, "")]),
        (b"1\n2\n", [(1, ""), (2, "")]),
        (lines(A_JOB) + b"{\n" + lines(A_JOB), [(2, "")]),
        (lines(A_JOB) + b"\n" + lines(A_JOB), [(2, "")]),
        (lines(A_JOB) + b"\xff\xfe\n", [(2, "")]),
        (lines(A_JOB) + b'{"input":{"prompt":"a"}} {"input":{"prompt":"b"}}', [(2, "")]),
        (lines(A_JOB) + b'{"input":{"prompt":"\\u0000"}}', [(2, "input.prompt")]),
        (lines(A_JOB) + b'{"input":{"prompt":"\\ud800"}}', [(2, "input.prompt")]),
        (lines(A_JOB) + b'{"a":' * 100_000, [(2, "")]),
        (lines(A_JOB, {"input": {}, "priority": 99}), [(2, "priority")]),
        (lines(A_JOB, {**A_JOB, "x": 1}, A_JOB, {**A_JOB, "deadline_s": 0}), [(2, "x"), (4, "deadline_s")]),
        (lines({**A_JOB, "callback_task": "shop.done"}), [(1, "callback_task")]),
        (lines({**A_JOB, "idempotency_key": ""}), [(1, "idempotency_key")]),
        (lines({**A_JOB, "idempotency_key": None}), [(1, "idempotency_key")]),
        (lines({**A_JOB, "idempotency_key": {"a": 1}}), [(1, "idempotency_key")]),
        (lines({**A_JOB, "idempotency_key": "x" * 256}), [(1, "idempotency_key")]),
    ],
    ids=range(16),
)
@pytest.mark.parametrize("key", [None, "whole"])
def test_every_wrong_line_is_named(
    body: bytes, found: list[tuple[int, str]], key: str | None, rt: Runtime, web: str, caller: Caller
) -> None:
    """By its number and its field: whoever made the file finds it. Nothing is stored, the key least of all."""
    answer = send(web, caller, body=body, key=key)

    assert wrong(answer) == found
    assert f"line {found[0][0]}" in answer.json["detail"]
    assert nothing_is_stored(rt)


@pytest.mark.parametrize("body", [b"", b"\n", b" \r\n\t\n"])
def test_a_batch_of_nothing_is_a_mistake(body: bytes, rt: Runtime, web: str, caller: Caller) -> None:
    """Some query gave no rows; the caller had better know."""
    is_problem(send(web, caller, body=body), 422, "invalid_input")


def test_lines_may_end_as_windows_ends_them_and_the_last_ones_be_blank(web: str, caller: Caller) -> None:
    """Editors and shells leave both behind."""
    body = b'{"input":{"prompt":"a"}}\r\n{"input":{"prompt":"b"}}\r\n\r\n\n'

    assert send(web, caller, body=body).json["count"] == 2


def test_a_hundred_errors_are_named_and_that_there_are_more_is_said(web: str, caller: Caller) -> None:
    """An answer of ten thousand would help nobody."""
    answer = send(web, caller, *[{"input": {}}] * 5000)

    assert wrong(answer) == [(n, "input.prompt") for n in range(1, 101)]
    assert "first 100" in answer.json["detail"]


def test_a_body_over_32_mib_is_refused_unread(rt: Runtime, web: str, caller: Caller) -> None:
    """With or without a length."""
    chunk = b" " * (1024 * 1024)
    is_problem(post(f"{web}/v1/jobs/batch", iter([chunk] * 33), key=caller.key), 413, "body_too_large")
    assert nothing_is_stored(rt)


def test_what_one_process_holds_of_batches_is_bounded(rt: Runtime, caller: Caller) -> None:
    """A process that dies for want of memory takes the receiver with it; a caller can wait two seconds."""
    client = create_app(rt).test_client()
    headers = {"Authorization": f"Bearer {caller.key}"}
    with page.room.taken(page.ROOM_BYTES - 10):
        refused = client.post("/v1/jobs/batch", data=lines(A_JOB), headers=headers)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
    assert client.post("/v1/jobs/batch", data=lines(A_JOB), headers=headers).status_code == 201


# The same batch again


def test_the_same_batch_again_is_the_same_answer(rt: Runtime, web: str, caller: Caller) -> None:
    """Also when its fields come in another order, and when what it asks for has been forbidden since."""
    first = send(web, caller, {"input": {"prompt": "a"}, "priority": 1}, A_JOB, key="night")
    again = send(web, caller, {"priority": 1, "input": {"prompt": "a"}}, A_JOB, key="night")

    assert (first.status, again.status) == (201, 200)
    assert again.json == first.json
    assert scalar(rt, "SELECT count(*) FROM jobs") == 2


def test_the_key_of_a_batch_stands_for_nothing_else(rt: Runtime, web: str, caller: Caller) -> None:
    """Neither another batch, nor the same lines in another order, nor a single job; nor the other way round."""
    other = {"input": {"prompt": "b"}}
    assert send(web, caller, A_JOB, other, key="night").status == 201
    assert post(f"{web}/v1/jobs", A_JOB, {"Idempotency-Key": "single"}, key=caller.key).status == 201

    is_problem(send(web, caller, other, A_JOB, key="night"), 409, "idempotency_conflict")
    is_problem(send(web, caller, A_JOB, key="single"), 409, "idempotency_conflict")
    single = post(f"{web}/v1/jobs", A_JOB, {"Idempotency-Key": "night"}, key=caller.key)
    is_problem(single, 409, "idempotency_conflict")
    assert wrong(send(web, caller, {**A_JOB, "idempotency_key": "night"}), 409, "idempotency_conflict") == [
        (1, "idempotency_key")
    ]
    assert scalar(rt, "SELECT count(*) FROM jobs") == 3


def test_of_ten_equal_batches_at_once_one_is_stored(rt: Runtime, web: str, caller: Caller) -> None:
    """By the key of the whole, and by those of the lines."""
    keyed = [{**A_JOB, "idempotency_key": f"line-{n}"} for n in range(50)]

    whole = at_once(lambda _: send(web, caller, *[A_JOB] * 50, key="night"), 10)
    by_line = at_once(lambda n: send(web, caller, *(keyed if n % 2 else keyed[::-1])), 10)

    assert sorted(answer.status for answer in whole) == [200] * 9 + [201]
    assert len({tuple(answer.json["ids"]) for answer in whole}) == 1
    assert {answer.status for answer in by_line} == {201}
    assert len({tuple(sorted(answer.json["ids"])) for answer in by_line}) == 1
    assert scalar(rt, "SELECT count(*) FROM jobs") == 100


def test_a_line_whose_key_was_seen_is_the_job_it_named(rt: Runtime, web: str, caller: Caller) -> None:
    """In a single request, in an earlier batch, or in an earlier line of this one."""
    single = post(f"{web}/v1/jobs", A_JOB, {"Idempotency-Key": "a"}, key=caller.key).json["id"]
    (b,) = send(web, caller, {**A_JOB, "idempotency_key": "b"}).json["ids"]

    answer = send(web, caller, *({**A_JOB, "idempotency_key": key} for key in "abcc"), A_JOB, key="whole")

    assert answer.status == 201
    first, second, third, fourth, fifth = answer.json["ids"]
    assert (first, second, third) == (single, b, fourth)
    assert len({first, second, third, fifth}) == 4
    assert scalar(rt, "SELECT count(*) FROM jobs") == 4
    again = send(web, caller, *({**A_JOB, "idempotency_key": key} for key in "abcc"), A_JOB, key="whole")
    assert (again.status, again.json) == (200, answer.json)


def test_a_line_whose_key_stands_for_another_job_is_named(rt: Runtime, web: str, caller: Caller) -> None:
    """And takes the batch with it, as every wrong line does."""
    other = {"input": {"prompt": "b"}, "idempotency_key": "a"}
    assert send(web, caller, {**A_JOB, "idempotency_key": "a"}).status == 201

    assert wrong(send(web, caller, A_JOB, other), 409, "idempotency_conflict") == [(2, "idempotency_key")]
    twice = send(web, caller, {**other, "idempotency_key": "c"}, A_JOB, {**A_JOB, "idempotency_key": "c"})
    assert wrong(twice, 409, "idempotency_conflict") == [(3, "idempotency_key")]
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1
    assert scalar(rt, "SELECT count(*) FROM idempotency_keys") == 1


def test_a_refused_batch_does_not_use_its_keys_up(rt: Runtime, web: str, caller: Caller) -> None:
    """The mended one may carry the same."""
    keyed = {**A_JOB, "idempotency_key": "a"}
    assert send(web, caller, keyed, {"input": {}}, key="night").status == 422
    assert send(web, caller, keyed, A_JOB, key="night").status == 201


# Money


def test_a_batch_is_covered_as_a_whole_or_refused_as_a_whole(rt: Runtime, web: str, caller: Caller) -> None:
    """Ten jobs of 0.12 USD; of racing batches exactly those are accepted that the budget covers."""
    limit(rt, "3.7", caller.service)

    answers = at_once(lambda _: send(web, caller, *[A_JOB] * 10, key=None), 6)

    assert sorted(answer.status for answer in answers) == [201] * 3 + [402] * 3
    refused = next(answer for answer in answers if answer.status == 402)
    assert "The jobs cost 1.2 USD, and 0.1 are left of this day's budget" in refused.json["detail"]
    assert scalar(rt, "SELECT count(*) FROM jobs") == 30
    assert purse(rt) == (3.6, 0.0)


def test_lines_that_were_seen_cost_nothing_more(rt: Runtime, web: str, caller: Caller) -> None:
    """They are the same jobs, and the same money."""
    limit(rt, "0.3", caller.service)
    keyed = [{**A_JOB, "idempotency_key": key} for key in "ab"]
    assert [send(web, caller, *keyed).status for _ in range(3)] == [201] * 3
    assert purse(rt) == (0.24, 0.0)


def test_a_price_is_asked_once_for_all_lines_that_cost_the_same(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox
) -> None:
    """Only while a budget hangs on it."""
    limit(rt, "10")
    of = [
        {"prompt": f"a lighthouse {n}"} | ({"quality": "hd", "size": "1024*1792"} if n % 2 else {}) for n in range(40)
    ]

    answer = send(web, caller, *({"model": "openai/dall-e-3", "input": one} for one in of))

    assert answer.status == 201
    assert sandbox.arrivals()["calls"]["price"] == 2
    assert purse(rt)[0] == pytest.approx(20 * 0.04 + 20 * 0.12)


def test_lines_without_a_price_are_named_while_there_is_a_budget(rt: Runtime, web: str, caller: Caller) -> None:
    """Nobody could promise to stay within it."""
    limit(rt, "10")
    odd = {**A_JOB, "model": "somebody/a-new-model"}
    assert wrong(send(web, caller, A_JOB, odd, A_JOB, odd)) == [(2, "model"), (4, "model")]
    assert nothing_is_stored(rt)


def test_a_batch_without_known_prices_waits_to_be_admitted(
    rt: Runtime, caller: Caller, make_rt: Callable[..., Runtime]
) -> None:
    """Nobody waits for a price that nothing hangs on."""
    execute(rt, "DELETE FROM prices")
    nudged: list[str] = []
    told = Runtime(rt.settings, rt.db, lambda *kinds: nudged.extend(kinds))

    answer = (
        create_app(told)
        .test_client()
        .post("/v1/jobs/batch", data=lines(A_JOB, A_JOB), headers={"Authorization": f"Bearer {caller.key}"})
    )

    assert answer.status_code == 201
    assert nudged == ["admit"]


# Arbitrary input


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=st.lists(anything | st.just(json.dumps(A_JOB).encode()), max_size=4), keyed=st.booleans())
def test_no_batch_is_a_fault_of_ours(rt: Runtime, caller: Caller, parts: list[bytes], keyed: bool) -> None:
    """Stored or refused, never a 500."""
    headers = {"Authorization": f"Bearer {caller.key}"} | ({"Idempotency-Key": "k"} if keyed else {})

    answer = create_app(rt).test_client().post("/v1/jobs/batch", data=b"\n".join(parts), headers=headers)

    assert answer.status_code in {200, 201, 409, 422}, answer.text


def test_a_batch_waits_for_its_turn_and_not_for_ever(rt: Runtime, caller: Caller) -> None:
    """Two at a time would hold twice the memory and be no faster."""
    started, go_on = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        with page.room.turn():
            started.set()
            go_on.wait(30)

    def ask(_: int) -> int:
        started.wait(30)
        go_on.set()
        headers = {"Authorization": f"Bearer {caller.key}"}
        return create_app(rt).test_client().post("/v1/jobs/batch", data=lines(A_JOB), headers=headers).status_code

    assert at_once(lambda n: hold(n) if n else ask(n), 2)[0] == 201
