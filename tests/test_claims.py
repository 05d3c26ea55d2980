"""Claims: never more than the account allows all processes together, and that fairly shared."""

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import Outcome, State
from pipeline.runtime import Runtime
from pipeline.settings import Limits
from pipeline.store import account, alarms, assets, claims, missing
from pipeline.store.claims import BATCH, Claim
from pipeline.store.intake import NewJob, add
from pipeline.store.moves import Move, advance
from pipeline.store.services import Service
from pipeline.store.tables import new_id
from tests.conftest import Caller
from tests.factories import MODEL, at_once, attempts, execute, kinds, processing, row, scalar, state, unknown

Take = Callable[..., Claim]

AMPLE = Limits(1000, 1000)


@pytest.fixture
def take(rt: Runtime) -> Take:
    """Claim: `take(3)`, `take(3, limits=Limits(quota, cap), worker_id=…)`."""

    def claim(at_most: int = BATCH, *, limits: Limits = AMPLE, worker_id: UUID | None = None) -> Claim:
        with rt.db.transaction() as tx:
            return claims.claim(
                tx, worker_id=worker_id or new_id(), limits=limits, window_s=61.0, lease_s=90.0, at_most=at_most
            )

    return claim


def put(rt: Runtime, service: Service, count: int = 1, **facts: Any) -> list[UUID]:
    """Queued jobs, the first of them due first."""
    facts = {"model": MODEL, "deadline_s": 3600.0, **facts}
    job = NewJob(service.id, input={"prompt": "a lighthouse"}, **facts)
    jobs = [replace(job, id=new_id()) for _ in range(count)]
    with rt.db.transaction() as tx:
        add(tx, jobs)
    return [job.id for job in jobs]


def weigh(rt: Runtime, answers: account.Answers, max_in_flight: int = 1000) -> None:
    with rt.db.transaction() as tx:
        account.weigh(tx, answers, max_in_flight=max_in_flight)


def age(rt: Runtime, seconds: float) -> None:
    """Let every start be longer ago, and answered at once."""
    execute(
        rt,
        """
        UPDATE attempts SET outcome = coalesce(outcome, 'accepted'),
            started_at = started_at - make_interval(secs => :s),
            ended_at = coalesce(ended_at, started_at) - make_interval(secs => :s)
        """,
        s=seconds,
    )


def settle(rt: Runtime) -> None:
    """Have every claimed job accepted and completed: its place at the provider is free again."""
    execute(rt, "UPDATE attempts SET outcome = 'accepted', ended_at = now() WHERE outcome IS NULL")
    execute(
        rt,
        "UPDATE jobs SET state = 'completed', outputs = '[]', due_at = NULL, finished_at = now()"
        " WHERE state IN ('submitting', 'processing', 'unknown')",
    )


# -- what a claim writes ----------------------------------------------------------------------------------------------


def test_a_claim_writes_the_intent_before_the_post(rt: Runtime, caller: Caller, take: Take) -> None:
    """There is no idempotency key at the provider: the token in the ledger is what a lost POST is found by."""
    (job_id,) = put(rt, caller.service)
    worker_id = new_id()
    (start,) = take(worker_id=worker_id).starts

    ledger = "SELECT to_jsonb(a) FROM attempts a WHERE id = :id"
    attempt = scalar(rt, ledger, id=start.attempt_id)
    assert (attempt["job_id"], attempt["worker_id"]) == (str(job_id), str(worker_id))
    assert (attempt["token"], attempt["number"], attempt["outcome"]) == (start.token, 1, None)
    assert attempts(rt, job_id)[0].started_at == start.started_at == row(rt, job_id).submitted_at
    assert (start.job_id, start.number, start.model, start.input) == (job_id, 1, MODEL, {"prompt": "a lighthouse"})
    assert state(rt, job_id) == State.SUBMITTING
    assert kinds(rt, job_id) == ["job.queued", "job.submitting"]
    lease = "SELECT extract(epoch FROM due_at - submitted_at)::float8 FROM jobs"
    assert scalar(rt, lease) == pytest.approx(90.0, abs=5.0)


