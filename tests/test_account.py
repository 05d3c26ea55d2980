"""The account's one row: brakes that tighten once an incident, a halt, leases and secrets, shared by all processes."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import State
from pipeline.lifecycle.account import KeyCheck
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import account, workers
from pipeline.store.account import WINDOW_S, Answers, Effect
from pipeline.store.tables import new_id
from pipeline.threads import Loop
from tests.conftest import Caller
from tests.factories import at_once, claimed, execute, placed, processing, queued, scalar, until


def weigh(rt: Runtime, answers: Answers, max_in_flight: int = 100) -> Effect:
    with rt.db.transaction() as tx:
        return account.weigh(tx, answers, max_in_flight=max_in_flight)


def condition(rt: Runtime) -> account.Condition:
    with rt.db.transaction() as tx:
        return account.condition(tx)


def now(rt: Runtime) -> datetime:
    """A moment by the database's clock: when a POST starts."""
    at: datetime = scalar(rt, "SELECT clock_timestamp()")
    return at


def wait_out(rt: Runtime) -> None:
    """Let the backoff be over."""
    execute(rt, "UPDATE account SET backoff_until = clock_timestamp()")


def throttled(rt: Runtime, **facts: Any) -> Effect:
    """A 429 to a POST that starts now."""
    return weigh(rt, Answers(throttled_at=now(rt), **facts))


def accepted(rt: Runtime, count: int = 1) -> Effect:
    return weigh(rt, Answers("+" * count, accepted_at=now(rt)))


def lost(rt: Runtime, count: int = 1) -> Effect:
    return weigh(rt, Answers("-" * count, lost_at=now(rt)))


# -- 429 --------------------------------------------------------------------------------------------------------------


def test_refusals_double_the_backoff_up_to_the_providers_window(rt: Runtime) -> None:
    """After a whole window the provider counts anew: longer would only be idle."""
    waits = [throttled(rt) for _ in range(9)]
    assert waits == [Effect(wait, "throttled") for wait in (1, 2, 4, 8, 16, 32, WINDOW_S, WINDOW_S, WINDOW_S)]
    assert condition(rt).backoff_s == pytest.approx(WINDOW_S, abs=5.0)


def test_what_the_provider_asks_for_wins(rt: Runtime) -> None:
    """It knows when it will answer again."""
    assert throttled(rt, retry_after_s=17.0) == Effect(17.0, "throttled")
    assert condition(rt).backoff_s == pytest.approx(17.0, abs=5.0)


def test_a_success_resets_the_backoff(rt: Runtime) -> None:
    """The next incident begins with one second again."""
    throttled(rt)
    throttled(rt)
    wait_out(rt)
    assert accepted(rt) == Effect()
    assert not condition(rt).backoff_s
    assert throttled(rt) == Effect(1.0, "throttled")


def test_a_success_beside_a_refusal_resets_nothing(rt: Runtime) -> None:
    """The account is at its limit: some go through, the rest do not."""
    throttled(rt)
    at = now(rt)
    assert weigh(rt, Answers("+", accepted_at=at, throttled_at=at)) == Effect(2.0, "throttled")


def test_one_incident_doubles_once(rt: Runtime) -> None:
    """A hundred POSTs under way that are all refused are one refusal, in however many groups they come back."""
    started = now(rt)
    assert weigh(rt, Answers(throttled_at=started)).backoff_s == 1.0
    for _ in range(5):
        assert weigh(rt, Answers(throttled_at=started)) == Effect()
    assert throttled(rt).backoff_s == 2.0


def test_a_success_from_before_the_refusal_does_not_end_the_backoff(rt: Runtime) -> None:
    """It was under way already: it says nothing of what the provider would answer now."""
    started = now(rt)
    weigh(rt, Answers(throttled_at=started, retry_after_s=30.0))
    weigh(rt, Answers("+", accepted_at=started))
    assert condition(rt).backoff_s == pytest.approx(30.0, abs=5.0)


def test_a_refusal_for_concurrency_lowers_the_cap_to_what_was_running(rt: Runtime, caller: Caller) -> None:
    """That many at a time the provider took, and not one more."""
    for _ in range(4):
        placed(rt, caller.service, State.PROCESSING)
    throttled(rt, concurrency=True)
    assert condition(rt).in_flight_cap == 4
    throttled(rt, concurrency=True)
    assert condition(rt).in_flight_cap == 3


