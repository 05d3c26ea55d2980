"""Rung four: what nothing can prove is held for a person, and only a person repeats a payment in doubt."""

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from pipeline import views
from pipeline.errors import InvalidInput, NotAllowedNow
from pipeline.jobs import State, Via
from pipeline.lifecycle import decide
from pipeline.lifecycle.proof import delay_s
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import claimed, execute, happened, kinds, queued, row, scalar, state, swept, unknown
from tests.test_reconcile import LOST, look_now, lose

StartWorker = Callable[..., Worker]
MakeRuntime = Callable[..., Runtime]


@pytest.fixture
def doubtful(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> tuple[Runtime, Worker, UUID]:
    """A lost answer, and a list that shows a task of the model but not its input: it may be anybody's."""
    rt = make_rt(unknown_patience_s=0.1, public_url=None, poll_after_s=0.2)
    sandbox.faults(list_input=False)
    worker = start_worker(rt)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse", how=LOST)
    look_now(rt)
    swept(worker, lambda: row(rt, job_id).held_at)
    return rt, worker, job_id


def task(sandbox: Sandbox) -> str:
    """The one task the provider made."""
    return str(sandbox.ledger()[0]["prediction_id"])


def test_what_nothing_can_prove_is_held_and_told_once(doubtful: tuple[Runtime, Worker, UUID]) -> None:
    """However often it is looked for again, the operator is called once."""
    rt, worker, job_id = doubtful
    looks = len(happened(rt, job_id, "attempt.looked_for"))
    look_now(rt)
    swept(worker, lambda: len(happened(rt, job_id, "attempt.looked_for")) > looks)

    assert state(rt, job_id) == State.UNKNOWN
    assert kinds(rt, job_id).count("job.needs_decision") == 1
    assert scalar(rt, "SELECT count(*) FROM notifications WHERE event = 'job.needs_decision'") == 1
    shown = views.job(row(rt, job_id))["needs_decision"]
    assert "may be it" in shown["reason"]
    assert shown["since"]


@pytest.mark.parametrize(
    ("age_s", "waits_s"), [(1_000, 500), (6 * 3600, 3600), (6 * 86400, 3600), (8 * 86400, 7 * 86400)]
)
def test_it_is_looked_for_at_least_hourly_until_the_provider_has_forgotten(age_s: float, waits_s: float) -> None:
    """The list may yet tell; after seven days it cannot, and once a week is enough."""
    assert delay_s(age_s, patience_s=900) == waits_s


def test_a_held_job_takes_no_place_from_the_others(
    doubtful: tuple[Runtime, Worker, UUID], make_rt: MakeRuntime, caller: Caller
) -> None:
    """One job that waits for a person all weekend must not stop an account that may run one task at a time."""
    _, worker, job_id = doubtful
    worker.stop(0.0)
    small = make_rt(max_in_flight=1)
    other = queued(small, caller.service)
    with small.db.transaction() as tx:
        tx.exec_driver_sql("UPDATE pipeline.account SET trial = false, recent = '', backoff_until = NULL")
    assert [start.job_id for start in claimed(small, 5)] == [other]
    assert state(small, job_id) == State.UNKNOWN


def test_adopting_takes_the_tasks_verdict(doubtful: tuple[Runtime, Worker, UUID], sandbox: Sandbox) -> None:
    """It was paid for: whoever finds it gives it back to its job."""
    rt, _, job_id = doubtful
    decide.adopt(rt, job_id, task(sandbox))

    found = row(rt, job_id)
    assert (found.state, found.settled_by, found.prediction_id) == (State.COMPLETED, Via.OPERATOR, task(sandbox))
    assert (found.held_at, found.held_reason) == (None, None)
    assert len(sandbox.ledger()) == 1


def test_a_task_that_does_not_exist_or_is_anothers_is_not_adopted(
    doubtful: tuple[Runtime, Worker, UUID], sandbox: Sandbox, caller: Caller
) -> None:
    """A slip of the hand must not give a job another's picture."""
    rt, _, job_id = doubtful
    with pytest.raises(InvalidInput, match="knows no task"):
        decide.adopt(rt, job_id, "0" * 32)
    execute(
        rt,
        "INSERT INTO attempts (id, job_id, service_id, number, token, worker_id, outcome, ended_at, prediction_id)"
        " SELECT :id, id, service_id, 9, 'theirs', :id, 'accepted', now(), :task FROM jobs",
        id=uuid4(),
        task=task(sandbox),
    )
    with pytest.raises(InvalidInput, match="another job's"):
        decide.adopt(rt, job_id, task(sandbox))
    assert state(rt, job_id) == State.UNKNOWN


def test_resubmitting_pays_again_because_a_person_said_so(
    doubtful: tuple[Runtime, Worker, UUID], sandbox: Sandbox
) -> None:
    """The one way to a second charge; the history says whose decision it was."""
    rt, worker, job_id = doubtful
    decide.resubmit(rt, job_id)
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    assert len(sandbox.ledger()) == 2
    assert {"via": "operator", "why": "a person decided to submit it again", "from": "unknown"} in happened(
        rt, job_id, "job.queued"
    )


def test_giving_up_fails_the_job(doubtful: tuple[Runtime, Worker, UUID], sandbox: Sandbox) -> None:
    """The caller hears of it, and nobody looks any longer."""
    rt, _, job_id = doubtful
    decide.give_up(rt, job_id)

    found = row(rt, job_id)
    assert (found.state, found.error["code"], found.due_at) == (State.FAILED, "given_up", None)
    assert scalar(rt, "SELECT count(*) FROM notifications WHERE event = 'job.failed'") == 1


@pytest.mark.parametrize("decision", [decide.resubmit, decide.give_up])
def test_only_an_unknown_job_is_decided(rt: Runtime, caller: Caller, decision: Callable[[Runtime, UUID], None]) -> None:
    """Whatever is under way, or final, is nobody's to guess at."""
    for job_id in (queued(rt, caller.service), uuid4()):
        with pytest.raises(NotAllowedNow):
            decision(rt, job_id)


def test_a_job_is_decided_once(rt: Runtime, caller: Caller) -> None:
    """Two operators at the same incident: the second is told, and nothing is paid again."""
    job = unknown(rt, caller.service)
    decide.give_up(rt, job.job_id)
    with pytest.raises(NotAllowedNow):
        decide.resubmit(rt, job.job_id)
    assert state(rt, job.job_id) == State.FAILED
