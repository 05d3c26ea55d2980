"""The doctor's findings, one misconfiguration at a time, on real servers; and none where all is well."""

import contextlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from pydantic import SecretStr

from pipeline import sandbox as provider
from pipeline.catalogue import Offer
from pipeline.deployment import Deployment
from pipeline.embedded import procfile
from pipeline.embedded.processes import Server
from pipeline.lifecycle.examine import Finding, Level, broker, database, examine
from pipeline.lifecycle.examine.broker import Seen
from pipeline.pings import PATH
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.settings import load
from pipeline.store import catalogue, schema
from pipeline.store.database import Database
from pipeline.store.server import Server as Postgres
from tests.conftest import Caller
from tests.factories import MODEL, execute, processing, scalar
from tests.fronts import Front, Message, fronting
from tests.serving import serving

CERTIFICATE = Path(__file__).with_name("shop.test.pem")
Ail = Callable[..., dict[str, Finding]]


def deployment(environ: dict[str, str] | None = None, **formation: int) -> Deployment:
    """Give this checkout's Procfile in an environment."""
    return Deployment(procfile.read(), environ or {}, formation)


def ailing(rt: Runtime, **environ: str) -> dict[str, Finding]:
    """What is not in order, by its code: each says what is the matter, and what to do."""
    found = list(examine(rt, deployment(environ)))
    assert {finding.code for finding in found if finding.level == Level.OK} <= {"ok"}
    wrong = {finding.code: finding for finding in found if finding.level != Level.OK}
    assert all(finding.words and finding.todo for finding in wrong.values())
    return wrong


@pytest.fixture
def sound(make_rt: Callable[..., Runtime], rt: Runtime, web: str, valkey: Server) -> Callable[..., Runtime]:
    """Make a runtime of a sound installation, or one whose settings differ: a worker is heard, and somebody sweeps."""
    with rt.db.transaction() as tx:
        catalogue.keep(tx, [Offer(MODEL)])
    execute(rt, "UPDATE account SET swept_at = now() + interval '1 h'")  # on a busy machine, too, all is recent
    execute(
        rt,
        "INSERT INTO workers (id, host, pid, beat_at, told_at)"
        " VALUES (gen_random_uuid(), 'elsewhere', 1, now() + interval '1 h', now() + interval '1 h')",
    )
    return lambda **changes: make_rt(**{"broker_url": valkey.url, **changes})


def test_nothing_is_said_of_a_sound_installation(sound: Callable[..., Runtime]) -> None:
    """A doctor who always finds something is not believed when it matters."""
    assert ailing(sound()) == {}
    found = {finding.what for finding in examine(sound(), deployment())}
    assert {"procfile", "connections", "db clock", "eviction", "queue", "clock", "secret", "workers"} <= found
    assert ailing(sound(dyno="web.1", archive_url="off"), REMAP_SIGTERM="SIGQUIT", WEB_THREADS="96") == {}


def test_a_ping_leaves_nothing_behind(sound: Callable[..., Runtime], rt: Runtime) -> None:
    """Doctors are called by the minute, by monitors."""
    ailing(sound())
    assert scalar(rt, "SELECT count(*) FROM callbacks") == 0


# The database


def test_a_schema_behind_the_code_and_one_ahead_of_it_are_told_apart(
    sound: Callable[..., Runtime], new_database: Callable[[str], str]
) -> None:
    """The one stops all work; the other is what a release under way, or rolled back, looks like."""
    url = load({"DATABASE_URL": new_database("behind")}).database_url
    schema.upgrade(url, schema.known()[-2])
    rt = Runtime(sound().settings, Database(url, name="behind", pool_size=2))
    wrong = ailing(rt)
    assert wrong["schema_older"].level == Level.FAIL
    assert wrong["schema_older"].todo == "pipeline migrate"

    schema.upgrade(url)
    execute(rt, "UPDATE alembic_version SET version_num = '9999_tomorrow'")
    wrong = ailing(rt)
    assert "newer than this code" in wrong["schema_newer"].words
    assert "schema_older" not in wrong
    rt.db.close()