def test_a_refusal_for_concurrency_lowers_a_full_cap_by_one(rt: Runtime, caller: Caller) -> None:
    """More may be running than we were promised."""
    for _ in range(6):
        placed(rt, caller.service, State.UNKNOWN)
    weigh(rt, Answers(throttled_at=now(rt), concurrency=True), max_in_flight=3)
    assert condition(rt).in_flight_cap == 2


def test_posts_that_began_before_the_refused_one_were_taken(rt: Runtime, caller: Caller) -> None:
    """Their answers are on the way: to count only the answered ones would halve the cap at every refusal."""
    for _ in range(4):
        placed(rt, caller.service, State.PROCESSING)
    for number in range(5):
        queued(rt, caller.service, f"a lighthouse {number}")
    *_, refused = sorted(start.started_at for start in claimed(rt, 5))
    weigh(rt, Answers(throttled_at=refused, concurrency=True))
    assert condition(rt).in_flight_cap == 8


def test_a_learnt_cap_falls_by_one_for_one_refusal(rt: Runtime, caller: Caller) -> None:
    """The others under way were within the cap: the next ones to be answered may be those that began later."""
    throttled(rt, concurrency=True)
    execute(rt, "UPDATE account SET in_flight_cap = 5, backoff_until = NULL")
    for number in range(5):
        queued(rt, caller.service, f"a lighthouse {number}")
    refused, *_ = sorted(start.started_at for start in claimed(rt, 5))
    weigh(rt, Answers(throttled_at=refused, concurrency=True))
    assert condition(rt).in_flight_cap == 4


def test_others_refused_beside_it_were_not_taken(rt: Runtime, caller: Caller) -> None:
    """Of a batch that is refused as a whole nothing runs."""
    for number in range(5):
        queued(rt, caller.service, f"a lighthouse {number}")
    *_, last = sorted(start.started_at for start in claimed(rt, 5))
    weigh(rt, Answers(throttled_at=last, throttled=4, concurrency=True))
    assert condition(rt).in_flight_cap == 1


def test_a_refusal_now_and_then_does_not_keep_the_cap_down(rt: Runtime, caller: Caller) -> None:
    """One in fifty POSTs refused, and the cap would end at one: raising it may not wait for a time without any."""
    for _ in range(100):
        placed(rt, caller.service, State.PROCESSING)
    throttled(rt, concurrency=True)
    execute(rt, "UPDATE account SET cap_changed_at = clock_timestamp() - interval '11 seconds'")
    throttled(rt, concurrency=True)
    assert condition(rt).in_flight_cap == 98
    execute(rt, "UPDATE account SET backoff_until = NULL")
    queued(rt, caller.service)
    claimed(rt)
    assert condition(rt).in_flight_cap == 122


def test_the_cap_never_falls_below_one(rt: Runtime) -> None:
    """At nothing at a time there would never be a success to raise it again."""
    for _ in range(3):
        throttled(rt, concurrency=True)
    assert condition(rt).in_flight_cap == 1


def test_a_refusal_for_the_rate_leaves_the_cap_alone(rt: Runtime) -> None:
    """Two limits, two brakes."""
    throttled(rt)
    assert condition(rt).in_flight_cap is None


# -- the breaker ------------------------------------------------------------------------------------------------------


def test_five_lost_in_a_row_stop_the_account_and_put_it_on_trial(rt: Runtime) -> None:
    """Each lost POST may have cost money: five are enough to stop and look."""
    for _ in range(4):
        assert lost(rt) == Effect()
    assert lost(rt) == Effect(1.0, "failing")
    assert condition(rt).trial
    assert condition(rt).backoff_s == pytest.approx(1.0, abs=1.0)


def test_a_success_between_breaks_the_row(rt: Runtime) -> None:
    """Four and four are not five in a row."""
    lost(rt, 4)
    accepted(rt)
    assert lost(rt, 4) == Effect()
    assert not condition(rt).trial


def test_more_than_half_of_the_last_twenty_stop_it_too(rt: Runtime) -> None:
    """A provider that loses every other answer never loses five in a row."""
    effects = [weigh(rt, Answers("--+" if half else "-+", lost_at=now(rt))) for half in [False] * 8 + [True] * 2]
    assert [effect.reason for effect in effects[:-1]] == [None] * 9
    assert effects[-1].reason == "failing"


def test_half_of_the_last_twenty_do_not(rt: Runtime) -> None:
    """Shaky, but most of the money arrives."""
    assert weigh(rt, Answers("-+" * 10, lost_at=now(rt))) == Effect()


