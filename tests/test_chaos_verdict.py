"""The judge of the chaos suite is no rubber stamp: whichever promise is broken in clean evidence is found broken."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.clients import Order
from tests.chaos.evidence import Evidence
from tests.chaos.recovery import measure
from tests.chaos.troubles import Kill
from tests.chaos.verdict import judge

Change = Callable[[Evidence], object]
JOBS = 3


def clean() -> Evidence:
    """Three jobs handed in, made, paid and told once: what a run without a fault leaves behind."""
    names = [f"{number}" for number in range(JOBS)]
    return Evidence(
        orders=[Order(int(name), f"key {name}", f"prompt {name}", {f"job {name}"}) for name in names],
        jobs=[
            {
                "id": f"job {name}",
                "state": "completed",
                "prompt": f"prompt {name}",
                "prediction_id": f"task{name}",
                "outputs": [{"url": f"http://files/predictions/task{name}/1.png"}],
                "error": None,
                "held_reason": None,
                "last_seq": 4,
            }
            for name in names
        ],
        keys=[{"key": f"key {name}", "job_id": f"job {name}"} for name in names],
        attempts=[
            {"job_id": f"job {name}", "worker_id": f"worker {name}", "outcome": "accepted", "ended": 30.0}
            for name in names
        ],
        events=[
            {"job_id": f"job {name}", "seq": seq, "kind": f"job.{to}", "data": {"from": before}, "at": 10.0 * seq}
            for name in names
            for seq, before, to in (
                (1, None, "queued"),
                (2, "queued", "submitting"),
                (3, "submitting", "processing"),
                (4, "processing", "completed"),
            )
        ],
        callbacks=[{"verdict": "applied", "signature": f"signature {name}"} for name in names],
        notifications=[{"job_id": f"job {name}", "seq": 4, "event": "job.completed"} for name in names],
        workers=[{"id": f"worker {name}", "pid": 100 + int(name), "started": 1.0} for name in names],
        charges=[{"prediction_id": f"task{n}", "prompt": f"prompt {n}", "status": "completed"} for n in names],
        deliveries=[
            {"id": name, "kind": kind, "signature": f"{mark}{name}", "tries": [{"status": status}]}
            for name in names
            for kind, mark, status in (("true", "signature ", 204), ("forged", "forged ", 401))
        ],
    )


def first(rows: Any, **changes: Any) -> Any:
    """The same rows, the first of them changed."""
    return [{**rows[0], **changes}, *rows[1:]]


def broken(evidence: Evidence, *, list_input: bool = True) -> set[str]:
    """The promises that the judge finds broken."""
    return {promise for promise, cases in judge(evidence, list_input=list_input).items() if cases}


@pytest.mark.parametrize("list_input", [True, False])
def test_clean_evidence_breaks_no_promise(list_input: bool) -> None:
    """Else every other finding would say nothing."""
    verdict = judge(clean(), list_input=list_input)
    assert len(verdict) == 11
    assert not any(verdict.values())


LOST = "no accepted job is lost"
TWICE = "no job is made twice"
FINAL = "every job is final"
STATE = "every state is the provider's"
OUTPUT = "every job has its own output"
CHARGE = "one charge for each job"
FORGED = "no forged callback is believed"
HISTORY = "every history is legal"
TOLD = "every end is told once"
REFUSED = "no caller is refused"


@pytest.mark.parametrize(
    ("promise", "change"),
    [
        (LOST, lambda e: {"jobs": e.jobs[1:]}),
        (LOST, lambda e: {"keys": e.keys[1:]}),
        (LOST, lambda e: {"keys": first(e.keys, job_id="job 1")}),
        (LOST, lambda e: {"orders": [Order(0, "key 0", "prompt 0", {"job 0", "job 1"}), *e.orders[1:]]}),
        (LOST, lambda e: {"orders": [Order(0, "key 0", "prompt 1", {"job 0"}), *e.orders[1:]]}),
        (TWICE, lambda e: {"jobs": [*e.jobs, {**e.jobs[0], "id": "job 9"}]}),
        (TWICE, lambda e: {"jobs": first(e.jobs, prompt="a prompt that nobody sent")}),
        (FINAL, lambda e: {"jobs": first(e.jobs, state="processing", outputs=None)}),
        (FINAL, lambda e: {"jobs": first(e.jobs, state="unknown", held_reason="in doubt", outputs=None)}),
        (STATE, lambda e: {"jobs": first(e.jobs, state="failed", outputs=None)}),
        (STATE, lambda e: {"charges": first(e.charges, status="failed")}),
        (STATE, lambda e: {"jobs": first(e.jobs, prediction_id="a task that nobody made")}),
        (STATE, lambda e: {"jobs": first(e.jobs, state="cancelled", prediction_id=None, outputs=None)}),
        (OUTPUT, lambda e: {"jobs": first(e.jobs, prediction_id="task1")}),
        (OUTPUT, lambda e: {"jobs": first(e.jobs, outputs=e.jobs[1]["outputs"])}),
        (OUTPUT, lambda e: {"jobs": first(e.jobs, outputs=[])}),
        (CHARGE, lambda e: {"charges": [*e.charges, {**e.charges[0], "prediction_id": "task9"}]}),
        (CHARGE, lambda e: {"charges": e.charges[1:]}),
        (CHARGE, lambda e: {"charges": [*e.charges, {**e.charges[0], "prompt": "what nobody ordered"}]}),
        (CHARGE, lambda e: {"attempts": [*e.attempts, e.attempts[0]]}),
        (FORGED, lambda e: {"callbacks": first(e.callbacks, signature="forged 0")}),
        (FORGED, lambda e: {"deliveries": first(e.deliveries, kind="forged")}),
        (FORGED, lambda e: {"jobs": first(e.jobs, error={"message": "forged"})}),
        (HISTORY, lambda e: {"events": [e.events[0], *e.events[2:]]}),
        (HISTORY, lambda e: {"events": first(e.events, kind="job.submitting")}),
        (HISTORY, lambda e: {"events": [e.events[0], {**e.events[1], "kind": "job.unknown"}, *e.events[2:]]}),
        (HISTORY, lambda e: {"events": [*e.events[:3], {**e.events[3], "data": {"from": "unknown"}}, *e.events[4:]]}),
        (HISTORY, lambda e: {"events": [*e.events[:3], {**e.events[3], "kind": "job.noted"}, *e.events[4:]]}),
        (HISTORY, lambda e: {"events": [*e.events, {**e.events[0], "job_id": "nobody"}]}),
        (TOLD, lambda e: {"notifications": e.notifications[1:]}),
        (TOLD, lambda e: {"notifications": [*e.notifications, e.notifications[0]]}),
        (REFUSED, lambda e: {"orders": [*e.orders, Order(9, "key 9", "prompt 9", refusals=[500])]}),
    ],
)
def test_each_broken_promise_is_found(promise: str, change: Change) -> None:
    """One row altered behind the product's back is enough."""
    evidence = clean()
    changes: Any = change(evidence)
    assert promise in broken(replace(evidence, **changes))


