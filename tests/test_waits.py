"""Waiting for a job's end, and hearing of its events as they come: at little cost, and in no one's way."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event as sql_event

from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store.database import Database
from pipeline.store.moves import Move, advance
from pipeline.web import create_app, waits
from pipeline.web.api import events
from pipeline.web.watcher import Watcher, places
from tests.conftest import WEBHOOK_SECRET, Caller
from tests.factories import encoded, kinds, prediction, processing, queued, scalar, signed, state, until
from tests.http import request
from tests.postgres_proxy import proxy

A_JOB = {"input": {"prompt": "a lighthouse"}}


@pytest.fixture
def app(rt: Runtime) -> Iterator[Flask]:
    """Give a web app on the tests' database, that stops at the end."""
    made = create_app(rt)
    yield made
    made.extensions["watcher"].stop()


@pytest.fixture
def door(app: Flask, caller: Caller) -> FlaskClient:
    """Give a client of that app that sends the service's key."""
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {caller.key}"
    return client


@pytest.fixture
def watcher(app: Flask) -> Watcher:
    """Give the watcher of that app."""
    found: Watcher = app.extensions["watcher"]
    return found


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Give threads to wait in."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def move(rt: Runtime, job_id: UUID, to: State) -> None:
    """Move a job."""
    error = {"code": "refused", "message": "No.", "provider_code": None} if to == State.FAILED else None
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(job_id, to, error=error)]) == {job_id}


def body(answer: Any) -> Any:
    """The JSON of an answer, problems too."""
    return answer.get_json(force=True)


def waiting(seconds: object = 20) -> dict[str, str]:
    return {"Prefer": f"wait={seconds}"}


# Prefer: wait


@pytest.mark.parametrize("end", [State.CANCELLED, State.FAILED, State.EXPIRED])
def test_a_wait_ends_with_the_job(
    end: State, rt: Runtime, door: FlaskClient, watcher: Watcher, caller: Caller, threads: ThreadPoolExecutor
) -> None:
    """One request instead of twenty; an expired job is not waited for any longer: nobody knows if its end will come."""
    job_id = queued(rt, caller.service)
    answer = threads.submit(door.get, f"/v1/jobs/{job_id}", headers=waiting())
    until(lambda: watcher.waiting == 1)

    move(rt, job_id, end)

    done = answer.result(10)
    assert (done.status_code, done.headers["Preference-Applied"]) == (200, "wait=20")
    assert body(done)["state"] == end
    assert watcher.waiting == 0


def test_a_new_job_may_be_waited_for(
    rt: Runtime, door: FlaskClient, watcher: Watcher, threads: ThreadPoolExecutor
) -> None:
    """Its result comes in the answer to the request that made it; what happens on the way does not end the wait."""
    answer: Future[Any] = threads.submit(door.post, "/v1/jobs", json=A_JOB, headers=waiting())
    until(lambda: watcher.waiting == 1)
    job_id = scalar(rt, "SELECT id FROM jobs")

    with rt.db.transaction() as tx:
        advance(tx, [Move(job_id, State.COMPLETED, outputs=[{"url": "https://cdn/1.png", "nsfw": False}])])

    done = answer.result(10)
    assert (done.status_code, done.headers["Preference-Applied"]) == (201, "wait=20")
    assert done.headers["Location"] == f"/v1/jobs/{job_id}"
    assert (body(done)["state"], body(done)["outputs"][0]["url"]) == ("completed", "https://cdn/1.png")


def test_what_happens_before_the_end_does_not_end_a_wait(rt: Runtime, watcher: Watcher, caller: Caller) -> None:
    """Submitted, accepted, looked for: the caller asked for the end."""
    job = processing(rt, caller.service)
    with watcher.watching(job.job_id, only_its_end=True) as patient, watcher.watching(job.job_id) as curious:
        assert patient
        assert curious
        assert curious.wait(10)
        assert not patient.wait(0.0)
        move(rt, job.job_id, State.FAILED)
        assert patient.wait(10)


def test_a_wait_that_is_over_answers_with_the_job_as_it_is(
    rt: Runtime, door: FlaskClient, watcher: Watcher, caller: Caller
) -> None:
    """That is no error: the caller asks again."""
    job_id = queued(rt, caller.service)

    for made in (
        door.get(f"/v1/jobs/{job_id}", headers=waiting(1)),
        door.post("/v1/jobs", json=A_JOB, headers=waiting(0)),
    ):
        assert made.status_code in {200, 201}
        assert body(made)["state"] == "queued"
        assert made.headers["Preference-Applied"] in {"wait=0", "wait=1"}
    assert watcher.waiting == 0


