"""
Whether those who wait for jobs hear of the end at once, and are in nobody's way.

    python -m benchmarks.studies.waits --waiting 200 --streams 50 --per-second 50 --seconds 30

The web server runs as the Procfile says, with Postgres and Valkey beside it. First callbacks come at that rate and
nobody waits. Then so many requests with `Prefer: wait=20` and so many event streams are open all the time: each
callback ends one of the waits, which is replaced. At last the server is asked to stop, with all of them waiting.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from uuid import UUID

import aiohttp
from sqlalchemy import text

from pipeline.embedded import postgres, procfile, valkey
from pipeline.embedded.ports import hold
from pipeline.embedded.processes import Process, Program, wait_until
from pipeline.settings import load
from pipeline.signatures import sign
from pipeline.store import schema, services
from pipeline.store.database import Database
from pipeline.store.tables import new_id

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
MODEL = "openai/dall-e-2"

PLACED = text("""
    WITH made AS (
        INSERT INTO jobs (id, service_id, model, input, state, due_at, deadline_at, current_attempt, attempts,
                          prediction_id, last_seq, admitted)
        SELECT i, :service_id, :model, '{"prompt": "a lighthouse"}', 'processing', clock_timestamp() + interval '1 h',
               clock_timestamp() + interval '2 h', i, 1, replace(i::text, '-', ''), 1, true
        FROM unnest(CAST(:ids AS uuid[])) AS i
        RETURNING id, service_id
    ), tried AS (
        INSERT INTO attempts (id, job_id, service_id, number, token, worker_id, outcome, ended_at, prediction_id)
        SELECT id, id, service_id, 1, id::text, id, 'accepted', clock_timestamp(), replace(id::text, '-', '') FROM made
    )
    INSERT INTO events (job_id, seq, kind) SELECT id, 1, 'job.processing' FROM made
""")


class Web:
    """The web server as a process, and jobs that only wait for their callbacks."""

    def __init__(self, database_url: str, broker_url: str, folder: Path) -> None:
        self._database = Database(load({"DATABASE_URL": database_url}).database_url, name="benchmark", pool_size=1)
        with self._database.transaction() as tx:
            self.key = services.create(tx, "benchmark")
            service = services.by_name(tx, "benchmark")
        assert service
        self._service = service
        port = hold(None)
        self.url = f"http://127.0.0.1:{port.number}"
        self.log = folder / "web.log"
        env = {
            "DATABASE_URL": database_url,
            "BROKER_URL": broker_url,
            "PUBLIC_URL": self.url,
            "WAVESPEED_BASE_URL": "http://127.0.0.1:1",
            "WAVESPEED_WEBHOOK_SECRET": SECRET,
            "PORT": str(port.number),
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
        }
        argv = procfile.shell(procfile.read()["web"])
        self.process = Process(
            Program(name="web", argv=argv, log=self.log, cwd=procfile.PROCFILE.parent, env={**os.environ, **env})
        )

    def jobs(self, count: int) -> deque[UUID]:
        """Place so many jobs at the provider."""
        ids = deque(new_id() for _ in range(count))
        with self._database.transaction() as tx:
            parameters = {"ids": [str(one) for one in ids], "service_id": self._service.id, "model": MODEL}
            tx.execute(PLACED, parameters)
        return ids

    @property
    def threads(self) -> int:
        """Of all its processes."""
        return sum(one.num_threads() for one in self.process.look())

    @property
    def resident_mib(self) -> float:
        """Of all its processes."""
        return sum(one.memory_info().rss for one in self.process.look()) / 2**20

    @property
    def cpu_s(self) -> float:
        """What all its processes have used."""
        return sum(sum(one.cpu_times()[:2]) for one in self.process.look())


class Load:
    """The callers and the provider, in one event loop."""

    def __init__(self, web: Web, session: aiohttp.ClientSession) -> None:
        self.web = web
        self.waiting: deque[UUID] = deque()  # those that are waited for, the longest first
        self.called_back: dict[UUID, float] = {}
        self.callbacks_s: list[float] = []
        self.waits_s: list[float] = []
        self.streams_s: list[float] = []
        self.odd: list[str] = []
        self.stopping = False
        self._session = session
        self._headers = {"Authorization": f"Bearer {web.key}", "Prefer": "wait=20"}

    async def call_back(self, job_id: UUID) -> None:
        """Deliver one signed callback, as the provider does."""
        outputs = [f"https://cdn.example.com/predictions/{job_id.hex}/1.png"]
        said = {"id": job_id.hex, "model": MODEL, "outputs": outputs, "has_nsfw_contents": [False]}
        body = json.dumps({**said, "status": "completed", "error": "", "timings": {"inference": 8421}}).encode()
        at = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": "evt_1",
            "webhook-timestamp": str(at),
            "webhook-signature": sign(SECRET, "evt_1", at, body),
        }
        begun = self.called_back[job_id] = time.perf_counter()
        url = f"{self.web.url}/webhooks/wavespeed/{job_id}"
        async with self._session.post(url, data=body, headers=headers) as answer:
            self.callbacks_s.append(time.perf_counter() - begun)
            if answer.status != 204:
                self.odd.append(f"callback: {answer.status}")

    async def wait_for_one_after_another(self, ids: deque[UUID]) -> None:
        """Wait for a job's end, and then for the next one's."""
        while ids and not self.stopping:
            job_id = ids.popleft()
            self.waiting.append(job_id)
            await self.wait(job_id)

    async def wait(self, job_id: UUID) -> None:
        """Wait for a job's end, as often as it takes."""
        while True:
            async with self._session.get(f"{self.web.url}/v1/jobs/{job_id}", headers=self._headers) as answer:
                job = await answer.json()
                if "Preference-Applied" not in answer.headers:
                    self.odd.append("wait: not applied")
            if job["state"] == "completed":
                self.waits_s.append(time.perf_counter() - self.called_back[job_id])
            if job["state"] == "completed" or self.stopping:
                return

    async def listen(self, job_id: UUID) -> None:
        """Read a job's events to their end."""
        url = f"{self.web.url}/v1/jobs/{job_id}/events"
        async with self._session.get(url, headers=self._headers) as answer:
            if answer.status != 200:
                self.odd.append(f"stream: {answer.status}")
            async for line in answer.content:
                if line == b"event: job.completed\n":
                    self.streams_s.append(time.perf_counter() - self.called_back[job_id])


