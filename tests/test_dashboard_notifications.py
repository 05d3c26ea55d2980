"""Notifications at the dashboard: dead letters found and sent again, receivers that fail."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest

from pipeline.runtime import Runtime
from pipeline.store import audit, deliveries, endpoints
from pipeline.store.deliveries import Wanted
from pipeline.store.tables import new_id
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import execute, queued, scalar, until
from tests.receivers import Receiver, receiving
from tests.test_notify import failed, told_at
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give somebody who wants to be told."""
    with receiving() as one:
        yield one


def placed(rt: Runtime, state: str, count: int = 1, **fields: Any) -> list[UUID]:
    """Notifications in a state, the oldest first."""
    found = []
    for n in range(count):
        found.append(new_id())
        facts = {
            "id": found[-1],
            "event": "job.failed",
            "job_id": None,
            "seq": None if fields.get("job_id") is None else n + 1,
            "state": state,
            "endpoint": "shop https://shop.example",
            "error": None,
            "data": "{}",
            **fields,
        }
        execute(
            rt,
            """INSERT INTO notifications (id, event, job_id, seq, state, endpoint, error, data, due_at, attempts)
               VALUES (:id, :event, :job_id, :seq, :state, :endpoint, :error, CAST(:data AS jsonb),
                       CASE WHEN :state = 'pending' THEN clock_timestamp() + interval '1 hour' END, 2)""",
            **facts,
        )
    return found


def listed(text: str) -> int:
    return text.count('<td><a href="/notifications/')


def states(rt: Runtime) -> dict[str, int]:
    found: dict[str, int] = scalar(
        rt, "SELECT jsonb_object_agg(state, n) FROM (SELECT state, count(*) n FROM notifications GROUP BY 1) x"
    )
    return found


def test_dead_letters_are_named_first_and_sent_again_after_a_count(visitor: Visitors, rt: Runtime) -> None:
    placed(rt, "dead", 3, error="answered 500")
    placed(rt, "dead", 2, endpoint="press https://press.example")
    placed(rt, "delivered", 2)
    ann = visitor()
    text = ann.get("/notifications").text
    assert listed(text) == 7
    assert "5 given up." in text
    text = ann.get("/notifications?state=dead&receiver=shop").text
    assert listed(text) == 3
    assert "answered 500" in text
    assert "Send 3 again" in text
    fields = {"back": "/notifications?state=dead", "receiver": "shop", "state": "dead"}
    text = ann.post("/notifications/replay", fields).text
    assert "3 are sent again." in text
    assert listed(text) == 2
    assert states(rt) == {"pending": 3, "dead": 2, "delivered": 2}
    with rt.db.transaction() as tx:
        entry = audit.newest(tx)[0]
    assert (entry.action, entry.target, entry.outcome) == ("notification.replay", "3 notifications", "done")
    assert entry.data == {"state": "dead", "receiver": "shop"}


def test_only_dead_ones_are_sent_again_together(visitor: Visitors, rt: Runtime) -> None:
    """Whatever a form says: a thousand callers must not be told twice by one click."""
    placed(rt, "delivered", 2)
    ann = visitor()
    ann.get("/notifications")
    assert "0 are sent again." in ann.post("/notifications/replay", {"state": "delivered"}).text
    assert states(rt) == {"delivered": 2}


def test_one_is_shown_with_each_try_and_sent_again(
    visitor: Visitors, rt: Runtime, caller: Caller, receiver: Receiver, start_worker: Callable[..., Worker]
) -> None:
    receiver.answer = lambda _: 500
    told_at(rt, caller, receiver.url)
    failed(rt, caller)
    worker = start_worker()
    worker.sweep()
    until(lambda: scalar(rt, "SELECT count(*) FROM deliveries") >= 1)
    one = scalar(rt, "SELECT id FROM notifications")
    ann = visitor()
    text = ann.get(f"/notifications/{one}").text
    assert "answered 500" in text
    assert "webhook-signature: v1," in text
    assert "&#34;job.failed&#34;" in text
    receiver.answer = lambda _: 200
    assert "It is sent again." in ann.post(f"/notifications/{one}/replay", {"back": f"/notifications/{one}"}).text
    worker.sweep()
    until(lambda: states(rt) == {"delivered": 1})
    text = ann.get(f"/notifications/{one}").text
    assert "answered 200" in text
    assert "Send it once more? The receiver has it." in text


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 7),
        ("state=pending", 2),
        ("state=dead", 3),
        ("state=unaddressed", 1),
        ("state=delivered", 1),
        ("event=job.expired", 1),
        ("service=shop", 2),
        ("service=nobody", 0),
        ("job={job}", 2),
        ("job={job}&state=dead", 0),
        ("receiver=press", 1),
        ("since=1h", 7),
        ("state=dead&since=1h", 3),
        ("state=dead&until=1h", 0),
        ("until=1h", 0),
        ("since=0001-01-01T00:00&until=9999-12-31T23:59", 7),
    ],
)
def test_filters_find_what_they_say(visitor: Visitors, rt: Runtime, caller: Caller, query: str, count: int) -> None:
    job_id = queued(rt, caller.service)
    placed(rt, "pending", 2, job_id=job_id)
    placed(rt, "dead", 2)
    placed(rt, "dead", endpoint="press https://press.example")
    placed(rt, "unaddressed", event="job.expired")
    placed(rt, "delivered")
    assert listed(visitor().get(f"/notifications?{query.format(job=job_id)}").text) == count


