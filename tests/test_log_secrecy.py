"""The web server's log: enough to find a fault, and nothing that must not be in a log."""

import json
from collections.abc import Callable
from pathlib import Path

import psycopg

from pipeline.embedded.processes import Server
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import schema, services
from pipeline.store.database import Database
from tests.conftest import WEBHOOK_SECRET
from tests.factories import encoded, prediction, priced, processing, signed, submitting, until
from tests.http import get, post, request
from tests.serving import serving

PROMPT = "a prompt that only its caller may read"
API_KEY = "the-key-that-pays"
ERROR = "the provider's words about the prompt"
OUTPUT = "https://cdn.example.com/a-signed-url"


def test_the_log_keeps_every_secret_whatever_is_asked(
    environ: dict[str, str], new_database: Callable[[str], str], postgres: Server, tmp_path: Path
) -> None:
    """
    Logs are shipped, searched and kept by others: no key, token, signature, prompt, body or password may be in one.

    Not after a crash either: the database's own words for a refused row quote it, prompt and all.
    """
    url = new_database("log")
    settings = load(environ | {"DATABASE_URL": url})
    schema.upgrade(settings.database_url)
    database = Database(settings.database_url, name="test")
    rt = Runtime(settings, database)
    with database.transaction() as tx:
        key = services.create(tx, "shop")
        service = services.by_name(tx, "shop")
        priced(tx)
        tx.exec_driver_sql("ALTER TABLE jobs ADD CONSTRAINT unlucky CHECK (priority <> 7)")
    assert key
    assert service
    done, failed, early = processing(rt, service, PROMPT), processing(rt, service), submitting(rt, service)
    job = {"input": {"prompt": PROMPT}}
    signatures: list[str] = []

    with serving(environ | {"DATABASE_URL": url, "WAVESPEED_API_KEY": API_KEY}, tmp_path) as web:

        def deliver(token: str, body: bytes, *, secret: str = WEBHOOK_SECRET, at: int | None = None) -> int:
            headers = signed(secret, body, at=at)
            signatures.append(headers["webhook-signature"].partition(",")[2])
            return request("POST", f"{web.url}/webhooks/wavespeed/{token}", body, headers).status

        bodies = [
            encoded(prediction(done, outputs=[OUTPUT], input={"prompt": PROMPT})),
            encoded(prediction(failed, "failed", error=ERROR)),
            encoded(prediction(early, id=done.prediction_id)),
        ]
        assert deliver(done.token, bodies[0], at=1) == 204
        assert deliver(done.token, bodies[0]) == 204
        assert deliver(done.token, bodies[0]) == 204
        assert deliver(failed.token, bodies[1]) == 204
        assert deliver(early.token, bodies[2]) == 204
        assert deliver("nobodys-token", bodies[0]) == 204
        assert deliver(done.token, PROMPT.encode()) == 400
        assert deliver(done.token, bodies[0], secret="whsec_another-secret") == 401
        assert deliver(f"{done.token}%00", bodies[0]) == 400

        assert post(f"{web.url}/v1/jobs", job, key=key).status == 201
        assert post(f"{web.url}/v1/jobs", job | {PROMPT: PROMPT}, key=key).status == 422
        assert post(f"{web.url}/v1/jobs", PROMPT.encode(), key=key).status == 400
        assert post(f"{web.url}/v1/jobs", job, key=f"{key}-wrong").status == 401
        assert get(f"{web.url}/v1/jobs/{done.job_id}?token={done.token}", key=key).status == 200
        assert get(f"{web.url}/{done.token}", key=key).status == 404
        crashed = post(f"{web.url}/v1/jobs", job | {"priority": 7}, key=key)
        assert (crashed.status, crashed.json["code"]) == (500, "internal_error")
        assert PROMPT not in crashed.body.decode()

        database.close()
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("DROP DATABASE log WITH (FORCE)")
        until(lambda: post(f"{web.url}/v1/jobs", job, key=key).status == 503)
        assert deliver(done.token, bodies[0]) == 503
        assert get(f"{web.url}/readyz").status == 503

    log = web.log
    password = url.split(":")[2].split("@")[0]
    tokens = [one.token for one in (done, failed, early)] + ["nobodys-token"]
    secrets = [WEBHOOK_SECRET, WEBHOOK_SECRET[6:], "another-secret", API_KEY, key, password, *tokens, *signatures]
    assert [secret for secret in [*secrets, PROMPT, ERROR, OUTPUT] if secret in log] == []

    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    heard = [event["verdict"] for event in events if "verdict" in event]
    assert heard == ["stale", "applied", "duplicate", "applied", "suspicious", "orphan", "unreadable"]
    (crash,) = [event for event in events if event["event"] == "request.crashed"]
    assert crash["error"] == "IntegrityError"
    assert crash["route"] == "/v1/jobs"
    assert all(
        place in crash["raised_at"] for place in ("web/api/jobs.py:", "lifecycle/accept.py:", "store/intake.py:")
    )
    assert "request.failed" in [event["event"] for event in events]
