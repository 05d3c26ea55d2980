"""The inbox of callbacks at the dashboard: found, looked at byte for byte, foretold and replayed."""

from collections.abc import Callable

import pytest

from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.store import audit
from pipeline.store.callbacks import SHORT_BYTES
from pipeline.web.dashboard.words import size
from tests.conftest import Caller
from tests.factories import encoded, prediction, processing, scalar, state
from tests.test_receiver import deliver, stored
from tests.test_replay import every_kind, forgotten, tables
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]

EVIL = "<script>alert(1)</script>"


def listed(text: str) -> int:
    """How many callbacks a list shows."""
    return text.count('<td><a href="/callbacks/')


def test_the_inbox_shows_each_callback_with_its_verdict_and_what_that_means(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller
) -> None:
    every_kind(rt, web, caller)
    text = visitor().get("/callbacks").text
    assert listed(text) == 11
    for verdict, count in (("applied", 1), ("duplicate", 1), ("late", 1), ("stale", 1), ("suspicious", 1)):
        assert text.count(f">{verdict}</span>") == count
    assert text.count(">orphan</span>") == 4
    assert "It brought news, and moved its job." in text
    assert '<td data-name="Says">completed</td>' in text


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("verdict=orphan", 4),
        ("verdict=applied", 1),
        ("verdict=", 11),
        ("job={job}", 3),
        ("prediction={task}", 5),
        ("job={job}&verdict=late", 1),
        ("since=1h", 11),
        ("until=1h", 0),
        ("since=2001-01-01T00:00&until=9999-12-31T23:59", 11),
    ],
)
def test_filters_find_what_they_say(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller, query: str, count: int
) -> None:
    every_kind(rt, web, caller)
    first = stored(rt)[0]
    text = visitor().get(f"/callbacks?{query.format(job=first.job_id, task=first.prediction_id)}").text
    assert listed(text) == count


@pytest.mark.parametrize(
    "query",
    [
        "verdict=good",
        "job=x",
        "since=soon",
        "until=999999d",
        "since=0001-01-01T00:00%2B14:00",
        "prediction=%00",
        "prediction=" + "x" * 501,
        "verdict=%ff%ed%a0%80",
    ],
)
@pytest.mark.parametrize("path", ["/callbacks", "/callbacks/dry-run"])
def test_a_filter_that_makes_no_sense_is_named(visitor: Visitors, path: str, query: str) -> None:
    answer = visitor().get(f"{path}?{query}")
    assert answer.status_code == 422
    assert "Some fields are wrong" in answer.text
    assert f"{query.partition('=')[0]}: " in answer.text


@pytest.mark.parametrize(
    "path", ["/callbacks?before=x", "/callbacks/x", "/callbacks/x/body", "/callbacks/dry-run?after=1"]
)
def test_an_id_of_nothing_is_not_found(visitor: Visitors, path: str) -> None:
    assert visitor().get(path).status_code == 404
    assert visitor().get("/callbacks/019a0000-0000-7000-8000-000000000000").status_code == 404


def test_pages_go_on_where_the_last_ended(visitor: Visitors, rt: Runtime, web: str, caller: Caller) -> None:
    job = processing(rt, caller.service)
    for _ in range(53):
        assert deliver(web, job.token, prediction(job)).status == 204
    ann = visitor()
    text = ann.get("/callbacks?verdict=duplicate").text
    assert listed(text) == 50
    older = text.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert listed(ann.get(older).text) == 2


def test_a_callback_is_shown_as_it_came_and_its_token_is_not(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller
) -> None:
    job = processing(rt, caller.service)
    body = encoded(prediction(job, urls={"webhook": f"https://us.example/webhooks/wavespeed/{job.token}"}, note=EVIL))
    assert deliver(web, job.token, body).status == 204
    (callback,) = stored(rt)
    ann = visitor()
    text = ann.get(f"/callbacks/{callback.id}").text
    assert "It brought news, and moved its job." in text
    assert "webhook-signature" in text
    assert callback.headers["webhook-signature"] in text
    assert str(job.job_id) in text
    assert "&lt;script&gt;alert(1)" in text
    assert EVIL not in text
    masked = body.replace(job.token.encode(), b"*" * len(job.token))
    saved = ann.get(f"/callbacks/{callback.id}/body")
    assert saved.content == masked
    assert saved.headers["content-disposition"].startswith("attachment")
    for page in ("/callbacks", f"/callbacks/{callback.id}", f"/callbacks/{callback.id}/body", "/callbacks/dry-run"):
        assert job.token not in ann.get(page).text


def test_a_body_that_is_no_text_is_shown_in_hexadecimal(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller
) -> None:
    job = processing(rt, caller.service)
    assert deliver(web, job.token, b"\x00\xff{<b>").status == 400
    (callback,) = stored(rt)
    ann = visitor()
    text = ann.get(f"/callbacks/{callback.id}").text
    assert "000000  00 ff 7b 3c 62 3e" in text
    assert "..{&lt;b&gt;" in text
    assert "It cannot be read. The body is not JSON." in text
    assert ann.get(f"/callbacks/{callback.id}/body").content == b"\x00\xff{<b>"


