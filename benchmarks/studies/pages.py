"""
How long each page takes with a million jobs, and with all that they leave behind: of the lists, of the dashboard.

    python -m benchmarks.studies.pages                        some 10 minutes, most of them to fill the tables
    python -m benchmarks.studies.pages --jobs 100000 --times 50
    python -m benchmarks.studies.pages --data /var/tmp/filled      keeps the database; those of `sizes` will do

`GET /v1/jobs` is asked by a service and by an operator who sees all, each kind of filter, half of the time for a first
page and half for one from anywhere in the list. Every page of the dashboard is asked for as a browser does, links to
older pages included: by its address, or as a page itself leads on to it ("Older").
"""

import argparse
import random
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from urllib.parse import urlencode
from uuid import UUID

from flask.testing import FlaskClient

from benchmarks import asked, filled
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import services
from pipeline.store.database import Database
from pipeline.web import create_app

OTHERS = (
    "/gallery",
    "/gallery?service=a-shop",
    "/playground",
    "/review",
    "/models",
    "/services",
    "/services/a-shop",
    "/audit",
)
PATHS = (*asked.OVERVIEW, *asked.JOBS, *asked.CALLBACKS, *asked.NOTIFICATIONS, *OTHERS)
SLOW_MS = 150


def main() -> None:
    """Fill a database, ask, and print a table of milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=40, help="requests for each page")
    parser.add_argument("--only", default="", help="only pages whose address has this in it")
    parser.add_argument("--data", type=Path, help="where to keep the filled database")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(filled.server(arguments.data, durable=arguments.data is not None))
        url = filled.database(server, arguments.jobs)
        settings = load({"DATABASE_URL": url, **asked.DASHBOARD})
        database = Database(settings.database_url, name="benchmark", pool_size=2)
        stack.callback(database.close)
        with database.transaction() as tx:
            keys = {name: services.rotate(tx, name) or "" for name in (filled.SHOP, filled.OPERATOR)}
        client = create_app(Runtime(settings, database)).test_client()
        asked.sign_in(client)
        ids = filled.some(url)
        print(f"{arguments.jobs} jobs, milliseconds")
        print(f"{'page':88} {'p50':>7} {'p95':>7} {'most':>7}")
        slow = []
        for name, took in chain(lists(client, keys, ids, arguments), pages(client, ids, arguments)):
            p95 = statistics.quantiles(took, n=20)[-1]
            shown = name if len(name) < 88 else f"{name[:85]}..."
            print(f"{shown:88} {statistics.median(took):7.1f} {p95:7.1f} {max(took):7.1f}", flush=True)
            slow += [name] if p95 > SLOW_MS else []
        print(f"over {SLOW_MS} ms:", ", ".join(slow) or "none")


def lists(
    client: FlaskClient, keys: dict[str, str], ids: Sequence[UUID], arguments: argparse.Namespace
) -> Iterator[tuple[str, list[float]]]:
    """Each filter of each caller's lists, and what each request took."""
    for wanted in asked.FILTERS:
        for caller, key in keys.items():
            name = f"/v1/jobs?{urlencode(wanted)} as {caller}"
            if arguments.only in name:
                yield (
                    name,
                    [
                        asked.listed(client, key, wanted, after=random.choice(ids) if number % 2 else None)[0]
                        for number in range(arguments.times)
                    ],
                )


def pages(client: FlaskClient, ids: Sequence[UUID], arguments: argparse.Namespace) -> Iterator[tuple[str, list[float]]]:
    """Each page of the dashboard, and what each request took."""
    for path in [*PATHS, *asked.older(client, PATHS), *of_one(client, ids[-1])]:
        if arguments.only in path:
            yield path, [asked.page(client, path) for _ in range(arguments.times)]


def of_one(client: FlaskClient, job_id: UUID) -> list[str]:
    """The pages of one job, of one callback, and of one notification."""
    found = [f"/jobs/{job_id}", f"/playground?job={job_id}", f"/audit?target={job_id}"]
    for path in ("/callbacks", "/notifications"):
        link = re.search(rf'href="({path}/[0-9a-f-]{{36}})"', client.get(path).text)
        found += [link[1]] if link else []
    return found


if __name__ == "__main__":
    main()