def test_a_trial_ends_with_a_success(rt: Runtime) -> None:
    """One POST was seen to work: back to full speed, and the past forgotten."""
    lost(rt, 5)
    wait_out(rt)
    accepted(rt)
    assert not condition(rt).trial
    assert not condition(rt).backoff_s
    assert lost(rt, 4) == Effect()


def test_each_lost_trial_doubles_the_backoff(rt: Runtime) -> None:
    """One POST at a time, not five more in a row: each may have been paid for."""
    lost(rt, 5)
    for wait in (2.0, 4.0, 8.0):
        wait_out(rt)
        assert lost(rt) == Effect(wait, "failing")
        assert condition(rt).trial


def test_a_throttled_trial_goes_on(rt: Runtime) -> None:
    """A refusal is no proof that POSTs work."""
    lost(rt, 5)
    wait_out(rt)
    assert throttled(rt).reason == "throttled"
    assert condition(rt).trial


def test_what_was_under_way_when_the_account_stopped_is_the_same_incident(rt: Runtime) -> None:
    """A hundred POSTs that time out together stop the account once; a success among them does not start it."""
    started = now(rt)
    assert weigh(rt, Answers("-" * 5, lost_at=started)).reason == "failing"
    for _ in range(4):
        assert weigh(rt, Answers("-" * 5, lost_at=started)) == Effect()
    assert weigh(rt, Answers("+", accepted_at=started)) == Effect()
    assert condition(rt).trial


# -- halt, probe, resume ----------------------------------------------------------------------------------------------


def halt(rt: Runtime, probe_s: float = 60.0) -> bool:
    with rt.db.transaction() as tx:
        return account.halt(tx, "insufficient_credits", balance=1.5, probe_s=probe_s)


def claim_probe(rt: Runtime) -> account.Halt | None:
    with rt.db.transaction() as tx:
        return account.claim_probe(tx, probe_s=60.0)


def test_of_many_that_find_the_account_blocked_one_halts_it(rt: Runtime) -> None:
    """The operator is told once."""
    assert sorted(at_once(lambda _: halt(rt), 8)) == [False] * 7 + [True]
    assert condition(rt).halted_reason == "insufficient_credits"


def test_a_halt_is_probed_once_a_minute_by_one_process(rt: Runtime) -> None:
    """While halted, this is all the provider hears of us."""
    assert claim_probe(rt) is None
    halt(rt)
    assert at_once(lambda _: claim_probe(rt), 8) == [None] * 8
    for _ in range(3):
        execute(rt, "UPDATE account SET probe_at = probe_at - interval '60 s'")
        probes = [probe for probe in at_once(lambda _: claim_probe(rt), 8) if probe]
        assert [(probe.reason, probe.balance) for probe in probes] == [("insufficient_credits", 1.5)]


def test_the_account_resumes_once_and_on_trial(rt: Runtime) -> None:
    """One POST goes first: the balance said it may work, not that it does."""
    halt(rt)
    throttled(rt)

    def resume(_: int) -> bool:
        with rt.db.transaction() as tx:
            return account.resume(tx)

    assert sorted(at_once(resume, 6)) == [False] * 5 + [True]
    after = condition(rt)
    assert (after.halted_reason, after.backoff_s or None, after.trial) == (None, None, True)
    assert claim_probe(rt) is None


def test_an_answer_from_before_the_halt_does_not_end_the_trial_after_it(rt: Runtime) -> None:
    """It was accepted with the credit that then ran out."""
    started = now(rt)
    halt(rt)
    with rt.db.transaction() as tx:
        account.resume(tx)
    weigh(rt, Answers("+", accepted_at=started))
    assert condition(rt).trial
    accepted(rt)
    assert not condition(rt).trial


# -- webhook secrets --------------------------------------------------------------------------------------------------


def secrets(rt: Runtime) -> list[str]:
    with rt.db.transaction() as tx:
        return account.secrets(tx)


def keep(rt: Runtime, secret: str) -> bool:
    with rt.db.transaction() as tx:
        return account.keep_secret(tx, secret)


def pass_time(rt: Runtime, seconds: float) -> None:
    """Let every secret have been retired longer ago."""
    execute(
        rt,
        """
        UPDATE account SET webhook_secrets = (
            SELECT jsonb_agg(s || CASE WHEN s ->> 'retired_at' IS NULL THEN '{}' ELSE
                jsonb_build_object('retired_at', (s ->> 'retired_at')::float8 - :s) END ORDER BY n)
            FROM jsonb_array_elements(webhook_secrets) WITH ORDINALITY e(s, n))
        """,
        s=seconds,
    )


