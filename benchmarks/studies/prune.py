"""
What it costs to remove old jobs, and what those notice of it who hand in, claim and hear of new ones meanwhile.

    python -m benchmarks.studies.prune                         200,000 jobs with all that hangs on them: about 4 minutes
    python -m benchmarks.studies.prune --jobs 1000000 --phase-s 60

First one batch is explained: a table of those that grow must not be read whole. Then the same load runs all the time,
as fast as the machine can, by the statements of the product; in every other phase a worker's pruner runs beside it.
"""

import argparse
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from pipeline.embedded import postgres
from pipeline.jobs import Outcome, State
from pipeline.lifecycle import prune
from pipeline.predictions import Prediction, Status
from pipeline.retention import DAY_S, Kind
from pipeline.runtime import Runtime
from pipeline.settings import Limits, load
from pipeline.store import answers, claims, inbox, intake, retention, schema, services
from pipeline.store import pruning as store
from pipeline.store.database import Database
from pipeline.store.moves import Move
from pipeline.store.retention import ALL, Age
from pipeline.store.tables import new_id

SERVICES = 12
GROWING = ("jobs", "attempts", "events", "callbacks", "notifications", "deliveries", "assets", "labels")
MODEL = "openai/dall-e-2"
FILL = """
    SET search_path = pipeline; SET session_replication_role = replica;
    CREATE TEMP TABLE made AS
        SELECT gen_random_uuid() AS id, gen_random_uuid() AS notice, s.ids[1 + n % %(services)s] AS service_id,
               now() - interval '40 days' - n * interval '1 second' AS at, n
        FROM generate_series(1, %(jobs)s) n, (SELECT array_agg(id ORDER BY name) AS ids FROM services) s;
    INSERT INTO jobs (id, service_id, model, input, metadata, state, deadline_at, outputs, error, finished_at,
                      created_at, submitted_at, price, admitted, last_seq)
    SELECT id, service_id, 'openai/dall-e-2',
           jsonb_build_object('prompt', 'a lighthouse ' || n || repeat(' by the sea', 20)),
           jsonb_build_object('env', 'production', 'order', n::text, 'customer', (n % 5000)::text),
           CASE WHEN n % 40 = 1 THEN 'failed' ELSE 'completed' END, at, '[{"url": "https://cdn.example/1.png"}]',
           CASE WHEN n % 40 = 1 THEN '{"code": "rejected"}'::jsonb END, at, at, at, 0.04, true, 6
    FROM made;
    INSERT INTO attempts (id, job_id, service_id, number, token, worker_id, started_at, ended_at, outcome,
                          prediction_id)
    SELECT gen_random_uuid(), id, service_id, 1, id::text, id, at, at, 'accepted', md5(n::text) FROM made;
    INSERT INTO events (job_id, seq, at, kind, data)
    SELECT id, k, at, 'job.' || k, '{"from": "queued"}' FROM made, generate_series(1, 6) k;
    INSERT INTO callbacks (id, received_at, token, job_id, prediction_id, verdict, headers, body)
    SELECT gen_random_uuid(), at, id::text, id, md5(n::text), 'applied', '{}', repeat('x', 900)::bytea FROM made;
    INSERT INTO notifications (id, event, job_id, seq, state, created_at)
    SELECT notice, 'job.completed', id, 5, 'delivered', at FROM made;
    INSERT INTO deliveries (notification_id, number, at, target) SELECT notice, 1, at, 'https://shop.example' FROM made;
    INSERT INTO assets (id, job_id, index, service_id, state, storage_key, sha256, bytes, content_type, stored_at)
    SELECT gen_random_uuid(), id, 0, service_id, 'stored', 'files/' || md5(n::text), md5(n::text), 9, 'image/png', at
    FROM made;
    INSERT INTO idempotency_keys (service_id, key, fingerprint, job_id, created_at)
    SELECT service_id, 'order-' || n, '', id, at FROM made WHERE n % 2 = 0;
    INSERT INTO labels (service_id, name, value, job_id)
    SELECT service_id, k, v, id FROM made, LATERAL (VALUES ('env', 'production'), ('order', n::text),
                                                          ('customer', (n % 5000)::text)) l(k, v);
"""


