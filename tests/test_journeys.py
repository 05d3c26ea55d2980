"""
The product as its users start it: `pipeline dev` with real web, worker and beat processes, and what may befall them.

Each journey has a stack of its own, and ends with the provider's ledger: one charge for each job.
"""

import contextlib
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from pipeline.embedded import stack
from pipeline.embedded.stack import RunningStack
from pipeline.sandbox import Sandbox
from tests.factories import until
from tests.http import get, post


class Journey:
    """A running stack, and its provider."""

    def __init__(self, running: RunningStack) -> None:
        self.stack = running
        self.provider = Sandbox(running.sandbox_url or "")
        self.ids: list[str] = []

    def enqueue(self, count: int, prompt: str = "a lighthouse") -> list[str]:
        """Hand in *count* jobs over HTTP."""

        def one(number: int) -> str:
            body = {"input": {"prompt": f"{prompt} {number}"}}
            answer = post(f"{self.stack.url}/v1/jobs", body, key=self.stack.api_key)
            assert answer.status == 201, answer.body
            return str(answer.json["id"])

        with ThreadPoolExecutor(8) as threads:
            ids = list(threads.map(one, range(count)))
        self.ids += ids
        return ids

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as its caller sees it."""
        found: dict[str, Any] = get(f"{self.stack.url}/v1/jobs/{job_id}", key=self.stack.api_key).json
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs of this journey."""
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(self.job, self.ids))

    def states(self) -> Counter[str]:
        """How many jobs are in which state."""
        return Counter(job["state"] for job in self.jobs())

    def all_complete(self, timeout_s: float = 120.0) -> None:
        """Wait until every job is completed, and check that each was paid for once."""
        waiting = list(self.ids)

        def done() -> bool:
            while waiting and self.job(waiting[-1])["state"] == "completed":  # one by one: completed is final
                waiting.pop()
            return not waiting

        until(done, timeout_s)
        charges = Counter(charge["prompt"] for charge in self.provider.ledger())
        assert len(charges) == len(self.ids)
        assert set(charges.values()) == {1}


@contextlib.contextmanager
def journey(faults: Mapping[str, object] | None = None, **options: Any) -> Iterator[Journey]:
    """Run a stack with *faults* at its provider."""
    with stack.running(**options) as running:
        it = Journey(running)
        it.provider.faults(**(faults or {}))
        yield it


@pytest.mark.slow  # every day one sweep alone does the work in test_worker, and doors accept in test_nudges
def test_with_the_broker_gone_jobs_are_accepted_and_a_sweep_alone_finishes_them() -> None:
    """Postgres holds all truth: neither Celery nor a broker is needed to keep a promise."""
    with journey(without=("worker", "beat")) as it:
        it.stack.stop("valkey")
        it.enqueue(20)
        assert it.states() == {"queued": 20}
        sweep = subprocess.Popen(["/bin/sh", "-c", f". {it.stack.data}/env; exec pipeline sweep --loop"])
        try:
            it.all_complete()
        finally:
            sweep.terminate()
            assert sweep.wait(30) == 0


@pytest.mark.slow
def test_flushing_the_broker_in_the_middle_loses_no_job() -> None:
    """Messages are only wake-up calls. Every day the short form of chaos shows it: its broker dies with all it has."""
    with journey({"generation_s": 0.2}) as it:
        it.enqueue(150)
        with redis.Redis.from_url(it.stack.broker_url) as broker:
            broker.flushall()
            it.enqueue(150, "and another")
            broker.flushall()
        it.all_complete()


@pytest.mark.slow
def test_workers_killed_twice_during_their_posts_cost_no_job_and_no_second_charge() -> None:
    """
    The answers of POSTs under way are lost with their process: found again in the provider's list.

    Every day the short form of chaos shows it, and `test_worker` with one process.
    """
    faults = {"latency_s": 1.0, "generation_s": 0.2, "webhook_drop": 0.5}
    with journey(faults, workers=2, env={"POLL_AFTER_S": "4"}) as it:
        for round_ in ("first", "second"):
            before = it.provider.arrivals()["count"]
            it.enqueue(25, f"{round_} round")
            until(lambda: it.provider.arrivals()["count"] > before + 10)  # noqa: B023
            it.stack.kill("worker")
        it.all_complete()


@pytest.mark.slow
def test_without_a_public_address_the_poller_does_all_the_work() -> None:
    """Behind a firewall nobody calls back."""
    with journey(public_url=False) as it:
        it.enqueue(12)
        it.all_complete()
        assert {job["settled_by"] for job in it.jobs()} == {"poll"}
        assert it.provider.deliveries() == []


@pytest.mark.slow
def test_three_workers_together_never_exceed_the_accounts_limits() -> None:
    """By the provider's own clock and count: in no window more starts, at no moment more tasks, than it allows."""
    window_s, per_window, at_once = 10.0, 500, 300
    env = {"WAVESPEED_LEVEL": "silver", "SUBMIT_WINDOW_S": str(window_s)}
    faults = {"generation_s": [0.2, 1.0], "level": "silver", "level_window_s": window_s}
    with journey(faults, workers=3, env=env) as it:
        it.enqueue(1000)
        it.all_complete()
        arrivals = it.provider.arrivals()

    at = sorted(arrivals["at"])
    assert len(at) == 1000, "a refused start would have come twice"
    assert max(sum(1 for other in at if first <= other < first + window_s) for first in at) <= per_window
    assert arrivals["max_running"] <= at_once


@pytest.mark.parametrize("room", ["lifecycle", "store", "web"])
def test_nothing_in_the_pipeline_knows_the_sandbox(room: str) -> None:
    """It behaves the same towards any provider: only development's own commands know ours."""
    import pipeline

    folder = os.path.join(os.path.dirname(pipeline.__file__), room)
    files = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".py")]
    assert files
    assert [name for name in files if "sandbox" in open(name).read().lower()] == []  # noqa: SIM115