def test_before_the_first_secret_there_is_none(rt: Runtime) -> None:
    """Then no callback can be judged."""
    assert secrets(rt) == []


def test_the_same_secret_again_is_no_news(rt: Runtime) -> None:
    """It is fetched every hour."""
    assert keep(rt, "one")
    assert not keep(rt, "one")
    assert secrets(rt) == ["one"]


def test_after_a_rotation_the_former_secret_is_believed_for_ten_minutes(rt: Runtime) -> None:
    """Callbacks signed with it are still on their way."""
    keep(rt, "one")
    keep(rt, "two")
    assert secrets(rt) == ["two", "one"]
    pass_time(rt, 595)
    assert secrets(rt) == ["two", "one"]
    pass_time(rt, 10)
    assert secrets(rt) == ["two"]


def test_fetching_again_does_not_prolong_a_former_secret(rt: Runtime) -> None:
    """A leaked secret that was rotated away must end."""
    keep(rt, "one")
    keep(rt, "two")
    pass_time(rt, 595)
    keep(rt, "two")
    keep(rt, "three")
    pass_time(rt, 10)
    assert secrets(rt) == ["three", "two"]


def test_a_secret_that_comes_back_is_the_present_one(rt: Runtime) -> None:
    """A rotation taken back."""
    keep(rt, "one")
    keep(rt, "two")
    assert keep(rt, "one")
    assert secrets(rt) == ["one", "two"]
    pass_time(rt, 605)
    assert secrets(rt) == ["one"]


def fetch(rt: Runtime) -> bool:
    with rt.db.transaction() as tx:
        return account.claim_secret_fetch(tx, every_s=60.0)


def test_the_secret_is_fetched_once_a_minute_by_one_process(rt: Runtime) -> None:
    """Forged signatures must not make us ask the provider for each."""
    assert sum(at_once(lambda _: fetch(rt), 8)) == 1
    assert sum(at_once(lambda _: fetch(rt), 8)) == 0
    execute(rt, "UPDATE account SET secrets_fetched_at = secrets_fetched_at - interval '60 s'")
    assert sum(at_once(lambda _: fetch(rt), 8)) == 1


def test_a_fetch_that_failed_is_repeated_soon(rt: Runtime) -> None:
    """Without a secret every callback is refused."""
    assert fetch(rt)
    with rt.db.transaction() as tx:
        account.forget_secret_fetch(tx, again_s=5.0, every_s=60.0)
    assert not fetch(rt)
    execute(rt, "UPDATE account SET secrets_fetched_at = secrets_fetched_at - interval '5 s'")
    assert fetch(rt)


# -- the list's lease -------------------------------------------------------------------------------------------------


@pytest.fixture
def readers(rt: Runtime) -> list[UUID]:
    """Give workers that were heard just now."""
    ids = [new_id() for _ in range(8)]
    with rt.db.transaction() as tx:
        for worker_id in ids:
            workers.beat(tx, worker_id)
    return ids


def lease(rt: Runtime, worker_id: UUID, dead_after_s: float = 3600.0) -> bool:
    with rt.db.transaction() as tx:
        return account.lease_list(tx, worker_id, lease_s=60.0, dead_after_s=dead_after_s)


def test_one_process_reads_the_list_until_it_gives_the_lease_back(rt: Runtime, readers: list[UUID]) -> None:
    """Two readers could adopt one task for two jobs."""
    won = at_once(lambda number: lease(rt, readers[number]), 8)
    assert sum(won) == 1
    holder, other = readers[won.index(True)], readers[won.index(False)]
    assert lease(rt, holder)
    assert not lease(rt, other)
    with rt.db.transaction() as tx:
        account.end_lease(tx, other)  # not the other's to give
    assert not lease(rt, other)
    with rt.db.transaction() as tx:
        account.end_lease(tx, holder)
    assert lease(rt, other)


@pytest.mark.parametrize(
    "death",
    [
        "UPDATE account SET reconciler_until = clock_timestamp() - interval '1 s'",
        "DELETE FROM workers WHERE id = (SELECT reconciler FROM account)",
    ],
    ids=["its lease is over", "it left"],
)
def test_a_dead_readers_lease_passes_on(rt: Runtime, readers: list[UUID], death: str) -> None:
    """What was lost must be looked for, whoever died looking."""
    assert lease(rt, readers[0])
    assert not lease(rt, readers[1])
    execute(rt, death)
    assert lease(rt, readers[1])