def test_a_role_that_may_open_too_few_connections_is_named_with_the_sum(
    sound: Callable[..., Runtime], postgres: Server, database_url: str
) -> None:
    """Under load the last to come are refused: by then it is a riddle."""
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("DROP ROLE IF EXISTS clinic")
        db.execute("CREATE ROLE clinic LOGIN PASSWORD 'clinic' CONNECTION LIMIT 20 IN ROLE pg_read_all_data")
        db.execute("GRANT ALL ON SCHEMA pipeline TO clinic")
        db.execute("GRANT ALL ON ALL TABLES IN SCHEMA pipeline TO clinic")
        try:
            place = database_url.partition("@")[2]
            url = load({"DATABASE_URL": f"postgres://clinic:clinic@{place}"}).database_url
            rt = Runtime(sound().settings, Database(url, name="clinic", pool_size=2))
            assert "none is left for a person" in ailing(rt)["no_connections_to_spare"].words
            found = ailing(rt, WEB_CONCURRENCY="2")["too_few_connections"]
            assert found.level == Level.FAIL
            assert "at most 30 (release 1, web 20 in 2 processes, worker 9); its role allows 20" in found.words
            db.execute("ALTER ROLE clinic CONNECTION LIMIT 22")
            assert ailing(rt) == {}
            rt.db.close()
        finally:
            db.execute("DROP OWNED BY clinic")
            db.execute("DROP ROLE clinic")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"major": 13}, "database_too_old"),
        ({"major": 19}, "database_too_new"),
        ({"is_here": False}, "database_not_encrypted"),
        ({"is_here": False, "is_encrypted": True, "latency_ms": 21.0}, "database_far"),
        ({"is_here": False, "is_encrypted": True}, "ok"),
    ],
)
def test_a_server_is_judged_by_version_way_and_distance(changes: dict[str, Any], code: str) -> None:
    """What no server on this machine can be."""
    facts = {"version": "18.1", "major": 18, "is_here": True, "is_encrypted": False, "latency_ms": 1.0, "ahead_s": 0.0}
    assert [finding.code for finding in database.judge(Postgres(**{**facts, **changes}))] == [code]


@pytest.mark.parametrize(
    ("part", "other", "words"),
    [
        (r"//[^@]*@", "//postgres:wrong@", "refuses the user or the password"),
        (r"/\w+$", "/nowhere", "has no database of that name"),
        (r":\d+/", ":1/", "does not listen there"),
        (r"@[^/]+/", "@nowhere.invalid/", "has a host name that cannot be found"),
        (r"$", "?sslmode=require", "speaks no TLS there"),
    ],
)
def test_why_the_database_lets_nobody_in_is_said(part: str, other: str, words: str, environ: dict[str, str]) -> None:
    """A class of exceptions tells nobody what to mend; the server did say it."""
    settings = load(environ | {"DATABASE_URL": re.sub(part, other, environ["DATABASE_URL"], count=1)})
    db = Database(settings.database_url, name="tests")
    try:
        assert words in ailing(Runtime(settings, db))["database_unreachable"].words
    finally:
        db.close()


# The broker


def test_a_broker_that_is_not_there_is_named(sound: Callable[..., Runtime]) -> None:
    """Jobs go on without it, only slower: nobody would look."""
    found = ailing(sound(broker_url="redis://127.0.0.1:1/0"))["broker_unreachable"]
    assert (found.level, "does not listen there" in found.words) == (Level.FAIL, True)
    assert "broker_unreachable" in ailing(sound(broker_url="amqp://guest:guest@127.0.0.1:1//"))


def test_a_broker_that_throws_messages_away_when_full_is_named(sound: Callable[..., Runtime], valkey: Server) -> None:
    """What another app hands in by Celery stands nowhere else yet."""
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert "allkeys-lru" in ailing(sound())["broker_evicts"].words
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_a_queue_that_nobody_empties_is_named(sound: Callable[..., Runtime], valkey: Server) -> None:
    """And one that somebody does is not."""
    with redis.Redis.from_url(valkey.url) as client:
        client.rpush("pipeline", *["{}"] * 10_001)
        try:
            assert "10,001 messages" in ailing(sound())["queue_long"].words
        finally:
            client.delete("pipeline")