def test_every_token_is_new_and_hard_to_guess(rt: Runtime, caller: Caller, take: Take) -> None:
    """It is all that stands between a stranger's URL and a job."""
    put(rt, caller.service, 150)
    tokens = [start.token for _ in range(2) for start in take().starts]
    assert len(set(tokens)) == 150
    assert {len(token) for token in tokens} == {len(secrets.token_urlsafe(24))}


def test_the_next_attempt_has_the_next_number(rt: Runtime, caller: Caller, take: Take) -> None:
    """The ledger reads in order."""
    (job_id,) = put(rt, caller.service)
    for number in (1, 2, 3):
        (start,) = take().starts
        assert start.number == number
        execute(rt, "UPDATE attempts SET outcome = 'throttled', ended_at = now() WHERE id = :id", id=start.attempt_id)
        execute(rt, "UPDATE jobs SET state = 'queued', due_at = now()")
    assert [attempt.number for attempt in attempts(rt, job_id)] == [1, 2, 3]


# -- what is claimed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "due_at = now() + interval '1 minute'",
        "deadline_at = now() - interval '1 second'",
        "state = 'cancelled', due_at = NULL, finished_at = now()",
        "state = 'unknown', current_attempt = id",
    ],
    ids=["not due yet", "past its deadline", "cancelled", "not queued"],
)
def test_what_must_not_be_paid_for_now_is_not_claimed(rt: Runtime, caller: Caller, take: Take, change: str) -> None:
    """A job for later, a job nobody waits for any more, a job that may have been paid for."""
    spared, wanted = put(rt, caller.service, 2)
    execute(rt, f"UPDATE jobs SET {change} WHERE id = :id", id=spared)
    assert [start.job_id for start in take().starts] == [wanted]


def test_a_claim_takes_no_more_than_it_was_asked_to(rt: Runtime, caller: Caller, take: Take) -> None:
    """A process claims only what it can begin at once."""
    put(rt, caller.service, 250)
    assert len(take(7).starts) == 7
    first = take(400)
    assert len(first.starts) == BATCH
    assert first.again
    assert len(take(BATCH).starts) == BATCH
    last = take(BATCH)
    assert len(last.starts) == 43
    assert not last.again
    assert take() == Claim()


def test_priority_orders_a_services_own_jobs_and_age_the_rest(rt: Runtime, caller: Caller, take: Take) -> None:
    """Urgent ones first, and nobody waits for ever behind equals."""
    put(rt, caller.service, 3, priority=-5)
    normal = put(rt, caller.service, 3)
    for number, job_id in enumerate(normal):
        execute(rt, "UPDATE jobs SET due_at = now() - :n * interval '1 s' WHERE id = :id", n=3 - number, id=job_id)
    (urgent,) = put(rt, caller.service, priority=5)
    taken = [start.job_id for _ in range(4) for start in take(1).starts]
    assert taken == [urgent, *normal]


def test_rows_that_somebody_holds_are_skipped_not_waited_for(rt: Runtime, caller: Caller, take: Take) -> None:
    """A person's cancel under way must not stop the whole account."""
    held, *others = put(rt, caller.service, 4)
    with rt.db.transaction() as tx:
        tx.exec_driver_sql("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", (held,))
        assert {start.job_id for start in take().starts} == set(others)
    assert {start.job_id for start in take().starts} == {held}


# -- fairness ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(make_caller: Callable[..., Caller]) -> Service:
    """Give a service."""
    return make_caller("the-shop").service


@pytest.fixture
def crm(make_caller: Callable[..., Caller]) -> Service:
    """Give another service."""
    return make_caller("the-crm").service


def test_one_job_beside_five_thousand_is_in_the_first_claim(
    rt: Runtime, shop: Service, crm: Service, take: Take
) -> None:
    """A neighbour's backlog is the neighbour's."""
    put(rt, shop, 5000, priority=10)
    (single,) = put(rt, crm)
    assert single in {start.job_id for start in take(10).starts}


def test_single_slots_are_taken_in_turn(rt: Runtime, shop: Service, crm: Service, take: Take) -> None:
    """Small claims must not always begin with the same service."""
    mine = set(put(rt, shop, 20, priority=10))
    put(rt, crm, 20)
    turns = [start.job_id in mine for _ in range(20) for start in take(1).starts]
    assert all(sum(turns[place : place + 2]) == 1 for place in range(0, 20, 2))


