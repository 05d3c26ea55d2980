"""
How long each page of the dashboard takes with a million jobs, and with all that a million jobs leave behind.

    python -m benchmarks.studies.pages                        some 15 minutes, most of them to fill the tables
    python -m benchmarks.studies.pages --jobs 100000 --times 50

Every page is asked for as an operator's browser does, links to older pages included: some by their addresses below,
and those that a page itself leads on to ("Older").
"""

import argparse
import html
import re
import statistics
import time
from itertools import pairwise
from uuid import UUID

import psycopg
from flask.testing import FlaskClient

from benchmarks.studies.lists import fill
from pipeline.embedded import postgres
from pipeline.measures import ACCEPTED, ATTEMPTS, ENDED, OUTCOMES, SETTLED, Latency, intervals
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import schema, services
from pipeline.store.database import Database
from pipeline.web import create_app

PASSWORD = "a password of the benchmark"

# One attempt, five events, one callback, one output and one notification with its delivery for each job that ended.
REST = """
    SET search_path = pipeline;
    UPDATE jobs SET current_attempt = id, prediction_id = md5(id::text), submitted_at = created_at - interval '9 s',
        settled_by = 'webhook', attempts = 1
    WHERE state IN ('completed', 'failed') AND id >= %(first)s AND id < %(last)s;
    INSERT INTO attempts (id, job_id, service_id, number, token, worker_id, started_at, ended_at, outcome,
                          prediction_id, http_status)
    SELECT id, id, service_id, 1, md5('token' || id), id, created_at - interval '40 days', created_at, 'accepted',
           md5(id::text), 200
    FROM jobs WHERE state IN ('completed', 'failed', 'processing', 'unknown') AND id >= %(first)s AND id < %(last)s;
    INSERT INTO events (job_id, seq, kind, data)
    SELECT id, seq, 'job.' || (ARRAY['queued', 'submitting', 'processing', 'settled', state])[seq], '{"via": "webhook"}'
    FROM jobs, generate_series(1, 5) seq WHERE id >= %(first)s AND id < %(last)s;
    INSERT INTO callbacks (id, token, attempt_id, job_id, prediction_id, verdict, headers, body)
    SELECT id, md5('token' || id), id, id, md5(id::text),
           CASE WHEN id::text LIKE '%%77' THEN 'late' WHEN id::text LIKE '%%9a0' THEN 'suspicious' ELSE 'applied' END,
           '{"webhook-id": "msg_1", "webhook-timestamp": "1767225600"}',
           convert_to(jsonb_build_object('id', md5(id::text), 'status', 'completed', 'outputs',
                                         jsonb_build_array('https://cdn.example/1.png'))::text, 'UTF8')
    FROM jobs WHERE state IN ('completed', 'failed') AND id >= %(first)s AND id < %(last)s;
    INSERT INTO assets (id, job_id, index, service_id, state, source_url, storage_key, sha256, bytes, content_type,
                        width, height, stored_at, review)
    SELECT id, id, 0, service_id, 'stored', 'https://cdn.example/1.png', 'files/' || md5(id::text), md5(id::text), 1000,
           'image/png', 512, 512, created_at, CASE WHEN id::text LIKE '%%77' THEN 'quarantined' END
    FROM jobs WHERE state = 'completed' AND id >= %(first)s AND id < %(last)s;
    INSERT INTO notifications (id, event, job_id, seq, state, endpoint, attempts, ended_at, error)
    SELECT id, 'job.' || state, id, 5, CASE WHEN id::text LIKE '%%77' THEN 'dead' ELSE 'delivered' END,
           'a-shop https://shop.example', 1, created_at, CASE WHEN id::text LIKE '%%77' THEN 'answered 500' END
    FROM jobs WHERE state IN ('completed', 'failed') AND id >= %(first)s AND id < %(last)s;
    INSERT INTO deliveries (notification_id, number, target, request, status, answer, duration_ms)
    SELECT id, 1, 'https://shop.example/hook', '{"headers": {}, "body": "{}"}', 204, '', 12
    FROM notifications WHERE id >= %(first)s AND id < %(last)s;
"""

MINUTES = """
    SET search_path = pipeline;
    INSERT INTO stats (minute, service_id, measure, value)
    SELECT minute, s.id, m.measure, 10
    FROM generate_series(date_trunc('minute', now()) - make_interval(days => %(days)s), now(), '1 minute') minute,
         (SELECT id FROM services ORDER BY name LIMIT 4) s,
         (SELECT DISTINCT measure FROM unnest(%(measures)s::text[]) measure) m
"""