@pytest.mark.parametrize(
    ("url", "seen", "code"),
    [
        ("redis://broker.example.com/0", Seen(1.0, 0), "broker_not_encrypted"),
        ("amqp://broker.example.com//", Seen(1.0, 0), "broker_not_encrypted"),
        ("amqps://broker.example.com//", Seen(51.0, 0), "broker_far"),
        ("rediss://broker.example.com/0", Seen(1.0, 0), "ok"),
        ("redis://localhost/0", Seen(1.0, 0), "ok"),
    ],
)
def test_a_broker_is_judged_by_way_and_distance(url: str, seen: Seen, code: str) -> None:
    """What no broker on this machine can be."""
    assert next(broker.judge(url, seen)).code == code


# The provider


def test_a_wrong_key_is_named(sound: Callable[..., Runtime]) -> None:
    """And not taken for an outage."""
    with provider.running(api_key="the-right-one") as strict:
        wrong = ailing(sound(wavespeed_base_url=strict.url, wavespeed_api_key=SecretStr("another-one")))
    assert wrong["key_refused"].level == Level.FAIL
    assert "another-one" not in repr(wrong)


def test_a_missing_key_and_a_provider_that_is_not_there_are_told_apart(sound: Callable[..., Runtime]) -> None:
    """The one is ours to mend."""
    assert ailing(sound(wavespeed_api_key=None))["key_missing"].level == Level.FAIL
    assert ailing(sound(wavespeed_base_url="http://127.0.0.1:1"))["provider_unreachable"].level == Level.WARN


def test_an_empty_account_is_named(sound: Callable[..., Runtime], sandbox: Sandbox) -> None:
    """The next POST would halt it."""
    sandbox.set_balance(0.0)
    assert ailing(sound())["no_credit"].todo == "top it up"


def test_a_webhook_secret_that_is_not_the_providers_is_named(sound: Callable[..., Runtime], sandbox: Sandbox) -> None:
    """Every callback would be refused, and every job polled: it works, and nobody knows why so slowly."""
    wrong = ailing(sound(wavespeed_webhook_secret=(SecretStr("whsec_of_another_account"),)))
    assert wrong["secret_wrong"].level == Level.FAIL
    assert ailing(sound(wavespeed_webhook_secret=())).keys() == {"secret_not_fetched"}
    kept = '[{"secret": "whsec_the-former", "retired_at": null}]'
    execute(sound(), "UPDATE account SET webhook_secrets = CAST(:kept AS jsonb)", kept=kept)
    assert ailing(sound(wavespeed_webhook_secret=())).keys() == {"secret_rotated"}


@pytest.mark.parametrize(("shift_s", "code"), [(-100, "clock_off"), (100, "clock_off"), (-299, "clock_far_off")])
def test_a_clock_that_differs_from_the_providers_is_named(
    sound: Callable[..., Runtime], sandbox: Sandbox, shift_s: int, code: str
) -> None:
    """At five minutes no callback is believed any more."""

    def shift(answer: Message) -> None:
        date = next(name for name in answer.headers if name.lower() == "date")
        answer.headers[date] = format_datetime(
            parsedate_to_datetime(answer.headers[date]) + timedelta(seconds=shift_s), usegmt=True
        )

    with fronting(Front(behind=sandbox.url, outward=shift)) as url:
        wrong = ailing(sound(wavespeed_base_url=url))
    assert wrong.keys() == {code}
    assert ("ahead of" if shift_s < 0 else "behind") in wrong[code].words


# Our own address


def always(answer: Message) -> Front:
    """Whatever is asked."""
    return Front(answer=lambda _: answer)