@pytest.mark.parametrize("size", [1, 8, 40])
def test_weights_share_the_starts(rt: Runtime, shop: Service, crm: Service, take: Take, size: int) -> None:
    """Three to one, whatever the size of a claim."""
    execute(rt, "UPDATE services SET weight = 3 WHERE id = :id", id=shop.id)
    mine = set(put(rt, shop, 60))
    put(rt, crm, 60)
    taken = Counter(start.job_id in mine for _ in range(40 // size) for start in take(size).starts)
    assert taken == {True: 30, False: 10}


def test_a_lone_service_has_all_the_starts(rt: Runtime, shop: Service, crm: Service, take: Take) -> None:
    """Shares are of what is wanted, not reserved."""
    put(rt, shop, 30)
    assert len(take(30).starts) == 30


# -- the account's limits ---------------------------------------------------------------------------------------------


def test_the_quota_is_a_sliding_log(rt: Runtime, caller: Caller, take: Take) -> None:
    """A start leaves the window when it is a window old, neither with a minute's end nor a bit at a time."""
    put(rt, caller.service, 20)
    limits = Limits(5, 1000)
    assert len(take(2, limits=limits).starts) == 2
    age(rt, 40)
    assert len(take(limits=limits).starts) == 3
    assert take(limits=limits).starts == ()
    age(rt, 20.5)
    assert take(limits=limits).starts == ()
    age(rt, 1)
    assert len(take(limits=limits).starts) == 2
    assert take(limits=limits).starts == ()


def test_a_start_counts_until_a_window_after_its_answer(rt: Runtime, caller: Caller, take: Take) -> None:
    """When between claim and answer the POST arrived, nobody here knows: by the provider's count it may be the last."""
    put(rt, caller.service, 4)
    limits = Limits(1, 1000)
    assert len(take(limits=limits).starts) == 1
    execute(rt, "UPDATE attempts SET started_at = started_at - interval '70 s'")
    assert take(limits=limits).starts == (), "it is still under way"
    execute(rt, "UPDATE attempts SET outcome = 'accepted', ended_at = now() - interval '5 s'")
    assert take(limits=limits).starts == ()
    execute(rt, "UPDATE attempts SET ended_at = now() - interval '62 s'")
    assert len(take(limits=limits).starts) == 1


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.NOT_SENT])
def test_whatever_was_sent_counts_against_the_quota(rt: Runtime, caller: Caller, take: Take, outcome: Outcome) -> None:
    """The provider counts requests, not successes."""
    put(rt, caller.service, 4)
    take(2, limits=Limits(2, 1000))
    execute(rt, "UPDATE attempts SET outcome = :outcome, ended_at = now()", outcome=outcome)
    assert take(limits=Limits(2, 1000)).starts == ()


def test_what_was_not_sent_does_not_count_against_the_quota(rt: Runtime, caller: Caller, take: Take) -> None:
    """The provider never heard of it."""
    put(rt, caller.service, 4)
    take(2, limits=Limits(2, 1000))
    execute(rt, "UPDATE attempts SET outcome = 'not_sent', ended_at = now()")
    assert len(take(limits=Limits(2, 1000)).starts) == 2


@pytest.mark.parametrize("held", [State.SUBMITTING, State.PROCESSING, State.UNKNOWN])
def test_the_cap_counts_whatever_may_run_at_the_provider(rt: Runtime, caller: Caller, take: Take, held: State) -> None:
    """A task whose answer was lost takes a place like any other."""
    put(rt, caller.service, 6)
    assert len(take(limits=Limits(1000, 2)).starts) == 2
    execute(rt, "UPDATE jobs SET state = :held WHERE state = 'submitting'", held=held)
    assert take(limits=Limits(1000, 2)).starts == ()
    settle(rt)
    assert len(take(limits=Limits(1000, 2)).starts) == 2