def test_of_a_long_body_the_page_shows_the_beginning(visitor: Visitors, rt: Runtime, web: str, caller: Caller) -> None:
    job = processing(rt, caller.service)
    body = encoded(prediction(job, note="x" * SHORT_BYTES + "the end"))
    assert deliver(web, job.token, body).status == 204
    (callback,) = stored(rt)
    ann = visitor()
    text = ann.get(f"/callbacks/{callback.id}").text
    assert "this is its beginning" in text
    assert "the end" not in text
    assert ann.get(f"/callbacks/{callback.id}/body").content == body
    assert size(len(body)) in ann.get("/callbacks").text


def test_what_a_stranger_wrote_is_text_and_nothing_else(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller
) -> None:
    job = processing(rt, caller.service)
    body = prediction(job, "failed", error=EVIL, model=EVIL, id=EVIL) | {"status": EVIL}
    assert deliver(web, "nobodys", body).status == 204
    assert deliver(web, job.token, body).status == 204
    ann = visitor()
    for callback in stored(rt):
        assert EVIL not in ann.get(f"/callbacks/{callback.id}").text
    for path in ("/callbacks", "/callbacks/dry-run", "/callbacks?verdict=orphan&since=%3Cscript%3E1s"):
        assert EVIL not in ann.get(path).text
        assert "<script>1s" not in ann.get(path).text


def test_a_dry_run_lists_the_differences_first_and_changes_nothing(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller
) -> None:
    every_kind(rt, web, caller)
    viewer = visitor(password=VIEWERS_PASSWORD)
    viewer.get("/callbacks")
    before = tables(rt)
    text = viewer.get("/callbacks/dry-run").text
    assert tables(rt) == before
    different, _, same = text.partition("taken as before")
    assert "Taken otherwise than when they came" in different
    assert different.count('<td data-name="Today"><span class="badge good">applied') == 2
    assert same.count('<td data-name="Today">') == 9
    assert "<button" not in different.partition("</header>")[2].replace("<button data-look>", "")


def test_a_window_that_was_foretold_is_replayed(visitor: Visitors, rt: Runtime, web: str, caller: Caller) -> None:
    every_kind(rt, web, caller)
    ann = visitor()
    ann.get("/callbacks/dry-run?verdict=orphan&since=1h")
    fields = {"back": "/callbacks/dry-run?verdict=orphan&since=1h", "verdict": "orphan", "since": "1h"}
    text = ann.post("/callbacks/replay", fields).text
    assert "4 replayed. Today: 2 applied, 2 orphan." in text
    assert "as it was taken when it came" in text
    assert scalar(rt, "SELECT count(*) FROM jobs WHERE state = 'completed'") == 2
    with rt.db.transaction() as tx:
        entry = audit.newest(tx)[0]
    assert (entry.who, entry.action, entry.target, entry.outcome) == ("Ann", "callback.replay", "4 callbacks", "done")
    assert entry.data == {"verdict": "orphan", "since": "1h"}


def test_one_is_replayed_from_its_page(visitor: Visitors, rt: Runtime, web: str, caller: Caller) -> None:
    job = forgotten(rt, web, caller)
    (callback,) = stored(rt)
    ann = visitor()
    ann.get(f"/callbacks/{callback.id}")
    for said in ("Replayed. Today it is applied.", "Replayed. Today it is duplicate."):
        text = ann.post(f"/callbacks/{callback.id}/replay", {"back": f"/callbacks/{callback.id}"}).text
        assert said in text
    assert state(rt, job.job_id) == State.COMPLETED
    assert "What people did with it" in text
    with rt.db.transaction() as tx:
        entries = audit.newest(tx, target=str(callback.id))
    assert [entry.outcome for entry in entries] == ["done", "done"]


def test_all_there_ever_was_is_not_replayed_by_mistake(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller
) -> None:
    job = forgotten(rt, web, caller)
    ann = visitor()
    ann.get("/callbacks")
    assert "Say which callbacks" in ann.post("/callbacks/replay", {"back": "/callbacks"}).text
    assert state(rt, job.job_id) == State.PROCESSING


def test_who_may_only_look_replays_nothing(visitor: Visitors, rt: Runtime, web: str, caller: Caller) -> None:
    job = forgotten(rt, web, caller)
    (callback,) = stored(rt)
    viewer = visitor(password=VIEWERS_PASSWORD)
    assert ">Replay<" not in viewer.get(f"/callbacks/{callback.id}").text
    for path in (f"/callbacks/{callback.id}/replay", "/callbacks/replay"):
        assert "You may look, and change nothing" in viewer.post(path, {"verdict": "orphan", "back": "/callbacks"}).text
    assert state(rt, job.job_id) == State.PROCESSING
