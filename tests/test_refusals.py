"""Refusals: what came over the broker and could not become a job stays in sight, until a person has seen to it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from pipeline.lifecycle import messages
from pipeline.runtime import Runtime
from pipeline.store import refusals
from pipeline.store.refusals import Refusal
from tests.conftest import Caller
from tests.factories import execute, row, scalar
from tests.test_budgets import limit
from tests.test_cli import Run, refusal, run, value

__all__ = ["run"]

INPUT = {"prompt": "a lighthouse"}


def refused(rt: Runtime) -> list[Refusal]:
    with rt.db.transaction() as tx:
        return refusals.newest(tx, at_most=10)


def taken(rt: Runtime, kwargs: Mapping[str, Any], *, args: Sequence[Any] = (), task_id: object = "the-task") -> Refusal:
    """Hand in what must be refused."""
    messages.take(rt, task_id, args, kwargs)
    (found,) = refused(rt)
    return found


def test_what_was_mended_on_our_side_is_handed_in_again_and_becomes_one_job(
    rt: Runtime, run: Run, caller: Caller
) -> None:
    """A budget that was too small, a service not yet created: the other app need not send it twice."""
    limit(rt, "0.1", caller.service)
    found = taken(rt, {"service": "shop", "input": INPUT, "metadata": {"order": "7"}})
    assert (found.code, found.service, found.task_id) == ("budget_exceeded", "shop", "the-task")
    assert value(run("refusals", "--json"))[0]["errors"] == [dict(found.errors[0])]
    assert "0.12 USD" in run("refusals").stdout
    assert value(run("refusals", "show", str(found.id), "--json"))["request"]["kwargs"]["input"] == INPUT
    assert "a lighthouse" in run("refusals", "show", str(found.id)).stdout
    assert "a lighthouse" not in run("refusals").stdout
    assert "budget" in refusal(run("refusals", "retry", str(found.id)))
    assert len(refused(rt)) == 1

    limit(rt, "5", caller.service)
    job_id = UUID(value(run("refusals", "retry", str(found.id), "--json"))["job"])

    assert row(rt, job_id).caller_data == {"order": "7"}
    assert refused(rt) == []
    messages.take(rt, "the-task", (), {"service": "shop", "input": INPUT, "metadata": {"order": "7"}})
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1, "the task's id is its key still"


def test_what_nobody_wants_is_dropped(rt: Runtime, run: Run) -> None:
    """The list is to be empty when all is well."""
    found = taken(rt, {"service": "nobody", "input": INPUT})
    assert run("refusals", "drop", str(found.id)).returncode == 0
    assert value(run("refusals", "--json")) == []
    for words in (("drop", str(found.id)), ("show", str(found.id)), ("retry", str(found.id)), ("drop", "no id")):
        refusal(run("refusals", *words))


@pytest.mark.parametrize(
    ("kwargs", "kept"),
    [
        ({"input": {"prompt": "x" * 300_000}, "metadata": {"order": "7"}}, {"metadata": {"order": "7"}}),
        ({"input": {"prompt": "nul \x00"}}, {"input": {"prompt": "nul \ufffd"}}),
        ({"input": {"\ud800": "\udfff"}}, {"input": {"\ufffd": "\ufffd"}}),
        ({"input": {"prompt": [float("nan"), float("inf")]}}, {"input": {"prompt": ["nan", "inf"]}}),
        ({"input": {"prompt": b"bytes"}}, {"input": {"prompt": "(bytes)"}}),
    ],
    ids=["large", "NUL", "surrogates", "no numbers", "bytes"],
)
def test_of_a_request_that_cannot_be_stored_all_is_kept_that_can_be(
    rt: Runtime, run: Run, caller: Caller, kwargs: dict[str, Any], kept: dict[str, Any]
) -> None:
    """It says whose it was. But it is not what was asked for: only its sender can send that again."""
    found = taken(rt, {"service": "shop", **kwargs}, task_id="odd \x00 id")
    assert found.code == "invalid_input"
    assert found.request == {"args": [], "kwargs": {"service": "shop", **kept}, "whole": False}
    assert found.task_id == "odd \ufffd id"
    assert "sent again" in refusal(run("refusals", "retry", str(found.id)))


def test_a_tower_of_lists_is_refused_and_its_ground_floor_kept(rt: Runtime, caller: Caller) -> None:
    """Neither we nor who reads it later may fall from it."""
    tower: list[Any] = []
    for _ in range(900):
        tower = [tower]
    found = taken(rt, {"service": "shop", "input": {"prompt": tower}})
    assert (found.code, found.request and found.request["whole"]) == ("invalid_input", False)


def test_everything_of_a_request_may_be_said_by_name_in_celerys_own_json(rt: Runtime, caller: Caller) -> None:
    """Celery's JSON brings times, UUIDs and decimals as such; tasks and addresses are those of the HTTP API."""
    execute(rt, 'UPDATE services SET callback_tasks = \'[{"task": "shop.done", "queue": "shop"}]\'')
    order, tomorrow = uuid4(), datetime.now(UTC) + timedelta(days=1)
    said = {
        "service": "shop",
        "input": {**INPUT, "size": Decimal("1.5"), "seed": 7},
        "model": "a/b",
        "priority": 3,
        "run_at": tomorrow,
        "deadline_s": 60,
        "callback_url": "https://shop.example/done",
        "callback_task": "shop.done",
        "metadata": {"order": order},
        "idempotency_key": "k",
    }
    messages.take(rt, "the-task", (), said)

    assert refused(rt) == []
    found = row(rt, scalar(rt, "SELECT id FROM jobs"))
    assert (found.input, found.caller_data) == ({**INPUT, "size": 1.5, "seed": 7}, {"order": str(order)})
    assert (found.run_at, found.priority) == (tomorrow, 3)
    assert scalar(rt, "SELECT callback_task || ' ' || callback_url FROM jobs") == "shop.done https://shop.example/done"
    messages.take(rt, "the-task", (), said | {"callback_task": "shop.other", "idempotency_key": None})
    assert [error["field"] for one in refused(rt) for error in one.errors] == ["callback_task"]