@pytest.mark.parametrize(
    ("query", "status"),
    [("state=good", 422), ("job=x", 422), ("since=soon", 422), ("event=%00", 422), ("before=x", 404)],
)
def test_what_makes_no_sense_is_named(visitor: Visitors, query: str, status: int) -> None:
    answer = visitor().get(f"/notifications?{query}")
    assert answer.status_code == status
    if status == 422:
        assert f"{query.partition('=')[0]}: " in answer.text
    assert visitor().get("/notifications/x").status_code == 404
    assert visitor().get(f"/notifications/{new_id()}").status_code == 404


@pytest.mark.parametrize("state", ["dead", "pending", "delivered"])
def test_pages_go_on_where_the_last_ended(visitor: Visitors, rt: Runtime, state: str) -> None:
    placed(rt, state, 53)
    ann = visitor()
    text = ann.get(f"/notifications?state={state}").text
    assert listed(text) == 50
    older = text.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert listed(ann.get(older).text) == 3


def test_a_page_looks_at_so_many_and_says_where_to_go_on(rt: Runtime) -> None:
    """A filter that nothing fits must not read a million rows."""
    execute(
        rt,
        """INSERT INTO notifications (id, event, state, endpoint)
           SELECT CAST(lpad(to_hex(n), 32, '0') AS uuid), 'job.failed', 'delivered', 'shop https://shop.example'
           FROM generate_series(1, :many) n""",
        many=deliveries.AT_MOST + 10,
    )
    execute(
        rt,
        "INSERT INTO notifications (id, event, state) VALUES (:id, 'job.failed', 'unaddressed')",
        id=UUID(int=0),
    )
    wanted = Wanted(state="unaddressed")
    with rt.db.transaction() as tx:
        some = deliveries.page(tx, wanted, limit=10)
        assert not some.rows
        assert some.next == UUID(int=11)
        rest = deliveries.page(tx, wanted, before=some.next, limit=10)
    assert [row.id for row in rest.rows] == [UUID(int=0)]
    assert rest.next is None


def test_a_receiver_that_is_off_is_shown_and_switched_on(visitor: Visitors, rt: Runtime) -> None:
    name = "shop https://shop.example"
    with rt.db.transaction() as tx:
        endpoints.failed(tx, {name: [EVIL] * 30}, days_s=-1.0, at_least=1, probe_s=3600.0)
    placed(rt, "pending", 4)
    ann = visitor()
    text = ann.get("/notifications").text
    assert "Receivers that fail" in text
    assert EVIL not in text
    assert "Switch on" in text
    assert '<td class="n" data-name="Waiting">4</td>' in text
    answer = ann.post("/notifications/endpoints/enable", {"receiver": name, "back": "/notifications"})
    assert f"{name} is on." in answer.text
    assert "Receivers that fail" not in answer.text
    assert "is switched off" in ann.post("/notifications/endpoints/enable", {"receiver": name}).text
    with rt.db.transaction() as tx:
        assert [(entry.action, entry.outcome) for entry in audit.newest(tx, target=name)] == [
            ("endpoint.enable", "not_allowed_now"),
            ("endpoint.enable", "done"),
        ]


def test_what_strangers_wrote_is_text_and_nothing_else(visitor: Visitors, rt: Runtime) -> None:
    (one,) = placed(rt, "dead", error=EVIL, endpoint=f"shop https://{EVIL}", data=json.dumps({"reason": EVIL}))
    execute(
        rt,
        """INSERT INTO deliveries (notification_id, number, target, request, status, answer, duration_ms, error)
           VALUES (:id, 1, :evil, CAST(:request AS jsonb), 500, :evil, 12, :evil)""",
        id=one,
        evil=EVIL,
        request=json.dumps({"headers": {EVIL: EVIL}, "body": EVIL}),
    )
    ann = visitor()
    for path in ("/notifications", f"/notifications/{one}", "/notifications?state=dead&event=%3Cscript%3E"):
        text = ann.get(path).text
        assert EVIL not in text
        assert 'value="<script>' not in text
    assert "&lt;script&gt;alert(1)" in ann.get(f"/notifications/{one}").text


def test_who_may_only_look_sends_nothing_again(visitor: Visitors, rt: Runtime) -> None:
    (one,) = placed(rt, "dead")
    viewer = visitor(password=VIEWERS_PASSWORD)
    for path in ("/notifications?state=dead", f"/notifications/{one}"):
        assert "Send " not in viewer.get(path).text
    for path in (f"/notifications/{one}/replay", "/notifications/replay", "/notifications/endpoints/enable"):
        assert "You may look, and change nothing" in viewer.post(path, {"back": "/notifications"}).text
    assert states(rt) == {"dead": 1}