def test_a_move_after_the_end_is_found() -> None:
    """Final is final, even if the job is back where it was."""
    evidence = clean()
    again = {"job_id": "job 0", "seq": 5, "kind": "job.completed", "data": {"from": "completed"}, "at": 50.0}
    events = [*evidence.events[:4], again, *evidence.events[4:]]
    assert broken(replace(evidence, events=events, jobs=first(evidence.jobs, last_seq=5))) == {HISTORY}


def test_an_order_without_an_answer_may_have_a_job_or_none() -> None:
    """Its caller gave up: it was promised nothing, but not to be charged twice."""
    evidence = clean()
    orders = [Order(0, "key 0", "prompt 0"), *evidence.orders[1:], Order(9, "key 9", "prompt 9")]
    assert broken(replace(evidence, orders=orders)) == {"nearly every order is accepted"}, "two of five were not"


def test_where_inputs_are_not_listed_a_job_may_be_held_and_then_need_not_be_paid_for() -> None:
    """A person decides; but nothing else may be left undone, and nothing may be paid twice."""
    evidence = clean()
    held = first(evidence.jobs, state="unknown", held_reason="in doubt", prediction_id=None, outputs=None, last_seq=3)
    events = [*evidence.events[:2], {**evidence.events[2], "kind": "job.unknown"}, *evidence.events[4:]]
    told = evidence.notifications[1:]
    evidence = replace(evidence, jobs=held, events=events, notifications=told)
    assert broken(evidence, list_input=False) == set()
    assert broken(replace(evidence, charges=evidence.charges[1:]), list_input=False) == set()
    assert broken(replace(evidence, charges=[*evidence.charges, evidence.charges[0]]), list_input=False) == {
        "at most one charge for each job"
    }
    assert FINAL in broken(evidence)
    waiting = first(held, held_reason=None)
    assert broken(replace(evidence, jobs=waiting), list_input=False) == {"every job is final or held"}


def test_recovery_is_the_time_until_the_slowest_job_was_looked_after() -> None:
    """Of the jobs that the killed workers held then; what was answered before, or is another's, does not count."""
    evidence = clean()
    kill = Kill(21.0, frozenset({100, 101, 999}))
    found = measure(evidence, [kill, Kill(35.0, frozenset({102}))])
    assert (found.kills, found.jobs, found.seconds) == (2, 2, [9.0])
    assert found.breaches == []

    nobody_came = [event for event in evidence.events if event["seq"] < 3]
    assert len(measure(replace(evidence, events=nobody_came), [kill]).breaches) == 2