@pytest.mark.parametrize(
    ("refused_s_ago", "caps", "full"),
    [(9, (2, 3, 4, 5, 5), 5), (9, (8, 10, 12, 15, 16, 16), 16), (11, (2, 4, 5, 5), 5), (11, (3, 6, 12, 16, 16), 16)],
)
def test_a_learnt_cap_holds_and_is_regained_step_by_step(
    rt: Runtime, caller: Caller, take: Take, refused_s_ago: float, caps: tuple[int, ...], full: int
) -> None:
    """The provider refused more at a time: we believe it, and try some more later, much more if all is quiet."""
    put(rt, caller.service, sum(caps) + 20)
    limits = Limits(1000, full)
    execute(rt, "UPDATE account SET in_flight_cap = :cap, cap_changed_at = clock_timestamp()", cap=caps[0])
    for cap in caps:
        assert len(take(limits=limits).starts) == cap
        assert take(limits=limits).starts == ()
        settle(rt)
        refused = "UPDATE account SET cap_changed_at = clock_timestamp() - interval '11 s', backoff_until = NULL,"
        refused += " backoff_at = clock_timestamp() - make_interval(secs => :s)"
        execute(rt, refused, s=refused_s_ago)
    assert scalar(rt, "SELECT in_flight_cap FROM account") is None


def test_eight_claimers_at_once_never_exceed_the_quota(rt: Runtime, caller: Caller, take: Take) -> None:
    """One statement that locks and counts would count by a snapshot from before the lock, and overshoot."""
    for _ in range(12):
        put(rt, caller.service, 30)
        taken = at_once(lambda _: len(take(6, limits=Limits(10, 1000)).starts), 8)
        assert sum(taken) == 10
        settle(rt)
        age(rt, 62)


def test_eight_claimers_at_once_never_exceed_the_cap(rt: Runtime, caller: Caller, take: Take) -> None:
    """The same for places."""
    for _ in range(12):
        put(rt, caller.service, 30)
        taken = at_once(lambda _: len(take(6, limits=Limits(1000, 10)).starts), 8)
        assert sum(taken) == 10
        settle(rt)
        age(rt, 62)


def test_no_two_claimers_take_the_same_job(rt: Runtime, caller: Caller, take: Take) -> None:
    """It would be paid for twice."""
    put(rt, caller.service, 300)
    taken = at_once(lambda _: [start.job_id for _ in range(5) for start in take(10).starts], 8)
    jobs = [job_id for some in taken for job_id in some]
    assert len(jobs) == len(set(jobs)) == 300


# -- brakes and the pacer ---------------------------------------------------------------------------------------------


def test_a_halted_account_starts_nothing(rt: Runtime, caller: Caller, take: Take) -> None:
    """No POST can succeed: each would only be refused, and counted."""
    put(rt, caller.service, 2)
    with rt.db.transaction() as tx:
        account.halt(tx, "key_refused", balance=None)
    assert take() == Claim(calm=False)
    with rt.db.transaction() as tx:
        account.resume(tx)
    assert len(take().starts) == 1


def test_a_backoff_is_waited_out_by_one_process(rt: Runtime, caller: Caller, take: Take) -> None:
    """All coming back in the same moment would be the next incident."""
    put(rt, caller.service, 2)
    execute(rt, "UPDATE account SET backoff_until = clock_timestamp() + interval '30 s'")
    first, second = new_id(), new_id()
    waits = take(worker_id=first)
    assert waits.starts == ()
    assert waits.wait_s == pytest.approx(30.0, abs=5.0)
    assert not waits.calm
    assert take(worker_id=second).wait_s is None
    assert take(worker_id=first).wait_s is not None

    execute(rt, "UPDATE account SET backoff_until = clock_timestamp()")
    assert len(take(worker_id=second).starts) == 2


def test_a_full_quota_is_waited_out_by_one_process_until_the_oldest_start_leaves(
    rt: Runtime, caller: Caller, take: Take
) -> None:
    """The next free start is used when it is free, not at the next sweep."""
    put(rt, caller.service, 6)
    first, second = new_id(), new_id()
    limits = Limits(2, 1000)
    assert take(1, limits=limits, worker_id=first).wait_s is None
    age(rt, 41)
    last = take(limits=limits, worker_id=first)
    assert len(last.starts) == 1
    assert last.wait_s == pytest.approx(20.0, abs=5.0)
    assert take(limits=limits, worker_id=second).wait_s is None


