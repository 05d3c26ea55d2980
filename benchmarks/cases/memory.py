"""
What each line of the Procfile takes of memory, all its processes together: at rest, under load, and as on Heroku.

Each run is a whole stack of its own, as `pipeline dev` starts it, with files archived and callers told. Under load jobs
come in two batches and one by one; whoever hands in one waits for its end (`Prefer: wait`) and reads a list then. The
figures are the most that was seen, five times a second. RSS counts what processes share for each of them, PSS once.
What a line shares with processes outside of it PSS counts in part; alone on a dyno it takes some MB more.
"""

import json
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.error import HTTPError
from uuid import uuid4

import psycopg

from benchmarks import costs, stacks
from benchmarks.harness import Case, Figures, Plan, Side
from pipeline.embedded import procfile, stack
from pipeline.embedded.processes import wait_until
from pipeline.embedded.stack import RunningStack
from pipeline.sandbox import Sandbox

REST_S = 5.0
"""How long after its start a stack is at rest."""

FILE_KB = 1024
END_WITHIN_S = 300.0

_DONE = """
    SELECT (SELECT count(*) FROM pipeline.notifications WHERE state = 'delivered') >= %(jobs)s
       AND (SELECT count(*) FROM pipeline.assets WHERE state = 'stored') >= %(jobs)s
"""


@dataclass(frozen=True, slots=True)
class _Load:
    """So many jobs, and so many callers who hand in one by one, and wait."""

    jobs: int
    waiting: int


@contextmanager
def sides(plan: Plan) -> Iterator[Mapping[str, Side]]:
    """Nothing is shared: memory that one run has taken must not be there for the next."""
    jobs, waiting = plan.pick(600, 12), plan.pick(40, 2)
    load = _Load(int(plan.options.get("jobs", jobs)), int(plan.options.get("waiting", waiting)))
    heroku = _of_app_json()
    as_there = " ".join(f"{name}={value}" for name, value in heroku.items())
    yield {
        "idle": lambda: _run(None, {}),
        "under load": lambda: _run(load, {}),
        f"under load, {as_there}": lambda: _run(load, heroku),
    }


def _of_app_json() -> Mapping[str, str]:
    """The variables by which the web server's size on a dyno differs from its size elsewhere."""
    made = json.loads((procfile.PROCFILE.parent / "app.json").read_text())
    return {name: made["env"][name]["value"] for name in ("WEB_CONCURRENCY", "WEB_THREADS")}


def _run(load: _Load | None, env: Mapping[str, str]) -> Figures:
    """One stack, at rest or with this load."""
    with stack.running(env={**stacks.LIMITS, **env}) as running:
        Sandbox(running.sandbox_url).faults(file_kb=FILE_KB, generation_s=[0.2, 2.0])
        time.sleep(REST_S)
        if load is None:
            return _figures(costs.memory(running))
        with costs.most_memory(running) as most:
            _work(running, load)
        return _figures(most)


def _figures(sizes: Mapping[str, Mapping[str, float]]) -> Figures:
    """Each kind of size, line by line."""
    return {f"{kind} MB, {line}": sizes[line][kind] for kind in ("PSS", "RSS") for line in sizes}


def _work(running: RunningStack, load: _Load) -> None:
    """Hand in all jobs; return when each file is stored and each caller told."""
    _call(running, "/openapi.json")
    singles = load.jobs // 3
    told = {"callback_url": f"{running.sandbox_url}/_sandbox/receiver"}
    jobs = [json.dumps(job) for job in stacks.prompts(load.jobs, **told)]
    with ThreadPoolExecutor(load.waiting) as callers:

        def one(job: str) -> None:
            _call(running, "/v1/jobs", job, **{"Content-Type": "application/json", "Prefer": "wait=25"})
            _call(running, "/v1/jobs?limit=100")

        waiting = [callers.submit(one, job) for job in jobs[:singles]]
        for batch in (jobs[singles::2], jobs[singles + 1 :: 2]):
            _call(running, "/v1/jobs/batch", "\n".join(batch), **{"Content-Type": "application/x-ndjson"})
        for each in waiting:
            each.result()
        with psycopg.connect(running.database_url, autocommit=True) as db:

            def done() -> bool:
                row = db.execute(_DONE, {"jobs": load.jobs}).fetchone()
                return bool(row and row[0])

            assert wait_until(done, END_WITHIN_S, every_s=0.2), "some job, file or notification is missing"


def _call(running: RunningStack, path: str, body: str | None = None, **headers: str) -> None:
    """As good callers do it: what is answered 503 is sent again, with the same key."""
    headers |= {"Authorization": f"Bearer {running.api_key}", "Idempotency-Key": str(uuid4())}
    request = urllib.request.Request(running.url + path, body.encode() if body else None, headers)
    end = time.monotonic() + END_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
                return
        except HTTPError as error:
            if error.code != 503 or time.monotonic() > end:
                raise
            time.sleep(1.0)


CASE = Case(
    "memory",
    "Memory of the Procfile's processes, the most of each line, in MB.",
    sides,
    baseline="idle",
    options=("jobs", "waiting"),
)