def test_a_reader_that_is_not_heard_any_more_holds_nothing(rt: Runtime, readers: list[UUID]) -> None:
    """Before its lease is over: half a minute is what a lost POST may wait after a SIGKILL."""
    assert lease(rt, readers[0])
    execute(rt, "UPDATE workers SET beat_at = now() - interval '1 day' WHERE id = :id", id=readers[0])
    # The server has run for some seconds only, and nobody is dead for longer than that: so the limit is shorter.
    age_s = scalar(rt, "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8")
    assert not lease(rt, readers[1], dead_after_s=2 * age_s + 60)
    assert lease(rt, readers[1], dead_after_s=age_s / 2)


def test_while_halted_nobody_reads_the_list(rt: Runtime, readers: list[UUID]) -> None:
    """Every read would be refused."""
    halt(rt)
    assert not lease(rt, readers[0])


# -- the poll budget --------------------------------------------------------------------------------------------------


def due_polls(rt: Runtime, caller: Caller, count: int) -> None:
    for _ in range(count):
        placed(rt, caller.service, State.PROCESSING)
    execute(rt, "UPDATE jobs SET due_at = now()")


def grant(rt: Runtime, at_most: int = 50, per_minute: int = 60) -> int:
    with rt.db.transaction() as tx:
        return account.grant_polls(tx, at_most, per_minute=per_minute)


def test_no_more_is_granted_than_is_due_or_asked_for(rt: Runtime, caller: Caller) -> None:
    """The budget is for questions that are asked."""
    assert grant(rt) == 0
    assert scalar(rt, "SELECT polls_paid_until FROM account") is None
    due_polls(rt, caller, 3)
    assert grant(rt, 2) == 2
    assert grant(rt) == 3


def test_a_job_that_is_not_due_costs_nothing(rt: Runtime, caller: Caller) -> None:
    """Healthy webhooks leave the budget untouched."""
    processing(rt, caller.service)
    assert grant(rt) == 0


def test_the_budget_runs_ten_seconds_ahead_at_most(rt: Runtime, caller: Caller) -> None:
    """At six a minute: one now, one on credit; the rest when their time has come."""
    due_polls(rt, caller, 9)
    assert grant(rt, per_minute=6) == 2
    assert grant(rt, per_minute=6) == 0
    execute(rt, "UPDATE account SET polls_paid_until = polls_paid_until - interval '20 s'")
    assert grant(rt, per_minute=6) == 2


def test_many_pollers_together_spend_one_budget(rt: Runtime, caller: Caller) -> None:
    """Every poll granted moves the one clock on: none is granted twice."""
    due_polls(rt, caller, 60)
    before = now(rt)
    granted = sum(at_once(lambda _: sum(grant(rt, 3, per_minute=120) for _ in range(12)), 8))
    paid_until, after = scalar(rt, "SELECT polls_paid_until FROM account"), now(rt)
    assert granted * timedelta(seconds=0.5) <= paid_until - before
    assert paid_until <= after + timedelta(seconds=10.5)
    assert granted >= 20


def test_a_halted_account_asks_nothing(rt: Runtime, caller: Caller) -> None:
    """Every GET would be refused."""
    due_polls(rt, caller, 3)
    halt(rt)
    assert grant(rt) == 0


# -- The key ----------------------------------------------------------------------------------------------------------


def test_a_key_revoked_while_it_is_checked_is_found_revoked(rt: Runtime, sandbox: Sandbox) -> None:
    """What was on its way before the refusal says nothing of it, and the job would fail for the account's fault."""
    sandbox.faults(latency_s=0.5)
    loop, provider = Loop(), rt.provider()
    check = KeyCheck(provider)
    try:
        first = loop.spawn(check.works())
        until(lambda: sandbox.arrivals()["calls"].get("balance") == 1)
        sandbox.faults(revoked=True)
        refused = [loop.spawn(check.works()) for _ in range(50)]
        assert first.result(10.0)
        assert not any(one.result(10.0) for one in refused)
        assert sandbox.arrivals()["calls"]["balance"] + sandbox.arrivals()["refused"].get("balance", 0) <= 3
    finally:
        loop.run(provider.close())
        loop.stop()