def test_a_job_that_has_ended_is_not_waited_for(
    rt: Runtime, door: FlaskClient, watcher: Watcher, caller: Caller
) -> None:
    """Nor is one that does not exist, or is another's."""
    job_id = queued(rt, caller.service)
    move(rt, job_id, State.CANCELLED)
    watcher.stop()  # whoever tried to wait would not be told that the wish was granted

    answer = door.get(f"/v1/jobs/{job_id}", headers=waiting())

    assert (body(answer)["state"], answer.headers["Preference-Applied"]) == ("cancelled", "wait=20")
    assert door.get(f"/v1/jobs/{uuid4()}", headers=waiting()).status_code == 404


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=20", 20),
        ("wait=0", 0),
        ("wait=25", 25),
        ("wait=26", 25),
        ("wait=" + "9" * 5000, 25),
        ("wait=0000000007", 7),
        ('WAIT = "7"', 7),
        ("respond-async, wait=7", 7),
        ('handling="a, wait=3, \\" b", wait=7 ; x="y, z"', 7),
        ("wait=7,wait=9", 7),
        ("wait=x, wait=9", 9),
        ("", None),
        ("wait", None),
        ("wait=", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=٣", None),
        ("wait=7 8", None),
        ("await=7", None),
        ('handling="wait=7', None),
        ('=,;"\\,,==', None),
        ('"' * 4000, None),
    ],
)
def test_a_wish_is_read_as_its_standard_says(header: str, seconds: int | None, app: Flask) -> None:
    """RFC 7240: several in one header, quoted, with parameters; what is not understood is ignored, never refused."""
    with app.test_request_context(headers={"Prefer": header}):
        assert waits.preferred() == seconds


# Server-sent events


def parsed(text: str) -> dict[str, Any]:
    """One event of a stream."""
    fields = dict(line.split(": ", 1) for line in text.strip().splitlines())
    return fields | {"data": json.loads(fields["data"])}


def test_a_stream_sends_each_event_as_it_happens_and_ends_with_the_job(
    rt: Runtime, door: FlaskClient, watcher: Watcher, caller: Caller
) -> None:
    """The last one brings the job: no other request is needed."""
    job_id = queued(rt, caller.service)

    answer = door.get(f"/v1/jobs/{job_id}/events")
    stream: Iterator[Any] = iter(answer.response)

    def read() -> str:
        return str(next(stream), "utf-8")

    assert answer.headers["Content-Type"] == "text/event-stream"
    assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-cache", "no")
    assert read() == f"retry: {events.RECONNECT_MS}\n\n"
    first = parsed(read())
    assert (first["id"], first["event"]) == ("1", "job.queued")
    assert set(first["data"]) == {"job_id", "seq", "at", "kind", "data"}
    assert watcher.waiting == 1
    move(rt, job_id, State.FAILED)
    last = parsed(read())
    assert (last["id"], last["event"]) == ("2", "job.failed")
    assert (last["data"]["job_id"], last["data"]["seq"], last["data"]["kind"]) == (str(job_id), 2, "job.failed")
    assert last["data"]["job"] == body(door.get(f"/v1/jobs/{job_id}"))
    assert list(stream) == []
    answer.close()
    assert watcher.waiting == 0


@pytest.mark.parametrize(
    ("headers", "query"), [({"Last-Event-ID": "2"}, ""), ({}, "?after=2"), ({"Last-Event-ID": "2"}, "?after=1")]
)
def test_a_stream_goes_on_where_the_client_stopped(
    headers: dict[str, str], query: str, rt: Runtime, door: FlaskClient, caller: Caller
) -> None:
    """Nothing is lost and nothing comes twice, however often the connection breaks."""
    job = processing(rt, caller.service)
    move(rt, job.job_id, State.FAILED)

    text = door.get(f"/v1/jobs/{job.job_id}/events{query}", headers=headers).text

    seen = [parsed(part) for part in text.split("\n\n") if part.startswith("id:")]
    assert [one["event"] for one in seen] == kinds(rt, job.job_id)[2:]
    assert "job" in seen[-1]["data"]


