"""
How long a page of a list takes with a million jobs: `GET /v1/jobs` as the web server answers it, each kind of filter.

    python -m benchmarks.studies.lists                         about 4 minutes, most of it to fill the table
    python -m benchmarks.studies.lists --jobs 100000 --pages 50

Half of the requests ask for a first page, half for one from anywhere in the list.
"""

import argparse
import random
import statistics
import time
from urllib.parse import urlencode
from uuid import UUID

import psycopg
from flask.testing import FlaskClient

from pipeline.embedded import postgres
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import schema, services
from pipeline.store.database import Database
from pipeline.web import create_app
from pipeline.web.api.lists import cursor

SERVICES = 12
FILL = """
    SET search_path = pipeline;
    INSERT INTO jobs (id, service_id, model, input, metadata, state, due_at, deadline_at, current_attempt, outputs,
                      error, finished_at, admitted, created_at)
    SELECT id, ids[1 + CASE WHEN n % 10 < 6 THEN 0 ELSE n % (cardinality(ids) - 1) + 1 END],
           CASE WHEN n % 1000 = 7 THEN 'rare/model' WHEN n % 5 = 0 THEN 'openai/dall-e-3' ELSE 'openai/dall-e-2' END,
           jsonb_build_object('prompt', 'a lighthouse ' || n || repeat(' by the sea', 20)),
           jsonb_build_object('env', CASE WHEN n % 500 = 0 THEN 'test' ELSE 'production' END, 'order', n::text,
                              'customer', (n % 5000)::text)
               || CASE WHEN n <= 2000 THEN '{"campaign": "first"}' ELSE '{}' END::jsonb,
           state, CASE WHEN state IN ('queued', 'processing', 'unknown') THEN now() + interval '1 day' END,
           now() + interval '1 day', CASE WHEN state IN ('processing', 'unknown') THEN id END,
           CASE WHEN state = 'completed' THEN '[{"url": "https://cdn.example/1.png"}]'::jsonb END,
           CASE WHEN state = 'failed' THEN '{"code": "rejected", "message": "no"}'::jsonb END,
           CASE WHEN state IN ('completed', 'failed', 'cancelled') THEN now() END, true, now()
    FROM (
        SELECT n, ids, (lpad(to_hex(1767225600000 + n * 2000::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)
                        || '8' || substr(md5(n::text), 4, 15))::uuid AS id,
               CASE WHEN n > %(jobs)s - 20000 THEN CASE WHEN n % 50 = 0 THEN 'processing' ELSE 'queued' END
                    WHEN n % 4000 = 3 THEN 'unknown' WHEN n % 40 = 1 THEN 'failed'
                    WHEN n % 300 = 2 THEN 'cancelled' ELSE 'completed' END AS state
        FROM generate_series(%(from)s, %(to)s) n, (SELECT array_agg(id ORDER BY name) AS ids FROM services) s
    ) j
"""

FILTERS: list[dict[str, str]] = [
    {},
    {"state": "completed"},
    {"state": "queued"},
    {"state": "failed"},
    {"state": "unknown"},
    {"state": "submitting"},
    {"model": "openai/dall-e-2"},
    {"model": "rare/model"},
    {"model": "no/such-model"},
    {"model": "openai/dall-e-2", "state": "completed"},
    {"model": "rare/model", "state": "failed"},
    {"metadata.env": "production"},
    {"metadata.env": "test"},
    {"metadata.campaign": "first"},
    {"metadata.customer": "4711"},
    {"metadata.order": "1"},
    {"metadata.order": "none"},
    {"metadata.env": "production", "state": "unknown"},
    {"metadata.campaign": "first", "metadata.env": "test", "model": "openai/dall-e-3"},
]


def main() -> None:
    """Fill a database, ask, and print a table of milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, default=200, help="requests for each filter and caller")
    parser.add_argument("--limit", type=int, default=20)
    arguments = parser.parse_args()
    with postgres.running() as server:
        settings = load({"DATABASE_URL": server.url})
        schema.upgrade(settings.database_url)
        database = Database(settings.database_url, name="benchmark", pool_size=2)
        with database.transaction() as tx:
            shop = services.create(tx, "a-shop")
            for number in range(SERVICES - 2):
                services.create(tx, f"service-{number}")
            operator = services.create(tx, "z-operator", operator=True)
        assert shop
        assert operator
        ids = fill(server.url, arguments.jobs)
        client = create_app(Runtime(settings, database)).test_client()
        print(f"{arguments.jobs} jobs, {SERVICES} services, {arguments.limit} a page, milliseconds")
        print(f"{'filter':75} {'caller':9} {'p50':>7} {'p95':>7} {'most':>7} {'items':>6}")
        for wanted in FILTERS:
            for caller, key in (("service", shop), ("operator", operator)):
                took, items = measure(client, key, wanted | {"limit": str(arguments.limit)}, ids, arguments.pages)
                p50, p95 = statistics.median(took), statistics.quantiles(took, n=20)[-1]
                shown = urlencode(wanted) or "none"
                print(f"{shown:75} {caller:9} {p50:7.1f} {p95:7.1f} {max(took):7.1f} {items:6.1f}", flush=True)
        database.close()


def fill(url: str, jobs: int) -> list[UUID]:
    """Store so many jobs, as they are after weeks, and give some of their ids."""
    began = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        step = 50_000
        for first in range(1, jobs + 1, step):
            values = {"jobs": jobs, "from": first, "to": min(first + step - 1, jobs)}
            # the driver's own literals: a utility command and a query in one string take no parameters
            connection.execute(psycopg.ClientCursor(connection).mogrify(FILL.replace("% ", "%% "), values))
        connection.execute("VACUUM (ANALYZE) pipeline.jobs, pipeline.labels")
        rows = connection.execute("SELECT id FROM pipeline.jobs TABLESAMPLE BERNOULLI (0.1)").fetchall()
    print(f"filled in {time.monotonic() - began:.0f} s")
    return [row[0] for row in rows]


def measure(
    client: FlaskClient, key: str, wanted: dict[str, str], ids: list[UUID], pages: int
) -> tuple[list[float], float]:
    """Milliseconds of each request, and the mean number of items."""
    took, items = [], 0
    for number in range(pages):
        query = wanted | ({"after": cursor(random.choice(ids))} if number % 2 else {})
        began = time.perf_counter()
        answer = client.get(f"/v1/jobs?{urlencode(query)}", headers={"Authorization": f"Bearer {key}"})
        took.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, answer.text
        items += len(answer.get_json()["items"])
    return took, items / pages


if __name__ == "__main__":
    main()