async def callbacks(load: Load, ids: deque[UUID], per_second: float, seconds: float) -> None:
    """Deliver callbacks evenly, for the first of *ids*."""
    tasks: list[asyncio.Task[None]] = []
    begun = time.perf_counter()
    for number in range(int(per_second * seconds)):
        await asyncio.sleep(max(0.0, begun + number / per_second - time.perf_counter()))
        tasks.append(asyncio.create_task(load.call_back(ids.popleft())))
    await asyncio.gather(*tasks)


async def measure(web: Web, arguments: argparse.Namespace) -> None:
    """Run the three parts and print what each showed."""
    count = int(arguments.per_second * arguments.seconds)
    no_limit = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=no_limit, timeout=aiohttp.ClientTimeout(total=120)) as session:
        load = Load(web, session)
        await callbacks(load, web.jobs(100), arguments.per_second, 100 / arguments.per_second)
        load.callbacks_s.clear()
        used, begun = web.cpu_s, time.perf_counter()
        await callbacks(load, web.jobs(count), arguments.per_second, arguments.seconds)
        used, took = web.cpu_s - used, time.perf_counter() - begun
        print(f"nobody waits: {shown(load.callbacks_s, 'callbacks')}; {100 * used / took:.0f} % of a core")

        load.callbacks_s.clear()
        ids, heard = web.jobs(count + arguments.waiting), web.jobs(arguments.streams)
        tasks = [asyncio.create_task(load.listen(job_id)) for job_id in heard]
        tasks += [asyncio.create_task(load.wait_for_one_after_another(ids)) for _ in range(arguments.waiting)]
        await asyncio.sleep(3.0)
        print(f"{len(tasks)} wait: {web.threads} threads, {web.resident_mib:.0f} MiB")
        used, begun = web.cpu_s, time.perf_counter()
        await asyncio.sleep(10.0)
        used, took = web.cpu_s - used, time.perf_counter() - begun
        print(f"nothing happens: {100 * used / took:.0f} % of a core")
        used, begun = web.cpu_s, time.perf_counter()
        await callbacks(load, load.waiting, arguments.per_second, arguments.seconds)
        used, took = web.cpu_s - used, time.perf_counter() - begun
        print(f"they wait: {shown(load.callbacks_s, 'callbacks')}; {100 * used / took:.0f} % of a core")
        print(f"from the callback's first byte to the end of the wait: {shown(load.waits_s, 'waits')}")
        await asyncio.gather(*(load.call_back(job_id) for job_id in list(heard)[: arguments.streams // 2]))
        await asyncio.sleep(1.0)
        print(f"all at once, to the last event: {shown(load.streams_s, 'streams')}")

        load.stopping = True
        begun = time.perf_counter()
        web.process.signal(web.process.program.stop_signal)
        gone = asyncio.get_running_loop().run_in_executor(
            None, wait_until, lambda: web.process.poll() is not None, 60.0
        )
        assert await gone
        took = time.perf_counter() - begun
        print(f"asked to stop while {len(load.waiting) + len(heard) // 2} wait: gone after {took:.1f} s")
        everyone = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        broken = [done for done in await asyncio.gather(*everyone, return_exceptions=True) if done is not None]
        print(f"odd answers: {load.odd or 'none'}; connections that broke: {len(broken)}")
        print(f"killed: {'refused to gracefully stop' in web.log.read_text()}")


def shown(seconds: list[float], what: str) -> str:
    """The distribution of some durations."""
    if len(seconds) < 2:
        return f"{len(seconds)} {what}"
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    p50, p95, p99 = (round(1000 * cuts[n - 1], 1) for n in (50, 95, 99))
    return f"{len(seconds)} {what}, p50 {p50} ms, p95 {p95} ms, p99 {p99} ms, at most {1000 * max(seconds):.1f} ms"


def main() -> None:
    """Start the servers and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=200)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--per-second", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, postgres.running() as database, valkey.running() as broker:
        schema.upgrade(load({"DATABASE_URL": database.url}).database_url)
        web = Web(database.url, broker.url, Path(folder))
        try:
            assert wait_until(lambda: "Started worker" in web.log.read_text(), 30.0), web.log.read_text()
            asyncio.run(measure(web, arguments))
        finally:
            web.process.end()


if __name__ == "__main__":
    main()
