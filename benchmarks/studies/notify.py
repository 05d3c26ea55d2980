"""
How soon callers are told, by a receiver in trouble; and that each is told.

    python -m benchmarks.studies.notify --jobs 500

The whole stack as `pipeline dev` runs it, level gold, the provider's callbacks doubled now and then. The receiver, a
process of its own, answers 500 to the first try of each event and 200 to the next; every tenth answer takes 2 s, and
every twentieth first success is cut off before its answer, so that the event comes twice. It verifies each delivery by
the reference library. Beside it a second service's receiver takes connections and never answers: nothing of the first
may wait for it.

The first try is timed from the commit that made it due (the callback's, or that of the last file stored) until it has
arrived whole.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psycopg
from aiohttp import web
from standardwebhooks.webhooks import Webhook

from pipeline.embedded import api
from pipeline.embedded.foreground import Options, Stack, running
from pipeline.embedded.supervisor import StopSignals
from pipeline.settings import load
from pipeline.store import keys, services
from pipeline.store.database import Database

SILENT_JOBS = 60


class Receiver:
    """What the shop would run."""

    def __init__(self, secret: str, log: Path, seed: int) -> None:
        self._webhook = Webhook(secret)
        self._log = log.open("a")
        self._random = random.Random(seed)
        self._tries: Counter[str] = Counter()

    async def hear(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        at = time.time()
        self._webhook.verify(body, dict(request.headers))
        event_id = request.headers["webhook-id"]
        self._tries[event_id] += 1
        number = self._tries[event_id]
        status = 500 if number == 1 else 200
        if self._random.random() < 0.1:
            await asyncio.sleep(2.0)
        cut = number == 2 and self._random.random() < 0.05
        job = json.loads(body)["data"]["job"]["id"]
        answered = 0 if cut else status
        said = {"id": event_id, "job": job, "at": at, "try": number, "status": answered, "taken": status == 200}
        self._log.write(json.dumps(said) + "\n")
        self._log.flush()
        if cut:
            assert request.transport
            request.transport.close()
        return web.Response(status=status)


async def _silence(request: web.Request) -> web.StreamResponse:
    await request.read()
    await asyncio.sleep(3600)
    return web.Response()


def serve(secret: str, log: Path, port: Any, seed: int) -> None:
    """Run both receivers, and say on which port."""

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/shop", Receiver(secret, log, seed).hear)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        silent = web.Application()
        silent.router.add_post("/silent", _silence)
        other = web.AppRunner(silent)
        await other.setup()
        await web.TCPSite(other, "127.0.0.1", 0).start()
        port.send([runner.addresses[0][1], other.addresses[0][1]])
        await asyncio.Event().wait()

    asyncio.run(run())


def hand_in(stack: Stack, key: str, count: int) -> None:
    jobs = "".join(json.dumps({"input": {"prompt": f"picture {number}"}}) + "\n" for number in range(count))
    request = urllib.request.Request(
        f"{stack.facts.url}/v1/jobs/batch",
        jobs.encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201, answer.read()


STARTS = """
    SELECT n.job_id::text, extract(epoch FROM greatest(n.created_at, (
        SELECT max(a.stored_at) FROM pipeline.assets a WHERE a.job_id = n.job_id AND a.stored_at IS NOT NULL
    )))::float8, n.state, n.attempts
    FROM pipeline.notifications n
    JOIN pipeline.jobs j ON j.id = n.job_id JOIN pipeline.services s ON s.id = j.service_id
    WHERE n.event = 'job.completed' AND s.name = 'shop'
