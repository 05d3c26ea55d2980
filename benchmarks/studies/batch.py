"""
How fast one web process stores batches: `POST /v1/jobs/batch` over real HTTP, 10,000 lines a request.

    python -m benchmarks.studies.batch
    python -m benchmarks.studies.batch --keys --times 5        each line with an idempotency key
    python -m benchmarks.studies.batch --terms 10000           screened for so many terms
    python -m benchmarks.studies.batch --profile               where Python's time goes, in one batch without HTTP
"""

import argparse
import cProfile
import json
import os
import pstats
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg

from pipeline.embedded import postgres, procfile
from pipeline.embedded.ports import hold
from pipeline.embedded.processes import Process, Program, wait_until
from pipeline.lifecycle.batch import accept_lines
from pipeline.runtime import Runtime
from pipeline.screening import EVERYONE, normal
from pipeline.settings import load
from pipeline.store import schema, screens, services
from pipeline.store.database import Database


def main() -> None:
    """Send batches, one after the other, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--terms", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with postgres.running() as server:
        schema.upgrade(load({"DATABASE_URL": server.url}).database_url)
        screened(server.url, arguments.terms)
        if arguments.profile:
            profiled(server.url, body(arguments.lines, 0, keys=arguments.keys))
            return
        with psycopg.connect(server.url) as connection:
            connection.execute("INSERT INTO pipeline.prices (model, key, usd) VALUES ('openai/dall-e-2', '', 0.02)")
        database = Database(load({"DATABASE_URL": server.url}).database_url, name="benchmark", pool_size=1)
        with database.transaction() as tx:
            key = services.create(tx, "benchmark")
        rates = []
        with web(server.url) as url:
            for number in range(arguments.times):
                sent = urllib.request.Request(
                    f"{url}/v1/jobs/batch",
                    body(arguments.lines, number, keys=arguments.keys),
                    {"Authorization": f"Bearer {key}", "Idempotency-Key": f"batch-{number}"},
                )
                began, busy = time.perf_counter(), cpu_s()
                with urllib.request.urlopen(sent) as answer:
                    found = json.load(answer)
                took = time.perf_counter() - began
                assert found["count"] == arguments.lines
                rates.append(arguments.lines / took)
                used = f"{cpu_s() - busy:.2f} s of CPU, load {os.getloadavg()[0]:.1f}"
                print(f"{arguments.lines} jobs in {took:.2f} s: {rates[-1]:,.0f} jobs/s ({used})", flush=True)
        print(f"median {sorted(rates)[len(rates) // 2]:,.0f} jobs/s")
        database.close()


@contextmanager
def web(database_url: str) -> Iterator[str]:
    """Run the web server as the Procfile does, one process; give its address."""
    held = hold(None)
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
        program = Program(
            name="web",
            argv=procfile.shell(procfile.read()["web"]),
            log=Path(folder, "web.log"),
            cwd=procfile.PROCFILE.parent,
            env={"PATH": path, "PORT": str(held.number), "DATABASE_URL": database_url, "LOG_LEVEL": "error"},
        )
        process = Process(program)
        url = f"http://127.0.0.1:{held.number}"
        try:
            assert wait_until(lambda: answers(url), 30.0), Path(folder, "web.log").read_text()
            yield url
        finally:
            process.stop(25.0)
            held.close()


def cpu_s() -> float:
    """What all the processes of this benchmark have worked so far, in seconds: what a busy machine cannot blur."""
    working = psutil.Process().children(recursive=True)
    return sum(sum(process.cpu_times()[:4]) for process in working)


def answers(url: str) -> bool:
    """Whether the server is there."""
    try:
        with urllib.request.urlopen(f"{url}/healthz"):
            return True
    except OSError:
        return False


def body(lines: int, number: int, *, keys: bool) -> bytes:
    """Jobs as callers send them: a prompt of some words, two labels."""
    jobs = (
        {
            "input": {"prompt": f"A lighthouse on a cliff at dusk, number {n}, in the manner of an old postcard"},
            "metadata": {"order": str(n), "campaign": "spring"},
        }
        | ({"idempotency_key": f"{number}-{n}"} if keys else {})
        for n in range(lines)
    )
    return "\n".join(map(json.dumps, jobs)).encode()


def screened(url: str, count: int) -> None:
    """Put so many terms on the list for all services: words, some with an open end, and phrases; none is asked for."""
    database = Database(load({"DATABASE_URL": url}).database_url, name="benchmark", pool_size=1)
    forms = ("word{}", "stem{}*", "a phrase {}", "number {} of")  # the prompts have `a` and `number` in them
    with database.transaction() as tx:
        terms = [normal(forms[number % 4].format(f"x{number}")) for number in range(count)]
        screens.add(tx, EVERYONE, "violence", terms)
    database.close()


def profiled(url: str, sent: bytes) -> None:
    """Print the dearest functions of one batch."""
    settings = load({"DATABASE_URL": url})
    database = Database(settings.database_url, name="benchmark", pool_size=2)
    with database.transaction() as tx:
        services.create(tx, "benchmark")
        service = services.by_name(tx, "benchmark")
    assert service
    rt = Runtime(settings, database)
    accept_lines(rt, service, sent)
    with cProfile.Profile() as profile:
        accept_lines(rt, service, sent)
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    database.close()


if __name__ == "__main__":
    main()
