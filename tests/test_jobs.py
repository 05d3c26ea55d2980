"""The table of states, and every pair of states against the one guarded UPDATE on real rows."""

from itertools import product

import pytest

from pipeline.jobs import ALARMED, FINAL, IN_FLIGHT, TRANSITIONS, State, sources
from pipeline.runtime import Runtime
from pipeline.store import reading
from pipeline.store.moves import LEGAL, Move, advance
from tests.conftest import Caller
from tests.factories import execute, placed, scalar

PAIRS = list(product(State, State))


def is_legal(source: State, target: State) -> bool:
    return target in TRANSITIONS.get(source, frozenset())


def whole_row(rt: Runtime, job_id: object) -> dict[str, object]:
    """Every column of a job: what must stay as it was."""
    found: dict[str, object] = scalar(rt, "SELECT to_jsonb(j) FROM jobs j WHERE id = :id", id=job_id)
    return found


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.CANCELLED])
def test_completed_failed_and_cancelled_have_no_way_out(state: State) -> None:
    """What a caller was told once stays true; a retry is a new job."""
    assert state in FINAL
    assert not any(is_legal(state, target) for target in State)


def test_only_those_three_are_final() -> None:
    """Any further state without a way out would be a job that nobody finishes."""
    assert {State.COMPLETED, State.FAILED, State.CANCELLED} == FINAL


@pytest.mark.parametrize("state", State)
def test_every_state_is_reached_from_queued(state: State) -> None:
    """A state no job can come to would be dead code."""
    reached, seen = {State.QUEUED}, set[State]()
    while reached - seen:
        for source in reached - seen:
            seen.add(source)
            reached |= TRANSITIONS.get(source, frozenset())
    assert state in reached


@pytest.mark.parametrize("state", sorted(set(State) - FINAL))
def test_every_unfinished_state_leads_to_completed_and_to_failed(state: State) -> None:
    """Whatever happened to a job, the provider's verdict can still be taken: it was paid for."""
    assert {State.COMPLETED, State.FAILED} <= TRANSITIONS[state]


def test_only_a_queued_job_is_cancelled() -> None:
    """The provider has no cancel: what was sent is paid for."""
    assert sources(State.CANCELLED) == {State.QUEUED}


def test_nothing_is_submitted_but_from_the_queue() -> None:
    """The queue is the only way to a POST: an unknown job is not sent again without passing through it."""
    assert sources(State.SUBMITTING) == {State.QUEUED}


def test_only_a_post_under_way_becomes_unknown() -> None:
    """Unknown means that a POST's answer was lost, and nothing else."""
    assert sources(State.UNKNOWN) == {State.SUBMITTING}


def test_a_job_that_runs_at_the_provider_never_goes_back_to_the_queue() -> None:
    """It would be paid for twice."""
    assert sources(State.QUEUED) == {State.SUBMITTING, State.UNKNOWN}


@pytest.mark.parametrize("state", State)
def test_no_state_leads_to_itself(state: State) -> None:
    """A repeat must be a no-op, not a second event."""
    assert not is_legal(state, state)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_sources_read_the_table_backwards(source: State, target: State) -> None:
    """Two readings of one table."""
    assert (source in sources(target)) == is_legal(source, target)


def test_the_guard_holds_exactly_the_table() -> None:
    """The SQL's list is read off the table, with nothing lost or added."""
    assert set(LEGAL) == {f"{source}>{target}" for source, target in PAIRS if is_legal(source, target)}


def test_live_states_have_an_alarm_and_final_ones_none() -> None:
    """A live row that nobody will look at is a job forgotten; only an expired one may be left after its day."""
    assert set(State) - ALARMED - FINAL == {State.EXPIRED}
    assert not ALARMED & FINAL


def test_what_may_run_at_the_provider_counts_as_in_flight() -> None:
    """A place at the provider is taken until a verdict, whatever we believe of it."""
    assert {State.SUBMITTING, State.UNKNOWN, State.PROCESSING} == IN_FLIGHT


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_job_moves_if_and_only_if_the_table_says_so(
    rt: Runtime, caller: Caller, source: State, target: State
) -> None:
    """The guard is in the UPDATE itself: no caller can be wrong about what is legal."""
    job_id = placed(rt, caller.service, source)
    if target in IN_FLIGHT:  # an evidence of an earlier attempt; the schema refuses one in flight without any
        execute(rt, "UPDATE jobs SET current_attempt = coalesce(current_attempt, id) WHERE id = :id", id=job_id)
    before = whole_row(rt, job_id)

    with rt.db.transaction() as tx:
        moved = advance(tx, [Move(job_id, target, due_s=60.0 if target in ALARMED else None, data={"why": "a test"})])

    after = whole_row(rt, job_id)
    with rt.db.transaction() as tx:
        events = reading.events(tx, job_id)
    if is_legal(source, target):
        assert moved == {job_id}
        assert after["state"] == target
        assert after["last_seq"] == 8
        assert [(event.seq, event.kind, event.data) for event in events] == [
            (8, f"job.{target}", {"from": source, "why": "a test"})
        ]
        assert (after["due_at"] is not None) == (target in ALARMED)
        assert (after["finished_at"] is not None) == (target in FINAL)
    else:
        assert moved == set()
        assert after == before
        assert events == []


@pytest.mark.parametrize("state", State)
def test_a_move_of_a_job_that_is_not_there_is_a_loss_like_any_other(rt: Runtime, caller: Caller, state: State) -> None:
    """A pruned job's late callback raises nothing."""
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(caller.service.id, state, due_s=1.0)]) == set()
