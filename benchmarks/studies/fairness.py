"""
How long a service's single job waits behind another service's backlog, until its POST is begun.

    python -m benchmarks.studies.fairness                     the account has room: how many seconds
    python -m benchmarks.studies.fairness --level silver      it has none: how many of the others' starts come first
"""

import argparse
import time
from collections.abc import Sequence

from sqlalchemy import text

from pipeline.embedded import stack
from pipeline.embedded.api import call
from pipeline.sandbox import Sandbox
from pipeline.settings import LEVELS, load
from pipeline.store import services
from pipeline.store.database import Database

ROOM = {"SUBMITS_PER_MINUTE": "1000000", "MAX_IN_FLIGHT": "5000"}  # the machine shall be the limit

CROWD = text("""
    INSERT INTO jobs (id, service_id, model, input, due_at, deadline_at, priority, admitted, price)
    SELECT gen_random_uuid(), id, 'openai/dall-e-2', '{"prompt": "a lighthouse"}', clock_timestamp(),
           clock_timestamp() + interval '1 day', 10, true, 0.12
    FROM services, generate_series(1, :count) WHERE name = 'crowd'
""")

WAITS = text("""
    SELECT extract(epoch FROM mine.submitted_at - mine.created_at)::float8 AS wait_s,
           (SELECT count(*) FROM attempts a WHERE a.service_id <> mine.service_id
                AND a.started_at > mine.created_at AND a.started_at < mine.submitted_at) AS overtaken_by
    FROM jobs mine JOIN services s ON s.id = mine.service_id
    WHERE s.name <> 'crowd' AND mine.submitted_at IS NOT NULL ORDER BY mine.created_at
""")


def main() -> None:
    """Queue a backlog of one service, then now and then one job of another, and print what each waited."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50_000, help="the backlog")
    parser.add_argument("--singles", type=int, default=10, help="jobs of the other service, one every --every-s")
    parser.add_argument("--every-s", type=float, default=3.0)
    parser.add_argument("--level", choices=LEVELS, help="of the account; without, it has room for all")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    env = {"WAVESPEED_LEVEL": arguments.level} if arguments.level else ROOM
    with stack.running(workers=arguments.workers, env=env) as running:
        provider = Sandbox(running.sandbox_url)
        provider.faults(generation_s=2.0)
        provider.set_balance(1e9)
        database = Database(
            load({"DATABASE_URL": running.database_url}).database_url, name="benchmark", pool_size=1, patience_s=120
        )
        with database.transaction() as tx:
            services.create(tx, "crowd")
            tx.execute(CROWD, {"count": arguments.jobs})
        for _ in range(arguments.singles):
            time.sleep(arguments.every_s)
            status, _ = call("POST", f"{running.url}/v1/jobs", {"input": {"prompt": "mine"}}, key=running.api_key)
            assert status == 201, status
        deadline = time.monotonic() + 120
        found: Sequence[tuple[float, int]] = ()
        while len(found) < arguments.singles and time.monotonic() < deadline:
            time.sleep(0.5)
            with database.transaction() as tx:
                found = [(row.wait_s, row.overtaken_by) for row in tx.execute(WAITS)]
        with database.transaction() as tx:
            left = tx.execute(text("SELECT count(*) FROM jobs WHERE state = 'queued'")).scalar_one()
    waits = sorted(wait_s for wait_s, _ in found)
    print(f"{len(found)} of {arguments.singles} jobs begun beside {arguments.jobs}, of which {left} still wait")
    print(f"waited: median {waits[len(waits) // 2]:.3f} s, longest {waits[-1]:.3f} s")
    print(f"the other service's starts meanwhile: {', '.join(str(overtaken_by) for _, overtaken_by in found)}")


if __name__ == "__main__":
    main()