def test_an_address_that_leads_to_another_app_is_named(sound: Callable[..., Runtime]) -> None:
    """It answers, and knows nothing of us."""
    pages = {404: b"<html>No such page</html>", 200: b'{"size": 3, "sha256": "", "signature": "\\u00fc"}', 403: b""}
    for status, body in pages.items():
        page = Message({"Content-Type": "text/html; charset=utf-8"}, body, status)
        with fronting(always(page)) as url:
            wrong = ailing(sound(public_url=url))
        assert wrong.keys() == {"public_url_elsewhere"}
        assert f"HTTP {status}, text/html" in wrong["public_url_elsewhere"].words


def test_an_address_that_redirects_is_named_with_the_right_one(sound: Callable[..., Runtime], web: str) -> None:
    """The provider does not follow; nor does the ping."""
    front = Front(answer=lambda asked: Message({"Location": f"{web}{asked.path}"}, b"", 308))
    with fronting(front) as url:
        wrong = ailing(sound(public_url=url))
    assert wrong.keys() == {"public_url_redirects"}
    assert wrong["public_url_redirects"].todo == f"set PUBLIC_URL to {web}"
    assert front.seen == [PATH]
    for location in ("/elsewhere/", "", "https://[broken"):
        moved = Message({"Location": location}, b"", 302)
        with fronting(always(moved)) as url:
            assert ailing(sound(public_url=url)).keys() == {"public_url_redirects"}


def test_what_changes_bodies_on_their_way_is_named(sound: Callable[..., Runtime], web: str) -> None:
    """The signature covers the bytes, not what they mean."""

    def tidy(message: Message) -> None:
        message.body = message.body.replace(b"\r\n", b"\n")

    with fronting(Front(behind=web, inward=tidy)) as url:
        wrong = ailing(sound(public_url=url))
    assert wrong.keys() == {"body_changed"}


def test_what_takes_headers_away_is_named(sound: Callable[..., Runtime], web: str) -> None:
    """Some let through only those they know."""

    def strip(message: Message) -> None:
        message.headers = {name: value for name, value in message.headers.items() if not name.startswith("webhook-")}

    with fronting(Front(behind=web, inward=strip)) as url:
        assert ailing(sound(public_url=url)).keys() == {"headers_stripped"}
    with fronting(Front(behind=web)) as url:
        assert ailing(sound(public_url=url)) == {}


def test_an_address_that_leads_to_another_installation_is_named(
    sound: Callable[..., Runtime], environ: dict[str, str], new_database: Callable[[str], str], tmp_path: Path
) -> None:
    """Production's callbacks at the staging app: the same code, the same account, and all of them orphans."""
    url = load({"DATABASE_URL": new_database("staging")}).database_url
    schema.upgrade(url)
    with serving(environ | {"DATABASE_URL": url}, tmp_path) as staging:
        assert ailing(sound(public_url=staging.url)).keys() == {"public_url_other"}


def test_an_address_without_a_name_a_server_or_a_certificate_is_named(sound: Callable[..., Runtime]) -> None:
    """What may be only our own view of it is a warning."""
    assert ailing(sound(public_url="http://127.0.0.1:1")).keys() == {"public_url_silent"}
    with fronting(always(Message({}, b"no web process", 503))) as url:
        assert ailing(sound(public_url=url)).keys() == {"public_url_silent"}
    assert ailing(sound(public_url="https://nobody.invalid"))["public_url_broken"].level == Level.FAIL
    with self_signed() as url:
        wrong = ailing(sound(public_url=url))
    assert wrong["public_url_broken"].level == Level.FAIL
    assert "certificate" in wrong["public_url_broken"].words
    assert ailing(sound(public_url=None)).keys() == {"no_public_url"}