def test_a_client_that_has_seen_all_is_told_to_stop(rt: Runtime, door: FlaskClient, caller: Caller) -> None:
    """An EventSource reconnects after every end of a stream, but not after 204."""
    job_id = queued(rt, caller.service)
    move(rt, job_id, State.CANCELLED)

    assert door.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "2"}).status_code == 204


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "٣", "1" * 5000, " 1", "1e3", "null"])
def test_what_is_no_event_is_refused(after: str, rt: Runtime, door: FlaskClient, caller: Caller) -> None:
    """422, naming where it stood; to begin at the beginning would tell everything twice."""
    url = f"/v1/jobs/{queued(rt, caller.service)}/events"

    by_query = door.get(url, query_string={"after": after})
    assert (by_query.status_code, body(by_query)["errors"][0]["field"]) == (422, "after")
    if after.isascii() and after.strip() == after:
        by_header = door.get(url, headers={"Last-Event-ID": after})
        assert (by_header.status_code, body(by_header)["errors"][0]["field"]) == (422, "Last-Event-ID")


def test_the_events_so_far_can_be_had_at_once(rt: Runtime, door: FlaskClient, caller: Caller) -> None:
    """For a client that only wants to look, and for those that cannot read a stream."""
    job = processing(rt, caller.service)
    url = f"/v1/jobs/{job.job_id}/events"
    as_json = {"Accept": "application/json"}

    items = body(door.get(url, headers=as_json))["items"]

    assert [item["kind"] for item in items] == kinds(rt, job.job_id)
    assert [item["seq"] for item in items] == [1, 2, 3]
    assert body(door.get(f"{url}?after=2", headers=as_json))["items"] == items[2:]
    assert body(door.get(f"{url}?after=999999999", headers=as_json)) == {"items": []}


def test_others_events_do_not_exist(
    rt: Runtime, door: FlaskClient, make_caller: Callable[..., Caller], watcher: Watcher
) -> None:
    """A service sees its own jobs only."""
    other = queued(rt, make_caller("blog").service)

    for job_id in (other, uuid4(), "x"):
        assert door.get(f"/v1/jobs/{job_id}/events").status_code == 404
    assert watcher.waiting == 0