@dataclass
class Phase:
    """What was done in one kind of phase."""

    jobs: int = 0
    seconds: float = 0.0
    pruned: int = 0
    callback_ms: list[float] = field(default_factory=list)
    claim_ms: list[float] = field(default_factory=list)
    batch_ms: list[float] = field(default_factory=list)


def main() -> None:
    """Fill a database, explain, load and prune, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--phase-s", type=float, default=15.0)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    with postgres.running() as server:
        settings = load({"DATABASE_URL": server.url, "ARCHIVE_URL": "off"})
        schema.upgrade(settings.database_url)
        database = Database(settings.database_url, name="benchmark", pool_size=8)
        rt = Runtime(settings, database)
        with database.transaction() as tx:
            for number in range(SERVICES):
                services.create(tx, f"service-{number:02}")
            for kind in (Kind.COMPLETED, Kind.FAILED):
                retention.keep(tx, Age(ALL, kind, 30 * DAY_S, files=False))
        fill(server.url, arguments.jobs)
        explain(rt)
        phases = {False: Phase(), True: Phase()}
        with Load(rt) as load_:
            time.sleep(3.0)
            for pruning in (False, True) * arguments.times:
                run(rt, load_, phases[pruning], arguments.phase_s, pruning=pruning)
        report(phases)
        rest(rt)
        database.close()


def fill(url: str, jobs: int) -> None:
    """Store so many old jobs, with all that hangs on them."""
    began = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        sql = psycopg.ClientCursor(connection).mogrify(FILL.replace("% ", "%% "), {"jobs": jobs, "services": SERVICES})
        connection.execute(sql)
        connection.execute("VACUUM (ANALYZE)")
    print(f"{jobs} jobs filled in {time.monotonic() - began:.0f} s")


def explain(rt: Runtime) -> None:
    """Remove a batch, and say how its statements read the tables that grow; those of triggers and foreign keys too."""
    seen: list[str] = []
    with rt.db.transaction() as tx:
        driver = tx.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        tx.exec_driver_sql("LOAD 'auto_explain'")
        tx.exec_driver_sql(
            "SET LOCAL auto_explain.log_min_duration = 0; SET LOCAL auto_explain.log_nested_statements = on;"
            " SET LOCAL auto_explain.log_level = notice"
        )
        driver.add_notice_handler(lambda diagnostic: seen.append(diagnostic.message_primary or ""))
        rules = retention.rules(tx)
        began = time.perf_counter()
        gone = len(store.jobs(tx, rules)) + store.keys(tx, rules)
        took_ms = 1000 * (time.perf_counter() - began)
        tx.rollback()
    plans = [one for one in seen if "plan:" in one]
    read = {index for one in plans for index in re.findall(r"Index (?:Only )?Scan.* using (\w+)", one)}
    whole = {table for one in plans for table in re.findall(r"Seq Scan on (\w+)", one)} & {*GROWING, "idempotency_keys"}
    print(f"one batch: {gone} jobs and keys in {took_ms:.0f} ms, {len(plans)} statements (explained, rolled back)")
    print(f"  read by: {', '.join(sorted(read))}")
    print(f"  read whole: {', '.join(sorted(whole)) or 'none'}", flush=True)
    for plan in plans:
        if any(f"Seq Scan on {table}" in plan for table in whole):
            print(plan)


def accepted(one: claims.Start) -> answers.Answer:
    """The provider took it."""
    move = Move(one.job_id, State.PROCESSING, attempt_id=one.attempt_id, due_s=30.0, prediction_id=one.token)
    return answers.Answer(one.attempt_id, Outcome.ACCEPTED, move, prediction_id=one.token, http_status=200)


class Load:
    """New jobs, handed in, claimed, answered and called back about, one after the other, by two threads."""

    THREADS = 2
    AT_ONCE = 10

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(self.THREADS)]
        self._lock = threading.Lock()
        self.phase: Phase | None = None

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        with self._rt.db.transaction() as tx:
            service = services.by_name(tx, f"service-{number:02}")
        assert service
        while not self._done.is_set():
            with self._rt.db.transaction() as tx:
                intake.add(
                    tx, [intake.NewJob(service.id, MODEL, {"prompt": "a mill"}, 3600.0) for _ in range(self.AT_ONCE)]
                )
                tx.exec_driver_sql("UPDATE jobs SET admitted = true WHERE state = 'queued' AND NOT admitted")
            began = time.perf_counter()
            with self._rt.db.transaction() as tx:
                starts = claims.claim(
                    tx,
                    worker_id=new_id(),
                    limits=Limits(10_000_000, 10_000_000),
                    window_s=1.0,
                    lease_s=90.0,
                    at_most=self.AT_ONCE,
                ).starts
            claimed_ms = 1000 * (time.perf_counter() - began)
            with self._rt.db.transaction() as tx:
                answers.record(tx, [accepted(one) for one in starts])
            heard_ms = [self._hear(one.token) for one in starts]
            with self._lock:
                if phase := self.phase:
                    phase.jobs += len(starts)
                    phase.claim_ms.append(claimed_ms)
                    phase.callback_ms += heard_ms

    def _hear(self, token: str) -> float:
        done = Prediction(
            id=token, status=Status.COMPLETED, said="completed", model=MODEL, outputs=("https://x/1.png",)
        )
        began = time.perf_counter()
        with self._rt.db.transaction() as tx:
            assert inbox.hear(tx, inbox.Delivery(token, {}, b"{}"), done, poll_s=30.0).verdict == "applied"
        return 1000 * (time.perf_counter() - began)


@contextmanager
def counted(load_: Load, phase: Phase) -> Iterator[None]:
    """Count what the load does."""
    began = time.monotonic()
    load_.phase = phase
    yield
    load_.phase = None
    phase.seconds += time.monotonic() - began


def run(rt: Runtime, load_: Load, phase: Phase, phase_s: float, *, pruning: bool) -> None:
    """One phase of load, with a pruner as a worker has it, or without."""
    with counted(load_, phase):
        end = time.monotonic() + phase_s
        while time.monotonic() < end:
            if not pruning:
                time.sleep(0.1)
                continue
            began = time.monotonic()
            phase.pruned += prune.remove(rt).total()
            took_s = time.monotonic() - began
            phase.batch_ms.append(1000 * took_s)
            time.sleep(prune.REST * took_s)


def report(phases: dict[bool, Phase]) -> None:
    """Print both kinds beside one another."""
    print(
        f"{'':10} {'jobs/s':>8} {'claim p50':>10} {'p95':>6} {'callback p50':>13} {'p95':>6} {'most':>7} {'gone/s':>7}"
    )
    for pruning, phase in phases.items():
        claim, callback = statistics.quantiles(phase.claim_ms, n=20), statistics.quantiles(phase.callback_ms, n=20)
        name = "pruning" if pruning else "free"
        most, rate = max(phase.callback_ms), phase.pruned / phase.seconds
        print(
            f"{name:10} {phase.jobs / phase.seconds:8.1f} {claim[9]:10.1f} {claim[18]:6.1f}"
            f" {callback[9]:13.1f} {callback[18]:6.1f} {most:7.1f} {rate:7.1f}"
        )
    free, pruned = (phases[one].jobs / phases[one].seconds for one in (False, True))
    batch = statistics.quantiles(phases[True].batch_ms, n=20)
    print(f"jobs/s while pruning: {pruned / free:.2f} of those while not")
    print(f"one round of batches: p50 {batch[9]:.0f} ms, p95 {batch[18]:.0f} ms")


def rest(rt: Runtime) -> None:
    """Remove what is left, with nothing beside it."""
    began = time.monotonic()
    gone = prune.everything(rt, progress=lambda _: None).total()
    took_s = time.monotonic() - began
    print(f"the rest, alone and without rests: {gone} rows in {took_s:.0f} s, {gone / max(took_s, 0.001):.0f} a second")


if __name__ == "__main__":
    main()