@contextlib.contextmanager
def self_signed() -> Iterator[str]:
    """An HTTPS server whose certificate nobody knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # that it is hung up on
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# The work


def test_nobody_at_work_for_long_is_named(sound: Callable[..., Runtime], rt: Runtime) -> None:
    """Jobs are taken, and none is done; at first it may be a deployment."""
    execute(rt, "DELETE FROM workers")
    assert ailing(sound())["workers_none"].level == Level.WARN
    execute(rt, "UPDATE account SET swept_at = clock_timestamp() - interval '1 hour'")
    assert ailing(sound())["workers_gone"].level == Level.FAIL


def test_a_halted_account_and_an_unknown_model_are_named(sound: Callable[..., Runtime], rt: Runtime) -> None:
    """What every job would stumble over."""
    execute(rt, "UPDATE account SET halted_reason = 'key_refused', halted_at = clock_timestamp()")
    wrong = ailing(sound(default_model="openai/dall-e-9"))
    assert wrong["account_halted"].level == Level.FAIL
    assert MODEL in wrong["model_unknown"].words


def test_a_list_that_shows_tasks_late_is_named(sound: Callable[..., Runtime], rt: Runtime, caller: Caller) -> None:
    """What was taken for absent was there: some jobs may have been paid twice."""
    processing(rt, caller.service)
    execute(rt, "UPDATE attempts SET absent_at = started_at + interval '20 min'")
    assert "20 min after" in ailing(sound())["list_late"].words


def test_an_archive_that_cannot_be_written_is_named(sound: Callable[..., Runtime], tmp_path: Path) -> None:
    """A file where the folder should be; and on a dyno any folder."""
    (tmp_path / "file").touch()
    assert ailing(sound(archive_url=f"file://{tmp_path}/file/files"))["archive_not_writable"].level == Level.FAIL
    wrong = ailing(sound(dyno="web.1", archive_url=f"file://{tmp_path}"), REMAP_SIGTERM="SIGQUIT", WEB_THREADS="96")
    assert wrong.keys() == {"archive_on_dyno"}
    assert ailing(sound(archive_url="off")) == {}


# The platform


def test_threads_and_signals_that_do_not_suit_a_dyno_are_named(sound: Callable[..., Runtime]) -> None:
    """Elsewhere neither matters."""
    dyno = sound(dyno="web.1", archive_url="off")
    wrong = ailing(dyno, WEB_CONCURRENCY="2", WEB_THREADS="200")
    assert wrong.keys() == {"too_many_threads", "sigterm_not_remapped"}
    assert "WEB_THREADS=112" in str(wrong["too_many_threads"].todo)
    assert ailing(dyno, WEB_CONCURRENCY="2", WEB_THREADS="112", REMAP_SIGTERM="SIGQUIT") == {}
    assert ailing(sound(), WEB_CONCURRENCY="2", WEB_THREADS="200") == {}
    assert ailing(sound(), REMAP_SIGTERM="SIGWRONG")["no_such_signal"].level == Level.FAIL


def test_a_procfile_that_cannot_do_the_work_is_named(sound: Callable[..., Runtime]) -> None:
    """No migrations, no workers, or workers at another queue."""
    lines = procfile.read()
    mute = {"web": lines["web"], "worker": lines["worker"].replace("-Q pipeline", "-Q celery")}
    codes = {finding.code for finding in examine(sound(), Deployment(mute))}
    assert {"no_release", "wrong_queue"} <= codes
    assert "no_workers" in {finding.code for finding in examine(sound(), deployment(worker=0))}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"submit_window_s": 1.0}, "window_short"),
        ({"unknown_patience_s": 5.0}, "patience_short"),
    ],
)
def test_settings_for_tests_are_named_in_production(
    sound: Callable[..., Runtime], changes: dict[str, Any], code: str
) -> None:
    """Each costs money or jobs at the real provider."""
    real = {"wavespeed_base_url": "https://api.wavespeed.ai", "unknown_patience_s": 900.0}
    first = next(examine(sound(**{**real, **changes})))  # what comes before anybody is asked
    assert first.code == code


def test_a_beat_that_is_not_heard_is_named_though_the_workers_sweep(sound: Callable[..., Runtime], rt: Runtime) -> None:
    execute(rt, "UPDATE workers SET told_at = now() - interval '5 minutes'")
    found = ailing(sound())
    assert set(found) == {"beat_away"}
    assert "sweep by themselves" in found["beat_away"].words
    execute(rt, "UPDATE workers SET told_at = NULL, started_at = now() - interval '5 minutes'")
    assert set(ailing(sound())) == {"beat_away"}
    execute(rt, "UPDATE workers SET started_at = now()")
    assert ailing(sound()) == {}