def test_the_turn_to_wait_goes_to_another_when_its_holder_dies(rt: Runtime, caller: Caller, take: Take) -> None:
    """A SIGKILL must not leave the account without anyone who comes back."""
    put(rt, caller.service, 6)
    limits = Limits(2, 1000)
    dead, heir = new_id(), new_id()
    assert take(limits=limits, worker_id=dead).wait_s is not None
    assert take(limits=limits, worker_id=heir).wait_s is None
    execute(rt, "UPDATE account SET pacer_until = clock_timestamp() - interval '1 s'")
    assert take(limits=limits, worker_id=heir).wait_s is not None
    assert take(limits=limits, worker_id=dead).wait_s is None


def test_of_many_that_find_the_quota_full_one_waits(rt: Runtime, caller: Caller, take: Take) -> None:
    """One claimer per account."""
    put(rt, caller.service, 6)
    take(limits=Limits(2, 1000))
    execute(rt, "UPDATE account SET pacer = NULL, pacer_until = NULL")
    waits = at_once(lambda _: take(limits=Limits(2, 1000)).wait_s, 8)
    assert len([wait for wait in waits if wait is not None]) == 1


def test_nobody_waits_when_nothing_is_due(rt: Runtime, caller: Caller, take: Take) -> None:
    """An idle account costs nothing."""
    assert take() == Claim()
    (job_id,) = put(rt, caller.service)
    execute(rt, "UPDATE jobs SET due_at = now() + interval '1 h' WHERE id = :id", id=job_id)
    assert take() == Claim()


def test_on_trial_one_post_goes_at_a_time(rt: Runtime, caller: Caller, take: Take) -> None:
    """Money is not sent after money before one POST was seen to work."""
    put(rt, caller.service, 5)
    execute(rt, "UPDATE account SET trial = true")
    trial = take()
    assert len(trial.starts) == 1
    assert not trial.again
    assert not trial.calm
    assert take().starts == ()
    settle(rt)
    weigh(rt, account.Answers("+", accepted_at=trial.starts[0].started_at))
    assert len(take().starts) == 4


def test_on_trial_many_claimers_send_one_post(rt: Runtime, caller: Caller, take: Take) -> None:
    """Together, not each."""
    put(rt, caller.service, 20)
    execute(rt, "UPDATE account SET trial = true")
    assert sum(at_once(lambda _: len(take().starts), 8)) == 1


def test_a_claim_says_whether_the_brakes_are_off(rt: Runtime, caller: Caller, take: Take) -> None:
    """While all is well nobody has to report success."""
    put(rt, caller.service, 3)
    assert take(1).calm
    weigh(rt, account.Answers("-"))
    assert not take(1).calm
    weigh(rt, account.Answers("+" * 20))
    assert take(1).calm


@pytest.mark.parametrize("what", ["polls", "looks", "outputs"])
def test_no_more_is_taken_than_was_asked_for_however_the_database_plans_it(
    rt: Runtime, caller: Caller, what: str
) -> None:
    """By the statistics of an empty table it joins the other way round, and a limit in a subquery was none."""
    table = "jobs"
    if what == "outputs":
        table = "assets"
        execute(rt, "UPDATE account SET archiving = true")
        outputs = [{"url": f"https://cdn.example.com/{number}.png", "nsfw": False} for number in range(20)]
        with rt.db.transaction() as tx:
            assert advance(tx, [Move(processing(rt, caller.service).job_id, State.COMPLETED, outputs=outputs)])
    else:
        for number in range(20):
            {"polls": processing, "looks": unknown}[what](rt, caller.service, f"job {number}")
    execute(rt, f"UPDATE {table} SET due_at = clock_timestamp()")

    with rt.db.transaction() as tx:
        small = "UPDATE pg_class SET reltuples = 1, relpages = pg_relation_size(oid) / 8192"
        tx.exec_driver_sql(f"{small} WHERE oid = 'pipeline.{table}'::regclass")
        takes: dict[str, Callable[[], Sequence[object]]] = {
            "polls": lambda: alarms.claim_questions(tx, at_most=5, lease_s=60.0),
            "looks": lambda: missing.claim_missing(tx, at_most=5, lease_s=60.0),
            "outputs": lambda: assets.claim(tx, worker_id=new_id(), at_most=5, lease_s=60.0),
        }
        assert len(takes[what]()) == 5
        tx.rollback()  # other tests have their own statistics
