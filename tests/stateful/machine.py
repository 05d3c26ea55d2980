"""
The machine: everything that may happen to jobs, in any order, done by the product's own functions.

Its draws never depend on what the database answers: they are places in lists, taken round and round, so that
an example means the same when it is run again. What really happened is the provider's to know; the rules only
produce what a provider, a network, a platform and people can really do.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.errors import BadSignature, InvalidInput, MalformedRequest, NotAllowedNow
from pipeline.jobs import FINAL, State
from pipeline.lifecycle import decide
from pipeline.lifecycle.accept import JobRequest, accept, check
from pipeline.lifecycle.account import Prober
from pipeline.lifecycle.hear import hear
from pipeline.lifecycle.reconcile import Reconciler
from pipeline.models import UNREAD
from pipeline.runtime import Runtime
from pipeline.store import workers
from pipeline.store.moves import Move, advance
from pipeline.store.services import Service
from pipeline.store.tables import Verdict, new_id
from pipeline.sweep import sweep
from tests.conftest import WEBHOOK_SECRET
from tests.factories import MODEL, encoded, execute, scalar, signed
from tests.stateful import invariants, truth
from tests.stateful.provider import Gate, Post, Provider, Task, accepted
from tests.stateful.workers import Fleet, Polls, Submits
from tests.wire import http

T = TypeVar("T")

MOST_JOBS = 4
MOST_TASKS = 12
PROMPTS = ("a lighthouse", "a harbour")  # few, so that some jobs are equal

nth = st.integers(0, 11)

REFUSALS = {
    "invalid": http(400, {"code": 400, "message": "invalid prompt"}),
    "throttled": http(429, {"code": 429, "message": "too many requests"}),
    "no credit": http(400, {"code": 400, "message": "insufficient credits"}),
    "key refused": http(401, {"code": 401, "message": "unauthorized"}),
    "forbidden": http(403, {"code": 403, "message": "forbidden"}),
}
"""Answers that mean: no task was made."""

UNCLEAR = {
    "cut": None,
    "gateway": http(504, b"<h1>Gateway Time-out</h1>"),
    "error": http(500, {"code": 500, "message": "internal"}),
    "redirect": http(307, b"", Location="/elsewhere"),
    "no id": http(200, {"code": 200, "data": {}}),
}
"""Answers that say nothing of whether a task was made."""

fates = st.sampled_from([*["task"] * 5, "finished task", *["nothing"] * 3, "not sent", *REFUSALS])
answers = st.sampled_from(["true", "true", "true", *UNCLEAR])
polled = st.sampled_from(["truth", "truth", "truth", "running", "busy", "missing"])
ODD = ["contradictory", "stale", "nobody's", "replayed", "unreadable", "forged"]
OPPOSITE = {"completed": "failed", "failed": "completed"}
prompts = st.sampled_from(PROMPTS)
lags = st.sampled_from([0.0, 0.0, 0.0, 60.0, 5000.0])  # longer than the patience of those who look: 20 s
seldom = st.sampled_from([False, False, False, True])


@dataclass(frozen=True)
class Equipment:
    """What outlives an example: a database, processes, and a provider."""

    rt: Runtime
    service: Service
    provider: Provider
    fleet: Fleet
    threads: ThreadPoolExecutor


def pick(things: Sequence[T], place: int) -> T | None:
    """The thing at that place, counted round and round; None of nothing."""
    return things[place % len(things)] if things else None


def expect(promise: str, breaches: object) -> None:
    """Fail with what breaks a promise, if anything does."""
    assert not breaches, f"{promise}: {breaches}"


class Lifecycle(RuleBasedStateMachine):
    """Jobs, processes that work on them, and a provider that may do anything a provider can."""

    def __init__(self, equipment: Equipment) -> None:
        super().__init__()
        self.rt = equipment.rt
        self.service = equipment.service
        self.provider = equipment.provider
        self.fleet = equipment.fleet
        self.threads = equipment.threads
        self.jobs: list[UUID] = []
        self.keyed: list[tuple[str, JobRequest, UUID]] = []
        self.posting: dict[Submits, tuple[Post, bytes | None]] = {}
        self.frozen: list[Submits] = []
        self.asking: dict[Polls, Gate] = {}
        self.searching: list[tuple[Future[float | None], Gate, int]] = []
        self.deliveries = 0
        self.final: dict[UUID, Any] = {}
        self.ledger = truth.Ledger()
        self.provider.forget()
        truth.empty(self.rt, self.service.id)
        for process in self.fleet.submits:
            process.revive()

    @initialize(exclusive=st.booleans(), list_shows_input=st.booleans(), list_lag_s=lags)
    def begin(self, exclusive: bool, list_shows_input: bool, list_lag_s: float) -> None:
        """Choose how the account is: these decide what the list can prove."""
        self.exclusive = exclusive
        self.rt = Runtime(self.rt.settings.model_copy(update={"account_exclusive": exclusive}), self.rt.db)
        self.provider.list_shows_input = list_shows_input
        self.provider.list_lag_s = list_lag_s
        self.ledger.false_proofs = truth.MOST_FALSE_PROOFS if list_lag_s else 0

    # Callers

    @rule(prompt=prompts, deadline_s=st.sampled_from([60, 3600]), keyed=st.booleans())
    def a_job_is_accepted(self, prompt: str, deadline_s: int, keyed: bool) -> None:
        """Or, when there are enough, an earlier one is sent in again, or cancelled."""
        if len(self.jobs) < MOST_JOBS:
            key = f"order-{len(self.jobs)}" if keyed else None
            job = check({"input": {"prompt": prompt}, "deadline_s": deadline_s}, default_model=MODEL, catalogue=UNREAD)
            job_id, made = accept(self.rt, self.service, job, key=key)
            assert made
            self.jobs.append(job_id)
            if key:
                self.keyed.append((key, job, job_id))
        elif not keyed:  # which only what is queued allows
            with self.rt.db.transaction() as tx:
                advance(tx, [Move(self.jobs[deadline_s % MOST_JOBS], State.CANCELLED)])
        elif self.keyed:
            key, job, job_id = self.keyed[-1]
            assert accept(self.rt, self.service, job, key=key) == (job_id, False)

    # Submits

    def _claim(self, process: Submits) -> None:
        """Have a process look for one job; bring one in if there was none."""
        self._put_in_order()
        for _ in range(2):
            truth.allow_one_start(self.rt)
            process.beat()
            process.look()
            if process.under_way() or len(self.jobs) >= MOST_JOBS:
                return
            self.a_job_is_accepted(PROMPTS[0], 3600, keyed=False)

    def _free(self, place: int) -> Submits | None:
        return pick([one for one in self.fleet.submits if one not in self.posting and one not in self.frozen], place)

    @rule(place=nth, fate=fates)
    def a_job_is_posted(self, place: int, fate: str) -> None:
        """Until its answer comes, the POST is under way; whether there is a task is true from now on."""
        if fate == "not sent":
            self._claim(self.fleet.cut_off)
            self.fleet.cut_off.settled()
        elif process := self._free(place):
            self._claim(process)
            for start in process.under_way():
                post = self.provider.arrival(start.token, gone=lambda: not process.under_way())
                if post is None:
                    continue  # this machine was so slow that the POST was given back
                self.ledger.posted(self.rt, self.provider, start.job_id, start.token)
                self.posting[process] = post, self._fulfilled(post, fate)

    @rule(place=nth, fate=fates, how=answers)
    def a_job_is_posted_and_answered(self, place: int, fate: str, how: str) -> None:
        """What mostly happens, in one step."""
        before = set(self.posting)
        self.a_job_is_posted(place, fate)
        for process in set(self.posting) - before:
            self._answer(process, how)

    def _fulfilled(self, post: Post, fate: str) -> bytes | None:
        """What the provider does with a POST, and its true answer."""
        self.provider.key_works = fate != "key refused"
        if fate in REFUSALS:
            return REFUSALS[fate]
        if fate == "nothing":
            return None
        task = self.provider.make(post.model, post.input, post.token)
        task.status = "completed" if fate == "finished task" else "processing"
        return accepted(task)

    @rule(place=nth, how=answers)
    def a_post_is_answered(self, place: int, how: str) -> None:
        """With the truth, or with nothing that tells; perhaps long after anybody waited for it."""
        if not self.posting:
            self.a_job_is_posted(place, "task")
        if process := pick(list(self.posting), place):
            self._answer(process, how)

    @rule(place=nth, how=answers, decision=st.sampled_from(["resubmit", "none"]))
    def a_post_is_answered_when_its_process_was_taken_for_dead(self, place: int, how: str, decision: str) -> None:
        """It was only slow. Meanwhile a person may have given its job back to the queue, and others went on."""
        if not self.posting:
            self.a_job_is_posted(place, "task")
        if process := pick(list(self.posting), place):
            self.somebody_sweeps(95, place)
            if decision == "resubmit":
                self.a_person_decides(place, place, decision)
            self.a_job_is_posted(place, "task")
            self._answer(process, how)

    def _answer(self, process: Submits, how: str) -> None:
        post, true_answer = self.posting.pop(process)
        post.answer = true_answer if how == "true" else UNCLEAR[how]
        post.answered.set()
        process.settled()
        process.revive()
        outcome = scalar(self.rt, "SELECT outcome FROM attempts WHERE token = :token", token=post.token)
        assert outcome is not None, "an answer was not written down"

    @rule(place=nth, signal=st.sampled_from(["stop", "freeze", "waits", "waits not"]))
    def a_process_is_signalled(self, place: int, signal: str) -> None:
        """
        SIGTERM while a POST is under way, whose answer may still come in the last moment; or SIGSTOP between the
        intent and the money, and SIGTERM when it goes on: its time to wait for answers may be over by then.
        """
        if signal == "stop" and (process := pick(list(self.posting), place)):
            process.stop(0.0)
        elif signal != "stop" and self.frozen:
            self._thaw(self.frozen[0], waits=signal != "waits not")
        elif signal == "freeze" and (process := self._free(place)):
            process.loop.freeze()
            self._claim(process)
            self.frozen.append(process)

    def _thaw(self, process: Submits, *, waits: bool) -> None:
        self.frozen.remove(process)
        if waits:
            stopped = self.threads.submit(process.stop, 20.0)
            process.begins_no_more()
            process.loop.thaw()
            stopped.result()
        else:
            process.stop(0.0)
            process.loop.thaw()
        process.settled()
        process.revive()

    # The provider

    @rule(place=nth, status=st.sampled_from(["completed", "completed", "failed"]), by_others=seldom, prompt=prompts)
    def a_task_ends(self, place: int, status: str, by_others: bool, prompt: str) -> None:
        """One of ours; or somebody else makes one, from the same few prompts."""
        running = [task for task in self.provider.tasks if task.status == "processing"]
        if by_others and not self.exclusive and len(self.provider.tasks) < MOST_TASKS:
            self.provider.make(MODEL, {"prompt": prompt})
        elif task := pick(running, place):
            task.status = status

    def _put_in_order(self) -> None:
        """A person repairs the account, whatever halted it."""
        self.provider.key_works = True
        execute(self.rt, "UPDATE account SET probe_at = clock_timestamp(), halted_balance = 0")
        Prober(self.rt, self.fleet.loop, self.fleet.prober).look()

    # Callbacks

    def _ours(self, place: int) -> Task:
        """A task that a POST of ours made; makes one if there is none."""
        if not self.provider.of_ours():
            self.a_job_is_posted(place, "task")
        return pick(self.provider.of_ours(), place) or Task("0" * 32, "nobody's", MODEL, {}, datetime.now(UTC))

    def _called_back(self, token: str, body: bytes, at: int | None = None) -> str:
        before = self.deliveries
        self.deliveries += 1
        return hear(self.rt, token, signed(WEBHOOK_SECRET, body, at=at, webhook_id=f"evt_{before}"), body).verdict

    @rule(place=nth, ends=st.sampled_from([None, "completed", "failed"]))
    def a_callback_comes(self, place: int, ends: str | None) -> None:
        """Early, late, again: what it says is true."""
        task = self._ours(place)
        if ends and task.status == "processing":
            task.status = ends
        verdict = self._called_back(task.token or "", encoded(task.shown()))
        if task.status == "completed" and verdict not in {Verdict.SUSPICIOUS, Verdict.ORPHAN}:
            of_its_job = "SELECT state FROM jobs j JOIN attempts a ON a.job_id = j.id WHERE a.token = :token"
            assert scalar(self.rt, of_its_job, token=task.token) in FINAL, "a verdict was not taken"

    @rule(place=nth, other=nth, odd=st.sampled_from(ODD))
    def a_callback_is_not_to_be_believed(self, place: int, other: int, odd: str) -> None:
        """The URL is not signed: a body may come to another job, and is not believed where either side is known."""
        task = self._ours(place)
        token, body = task.token or "", encoded(task.shown())
        elsewhere = pick(list(self.provider.posts), other) or ""
        if odd == "contradictory" and task.status != "processing":
            self._called_back(token, encoded(task.shown(status=OPPOSITE[task.status])))
        elif odd == "stale":
            assert self._called_back(token, body, int(time.time()) - 1000) in {Verdict.STALE, Verdict.ORPHAN}
        elif odd == "nobody's":
            assert self._called_back("nobody's", body) == Verdict.ORPHAN
        elif odd == "replayed" and truth.is_known_to_be_elsewhere(self.rt, task.id, elsewhere):
            assert self._called_back(elsewhere, body) == Verdict.SUSPICIOUS
        elif odd == "unreadable":
            with pytest.raises(MalformedRequest):
                self._called_back(token, b"{")
        elif odd == "forged":
            with pytest.raises(BadSignature):
                hear(self.rt, token, signed("whsec_theirs", body), body)

    # Time, and who looks after what it brings

    def _pass(self, by_s: int) -> None:
        truth.age(self.rt, by_s)
        self.provider.age(by_s)

    @rule(after_s=st.sampled_from([0, 16, 95, 95, 4000]), alive=nth)
    def somebody_sweeps(self, after_s: int, alive: int) -> None:
        """Then one process has just shown that it lives; the others perhaps a while ago."""
        self._pass(after_s)
        self.fleet.submits[alive % len(self.fleet.submits)].beat()
        sweep(self.rt, lambda *names: None)

    @rule(place=nth, after_s=st.sampled_from([0, 31, 125, 4000]), how=polled, at_once=st.booleans())
    def somebody_asks_for_results(self, place: int, after_s: int, how: str, at_once: bool) -> None:
        self._pass(after_s)
        if process := pick([one for one in self.fleet.polls if one not in self.asking], place):
            self.asking[process] = self.provider.gate(process.name)
            process.look()
            if at_once:
                self._results(process, how)

    def _results(self, process: Polls, how: str) -> None:
        gate = self.asking.pop(process)
        gate.how = how
        gate.opened.set()
        process.settled()

    @rule(pauses_s=st.sampled_from([(3,), (25,), (25, 5), (3, 25, 5), (700, 5)]), busy=seldom, held=st.booleans())
    def somebody_looks_for_what_was_lost(self, pauses_s: Sequence[int], busy: bool, held: bool) -> None:
        """Once or more; the last time perhaps only up to the moment when the provider has read its list."""
        for number, pause_s in enumerate(pauses_s, start=1):
            self._pass(pause_s)
            self._look(busy=busy, at_once=not held or number < len(pauses_s))

    def _look(self, *, busy: bool, at_once: bool) -> None:
        if len(self.searching) < 2:
            worker_id = new_id()
            with self.rt.db.transaction() as tx:
                workers.beat(tx, worker_id)
            number = 0 if not self.searching or self.searching[0][2] == 1 else 1
            gate = self.provider.gate(f"search-{number}")
            reconciler = Reconciler(self.rt, worker_id, self.fleet.loop, self.fleet.searchers[number])
            search = self.threads.submit(reconciler.look)
            while not gate.arrived.wait(0.001) and not search.done():
                pass
            self.searching.append((search, gate, number))
            if search.done() or at_once:
                self._found(-1, busy=busy)

    @rule(place=nth, how=polled)
    def what_was_asked_for_comes(self, place: int, how: str) -> None:
        """The list, or results: as true as they were when they were asked for."""
        if self.searching:
            self._found(place % len(self.searching), busy=how == "busy")
        elif process := pick(list(self.asking), place):
            self._results(process, how)

    def _found(self, place: int, *, busy: bool) -> None:
        search, gate, _ = self.searching.pop(place)
        gate.how = "busy" if busy else "truth"
        gate.opened.set()
        search.result()

    # People

    @rule(place=nth, which=nth, decision=st.sampled_from(["resubmit", "resubmit", "give up", "adopt"]))
    def a_person_decides(self, place: int, which: int, decision: str) -> None:
        """People know what they asked for: they adopt only what was made from the same prompt."""
        job_id = pick(truth.unknown(self.rt, self.jobs) or self.jobs, place)
        if job_id is None:
            return
        with suppress(NotAllowedNow, InvalidInput):
            if decision == "resubmit":
                decide.resubmit(self.rt, job_id)
                self.ledger.forgive(job_id)
            elif decision == "give up":
                decide.give_up(self.rt, job_id)
            elif task := pick(truth.equal_tasks(self.rt, self.provider, job_id), which):
                decide.adopt(self.rt, job_id, task.id)

    # What must be true at any moment

    @invariant()
    def every_promise_is_kept(self) -> None:
        """Those of `invariants`, read off the rows; and those that only who knows what really happened can check."""
        with self.rt.db.transaction() as tx:
            expect("of the rows", invariants.broken(tx))
            final = truth.finals(tx)
            expect("final is final", [job_id for job_id, was in self.final.items() if final.get(job_id) != was])
            self.final = final
            expect("outputs of a job's own request", truth.strangers_outputs(tx, self.provider))
            expect("one accepted attempt, unless a person asked", self.ledger.too_often_accepted(tx))
            expect("every authentic callback is kept once", truth.callbacks(tx) - self.deliveries)
        expect("no second POST while the first may have a task", self.ledger.paid_twice)

    # The end

    def teardown(self) -> None:
        """Let go of whatever is held."""
        for process in list(self.posting):
            self._answer(process, "true")
        for process in list(self.frozen):
            self._thaw(process, waits=True)
        for asker in list(self.asking):
            self._results(asker, "truth")
        while self.searching:
            self._found(0, busy=False)