"""


def report(stack: Stack, log: Path, count: int) -> int:
    heard = defaultdict(list)
    for line in log.read_text().splitlines():
        one = json.loads(line)
        heard[one["job"]].append(one)
    with psycopg.connect(stack.facts.database_url.replace("+psycopg", "")) as connection:
        rows = connection.execute(STARTS).fetchall()
        logged = connection.execute("SELECT count(*) FROM pipeline.deliveries").fetchone()
    assert logged
    waits = sorted(min(one["at"] for one in heard[job]) - start for job, start, _, _ in rows if heard[job])
    taken = {job for job, tries in heard.items() if any(one["taken"] for one in tries)}
    twice = sum(1 for tries in heard.values() if sum(one["taken"] for one in tries) > 1)
    states = Counter(state for _, _, state, _ in rows)
    p = statistics.quantiles(waits, n=100)
    print(f"jobs {count}, told {len(taken)}, states {dict(states)}, deliveries logged {logged[0]}")
    print(f"told twice or more {twice}; every delivery was verified by standardwebhooks")
    print(
        f"first try after the last file, or the callback: p50 {p[49] * 1000:.0f} ms, p95 {p[94] * 1000:.0f} ms, "
        f"p99 {p[98] * 1000:.0f} ms, longest {waits[-1] * 1000:.0f} ms"
    )
    return 0 if len(taken) == count and states == {"delivered": count} and p[94] <= 0.25 else 1


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--jobs", type=int, default=500)
    arguments.add_argument("--workers", type=int, default=1)
    arguments.add_argument("--seed", type=int, default=7)
    chosen = arguments.parse_args()
    options = Options(
        workers=chosen.workers, follow=False, imitation=True, defaults={"OUTBOUND_ALLOW": "127.0.0.0/8,::1/128"}
    )
    with (
        StopSignals().caught() as signals,
        running(options, signals, say=lambda text: print(text, file=sys.stderr)) as stack,
    ):
        database = Database(load({"DATABASE_URL": stack.facts.database_url}).database_url, name="bench", pool_size=1)
        with database.transaction() as tx:
            key, silent_key = services.create(tx, "shop"), services.create(tx, "silent")
            shop = services.by_name(tx, "shop")
            assert shop
            assert key
            assert silent_key
            secret = keys.of(tx, shop.id)[0]
        log = Path(stack.facts.data) / "heard.jsonl"
        log.touch()
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        receiver = context.Process(target=serve, args=(secret, log, theirs, chosen.seed), daemon=True)
        receiver.start()
        port, silent_port = ours.recv()
        with database.transaction() as tx:
            services.change(tx, "shop", callback_url=f"http://127.0.0.1:{port}/shop")
            services.change(tx, "silent", callback_url=f"http://127.0.0.1:{silent_port}/silent")
        api.call(
            "POST",
            f"{stack.facts.sandbox_url}/_sandbox/faults",
            {"generation_s": [0.5, 1.5], "webhook_duplicate": 0.1, "seed": chosen.seed},
        )
        hand_in(stack, silent_key, SILENT_JOBS)
        hand_in(stack, key, chosen.jobs)
        end = time.monotonic() + 60 + chosen.jobs / 10
        while time.monotonic() < end:
            stack.wait(1.0)
            with database.transaction() as tx:
                left = tx.exec_driver_sql(
                    "SELECT count(*) FILTER (WHERE j.state <> 'completed'), (SELECT count(*) FROM notifications"
                    " WHERE state = 'pending' AND starts_with(endpoint, 'shop ')) FROM jobs j"
                ).one()
                if not left[0]:  # the third try would come after five minutes: rows are moved in time, not clocks
                    tx.exec_driver_sql(
                        "UPDATE notifications SET due_at = clock_timestamp()"
                        " WHERE worker_id IS NULL AND due_at IS NOT NULL AND tries > 1 AND endpoint >= 'shop '"
                    )
            print(f"\r{left[0]} jobs to come, {left[1]} to be told  ", end="", file=sys.stderr)
            if not any(left):
                break
        print(file=sys.stderr)
        receiver.kill()
        database.close()
        return report(stack, log, chosen.jobs)


if __name__ == "__main__":
    sys.exit(main())
