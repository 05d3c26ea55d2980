"""What every job of the others does: one call of the provider's own SDK, and what came of it into Postgres."""

import os
from typing import Any

import wavespeed
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

SYNC_MODE = os.environ.get("SYNC_MODE") == "yes"
STORE = (
    "INSERT INTO jobs (id, state, outputs) VALUES (%s, 'completed', %s)"
    " ON CONFLICT (id) DO UPDATE SET state = excluded.state, outputs = excluded.outputs"
)

wavespeed.config.api.base_url = os.environ["WAVESPEED_BASE_URL"]  # its key it takes from WAVESPEED_API_KEY itself

database = ConnectionPool(
    os.environ["DATABASE_URL"],
    min_size=1,
    max_size=8,
    num_workers=1,
    kwargs={"autocommit": True},
    open=False,  # connections do not outlive a fork: each process opens its own
)


def generate(job: str, model: str, given: dict[str, Any]) -> None:
    """Generate, wait for the end as the SDK does, and store it."""
    outputs = wavespeed.run(model, given, enable_sync_mode=SYNC_MODE)["outputs"]
    database.open()
    with database.connection() as db:
        db.execute(STORE, [job, Jsonb(outputs)])