def test_a_silent_stream_is_kept_alive_and_not_held_for_ever(
    rt: Runtime, door: FlaskClient, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routers cut what is silent; and a client that went away unseen would keep its place."""
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(events, "LONGEST_S", 0.1)

    text = door.get(f"/v1/jobs/{queued(rt, caller.service)}/events").text

    assert text.count("event: ") == 1
    assert text.count(":") > text.count("event: ")
    assert "\n\n: " in text


# Places


def test_beyond_the_places_nobody_waits(rt: Runtime, door: FlaskClient, watcher: Watcher, caller: Caller) -> None:
    """Whoever waits holds a thread; callbacks need one too. Waits are answered at once, streams asked to come again."""
    job_id = queued(rt, caller.service)
    taken = [watcher.watch(uuid4()) for _ in range(places(rt.settings.web_threads))]
    assert None not in taken
    assert 250 <= len(taken) < rt.settings.web_threads

    answer = door.get(f"/v1/jobs/{job_id}", headers=waiting())
    stream = door.get(f"/v1/jobs/{job_id}/events")

    assert (answer.status_code, body(answer)["state"]) == (200, "queued")
    assert "Preference-Applied" not in answer.headers
    assert (stream.status_code, body(stream)["code"]) == (503, "busy")
    assert int(stream.headers["Retry-After"]) > 0
    watcher.leave(taken[0])  # type: ignore[arg-type]
    with watcher.watching(job_id) as watch:
        assert watch


def test_one_statement_asks_for_all_and_none_when_nobody_waits(rt: Runtime, watcher: Watcher, caller: Caller) -> None:
    """Two hundred who wait cost the database no more than one."""
    asked: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            asked.append(statement)

    watching = Watcher(rt.db, 20)
    jobs = [queued(rt, caller.service, f"{number}") for number in range(5)]
    watches = [watching.watch(job_id) for job_id in jobs for _ in range(2)]
    for watch in watches:
        assert watch
        assert watch.wait(10)  # the thread's own first look

    sql_event.listen(rt.db.engine, "before_cursor_execute", count)
    try:
        assert watching.look() is not None
        assert len(asked) == 1
        for watch in watches:
            assert watch
            watching.leave(watch)
        assert watching.look() is None
        assert len(asked) == 1
    finally:
        sql_event.remove(rt.db.engine, "before_cursor_execute", count)


def test_waits_outlast_an_absence_of_the_database(rt: Runtime, make_rt: Callable[..., Runtime], caller: Caller) -> None:
    """They end in their time, or with the job once the database is there again: the thread only asks again."""
    job_id = queued(rt, caller.service)
    with proxy(rt.settings.database_url) as between:
        settings = load({"DATABASE_URL": between.url(rt.settings.database_url)})
        database = Database(settings.database_url, name="beyond", pool_size=1, patience_s=1)
        watching = Watcher(database, 20)
        with watching.watching(job_id, seen=1) as watch:
            assert watch
            between.refuse()
            move(rt, job_id, State.CANCELLED)
            assert not watch.wait(0.2)
            between.come_back()
            assert watch.wait(20)
        database.close()


def test_a_stream_outlasts_an_absence_of_the_database(rt: Runtime, caller: Caller) -> None:
    """A client that is told of it would give up for good: an EventSource does, after any answer but a stream."""
    job_id = queued(rt, caller.service)
    with proxy(rt.settings.database_url) as between:
        settings = load({"DATABASE_URL": between.url(rt.settings.database_url)})
        database = Database(settings.database_url, name="beyond", pool_size=2, patience_s=1)
        app = create_app(replace(rt, db=database))
        path = f"/v1/jobs/{job_id}/events"
        answer = app.test_client().get(path, headers={"Authorization": f"Bearer {caller.key}"})
        stream: Iterator[Any] = iter(answer.response)
        assert next(stream).startswith(b"retry: ")

        between.refuse()
        assert next(stream).startswith(b": ")
        between.come_back()
        until(lambda: b"event: job.queued" in next(stream))

        answer.close()
        app.extensions["watcher"].stop()
        database.close()


def test_all_waits_end_when_the_process_is_to_stop(
    rt: Runtime, door: FlaskClient, watcher: Watcher, caller: Caller, threads: ThreadPoolExecutor
) -> None:
    """Each is answered with the job as it is, and no new one begins: the web server leaves when all are answered."""
    job_id = queued(rt, caller.service)
    wait = threads.submit(door.get, f"/v1/jobs/{job_id}", headers=waiting(25))
    stream = threads.submit(lambda: door.get(f"/v1/jobs/{job_id}/events").text)
    until(lambda: watcher.waiting == 2)

    watcher.stop()

    assert body(wait.result(10))["state"] == "queued"
    assert stream.result(10).count("event: ") == 1
    assert body(door.get(f"/v1/jobs/{job_id}", headers=waiting(25)))["state"] == "queued"
    assert door.get(f"/v1/jobs/{job_id}/events").status_code == 503


# Through the real server


def test_the_server_sends_every_event_at_once(rt: Runtime, web: str, caller: Caller) -> None:
    """It holds nothing back, and what is read here has been sent before the next thing happened."""
    job = processing(rt, caller.service)
    parts = urlsplit(web)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.request("GET", f"/v1/jobs/{job.job_id}/events", headers={"Authorization": f"Bearer {caller.key}"})
    answer = connection.getresponse()
    assert answer.status == 200

    def event() -> dict[str, Any]:
        lines = []
        while (line := answer.readline()) != b"\n":
            assert line, "the stream broke off"
            lines.append(line.decode())
        return parsed("".join(lines))

    assert answer.readline().startswith(b"retry: ")
    assert answer.readline() == b"\n"
    assert [event()["event"] for _ in range(3)] == kinds(rt, job.job_id)

    raw = encoded(prediction(job))
    assert request("POST", f"{web}/webhooks/wavespeed/{job.token}", raw, signed(WEBHOOK_SECRET, raw)).status == 204

    last = event()
    assert (last["event"], last["data"]["job"]["state"]) == ("job.completed", "completed")
    assert answer.read() == b""
    connection.close()
    assert state(rt, job.job_id) == State.COMPLETED


def test_the_server_answers_a_wait_when_the_callback_has_come(
    rt: Runtime, web: str, caller: Caller, threads: ThreadPoolExecutor
) -> None:
    """The whole way: the caller waits at one request while the provider's comes in by another."""
    job = processing(rt, caller.service)
    url = f"{web}/v1/jobs/{job.job_id}"
    answers = [threads.submit(request, "GET", url, None, waiting(25), key=caller.key) for _ in range(4)]

    raw = encoded(prediction(job))
    assert request("POST", f"{web}/webhooks/wavespeed/{job.token}", raw, signed(WEBHOOK_SECRET, raw)).status == 204

    for answer in answers:
        assert answer.result(20).json["state"] == "completed"