PATHS = [
    "/",
    "/?period=1h",
    "/?period=24h",
    "/?period=7d",
    "/?period=30d",
    "/jobs",
    "/jobs?state=completed",
    "/jobs?state=failed",
    "/jobs?state=queued",
    "/jobs?model=rare/model",
    "/jobs?service=a-shop&state=completed",
    "/jobs?metadata=order%3D1",
    "/jobs?held=1",
    "/gallery",
    "/gallery?service=a-shop",
    "/playground",
    "/callbacks",
    "/callbacks?verdict=late",
    "/callbacks?verdict=suspicious",
    "/callbacks?verdict=orphan",
    "/callbacks?verdict=applied",
    "/notifications",
    "/notifications?state=dead",
    "/notifications?state=pending",
    "/notifications?state=delivered",
    "/notifications?state=unaddressed",
    "/notifications?service=a-shop",
    "/review",
    "/models",
    "/services",
    "/services/a-shop",
    "/audit",
]


def main() -> None:
    """Fill a database, ask, and print a table of milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=40, help="requests for each page")
    parser.add_argument("--only", default="", help="only pages whose address has this in it")
    arguments = parser.parse_args()
    with postgres.running() as server:
        settings = load(
            {"DATABASE_URL": server.url, "DASHBOARD_PASSWORD": PASSWORD, "SECRET_KEY": "a-key-of-the-benchmark"}
        )
        schema.upgrade(settings.database_url)
        database = Database(settings.database_url, name="benchmark", pool_size=2)
        with database.transaction() as tx:
            services.create(tx, "a-shop")
            for number in range(10):
                services.create(tx, f"service-{number}")
            services.create(tx, "z-operator", operator=True)
        ids = fill(server.url, arguments.jobs)
        leave_behind(server.url)
        client = create_app(Runtime(settings, database)).test_client()
        sign_in(client)
        slow = []
        print(f"{arguments.jobs} jobs, milliseconds")
        print(f"{'page':52} {'p50':>7} {'p95':>7} {'most':>7}")
        for path in [*PATHS, *older(client), *of_one(ids)]:
            if arguments.only in path:
                took = measure(client, path, arguments.times)
                p95 = statistics.quantiles(took, n=20)[-1]
                shown = path if len(path) < 52 else f"{path[:49]}..."
                print(f"{shown:52} {statistics.median(took):7.1f} {p95:7.1f} {max(took):7.1f}", flush=True)
                slow += [path] if p95 > 150 else []
        print("over 150 ms:", ", ".join(slow) or "none")
        database.close()


def leave_behind(url: str) -> None:
    """Store what the jobs left, and a month of minutes."""
    began = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        bounds = connection.execute(
            """
            SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM pipeline.jobs) j WHERE n %% 50000 = 1
        """.replace("%%", "%")
        ).fetchall()
        edges = [row[0] for row in bounds] + [UUID(int=2**128 - 1)]
        for first, last in pairwise(edges):
            connection.execute(psycopg.ClientCursor(connection).mogrify(REST, {"first": first, "last": last}))
        measures = [ACCEPTED, *ENDED.values(), *SETTLED.values(), ATTEMPTS, *OUTCOMES.values()]
        measures += [name for latency in Latency for name in (latency, *intervals(latency)[2:9])]
        connection.execute(psycopg.ClientCursor(connection).mogrify(MINUTES, {"days": 30, "measures": measures}))
        connection.execute("VACUUM (ANALYZE)")
    print(f"left behind in {time.monotonic() - began:.0f} s")


def sign_in(client: FlaskClient) -> None:
    """Come in by the door."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/login").text)
    assert found
    answer = client.post("/login", data={"csrf_token": found[1], "name": "Ann", "password": PASSWORD})
    assert answer.status_code == 303, answer.text


def older(client: FlaskClient) -> list[str]:
    """The second page of each list."""
    found = []
    for path in PATHS:
        link = re.search(r'<a rel="next" href="([^"]+)"', client.get(path).text)
        found += [html.unescape(link[1])] if link else []
    return found


def of_one(ids: list[UUID]) -> list[str]:
    """The pages of one job, its callback and its notification."""
    one = ids[len(ids) // 2]
    return [
        f"/jobs/{one}",
        f"/playground?job={one}",
        f"/callbacks/{one}",
        f"/notifications/{one}",
        f"/audit?target={one}",
    ]


def measure(client: FlaskClient, path: str, times: int) -> list[float]:
    """Milliseconds of each request."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        answer = client.get(path)
        took.append((time.perf_counter() - began) * 1000)
        assert answer.status_code in {200, 404, 422}, (path, answer.status_code)
    return took


if __name__ == "__main__":
    main()
