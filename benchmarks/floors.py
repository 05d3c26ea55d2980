"""
What the receiver is compared with: apps for the Procfile's own server, which do as little as one can.

`bare` answers 204. `minimal` is what one writes in an hour: the signature is checked, the callback kept, a guarded
update moves the job, and both are committed; nothing is said of it, logged, planned, or done when things go wrong.
"""

import hashlib
import hmac
import json
import os
import time
from collections.abc import Sequence
from uuid import uuid4

import psycopg
from flask import Flask, abort, request
from psycopg_pool import ConnectionPool

from pipeline.deployment import WEB_POOL

SCHEMA = """
    CREATE TABLE jobs (
        id uuid PRIMARY KEY,
        token text NOT NULL UNIQUE,
        prediction_id text NOT NULL,
        state text NOT NULL,
        input jsonb NOT NULL,
        outputs jsonb,
        error text,
        created_at timestamptz NOT NULL DEFAULT now(),
        finished_at timestamptz
    );
    CREATE TABLE inbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        received_at timestamptz NOT NULL DEFAULT now(),
        token text NOT NULL,
        headers jsonb NOT NULL,
        body bytea NOT NULL
    );
"""

TOLERANCE_S = 300


def bare() -> Flask:
    """Nothing but the server, and Flask."""
    app = Flask("bare")

    @app.post("/webhooks/wavespeed/<token>")
    def receive(token: str) -> tuple[str, int]:
        return "", 204

    return app


def minimal() -> Flask:
    """A receiver of forty lines, on DATABASE_URL and WAVESPEED_WEBHOOK_SECRET."""
    app = Flask("minimal")
    key = os.environ["WAVESPEED_WEBHOOK_SECRET"].removeprefix("whsec_").encode()
    pool = ConnectionPool(os.environ["DATABASE_URL"], min_size=WEB_POOL, max_size=WEB_POOL, open=True)
    keep = "INSERT INTO inbox (token, headers, body) VALUES (%s, %s, %s)"
    move = """
        UPDATE jobs SET state = %s, outputs = %s, error = %s, finished_at = now()
        WHERE token = %s AND prediction_id = %s AND state = 'processing'
    """

    @app.post("/webhooks/wavespeed/<token>")
    def receive(token: str) -> tuple[str, int]:
        body = request.get_data()
        webhook_id = request.headers.get("webhook-id", "")
        timestamp = request.headers.get("webhook-timestamp", "")
        version, _, given = request.headers.get("webhook-signature", "").partition(",")
        digest = hmac.new(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
        if version != "v3" or not hmac.compare_digest(digest, given) or not timestamp.isdigit():
            abort(401)
        if abs(time.time() - int(timestamp)) > TOLERANCE_S:
            abort(401)
        said = json.loads(body)
        headers = json.dumps({"webhook-id": webhook_id, "webhook-timestamp": timestamp})
        state = "completed" if said["status"] == "completed" else "failed"
        values = (state, json.dumps(said["outputs"]), said.get("error"), token, said["id"])
        with pool.connection() as db:  # committed at the end of the block
            db.execute(keep, (token, headers, body), prepare=True)
            db.execute(move, values, prepare=True)
        return "", 204

    return app


def fill(db: psycopg.Connection, callbacks: Sequence[tuple[str, str]], prompt: str) -> None:
    """Have a job wait for each of these callbacks: its token, and its prediction's id."""
    with db.cursor() as cursor, cursor.copy("COPY jobs (id, token, prediction_id, state, input) FROM STDIN") as rows:
        for token, prediction_id in callbacks:
            rows.write_row((uuid4(), token, prediction_id, "processing", json.dumps({"prompt": prompt})))
    db.commit()


def moved(db: psycopg.Connection) -> int:
    """How many jobs have completed, each with a callback in the inbox."""
    row = db.execute("""
        SELECT count(DISTINCT j.id) FROM jobs j JOIN inbox i ON i.token = j.token
        WHERE j.state = 'completed' AND j.outputs IS NOT NULL AND j.finished_at IS NOT NULL
    """).fetchone()
    assert row
    return int(row[0])
