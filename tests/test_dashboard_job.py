"""One job's page: everything that is known of it, and whatever can be done with it."""

import asyncio
import html
import json
import re
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from pipeline.jobs import FINAL, State
from pipeline.outputs import Review
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import audit, services
from pipeline.store.moves import Move, advance
from pipeline.store.outbox import Told
from tests.conftest import Caller
from tests.factories import (
    MODEL,
    encoded,
    execute,
    happened,
    kept,
    placed,
    prediction,
    processing,
    queued,
    row,
    scalar,
    state,
    unknown,
)
from tests.receivers import receiving
from tests.test_receiver import deliver
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]

EVIL = '"><script>alert("x")</script>'


def acts(rt: Runtime, job_id: UUID) -> list[tuple[str, str, str | None]]:
    """What the audit has of a job."""
    with rt.db.transaction() as tx:
        return [(one.who, one.action, one.outcome) for one in audit.newest(tx, target=str(job_id))]


def can(text: str) -> set[str]:
    """What a page offers to do with its job."""
    return set(re.findall(r'action="/jobs/[0-9a-f-]{36}/(\w+)"', text))


def task(rt: Runtime) -> str:
    """A task at the provider that is no job's."""

    async def made() -> str:
        provider = rt.provider()
        try:
            return (await provider.submit(MODEL, {"prompt": "a lighthouse"}, webhook=None)).id
        finally:
            await provider.close()

    return asyncio.run(made())


@pytest.mark.parametrize("at", State)
def test_every_state_has_a_page_with_what_it_allows(visitor: Visitors, rt: Runtime, caller: Caller, at: State) -> None:
    job_id = placed(rt, caller.service, at)
    answer = visitor().get(f"/jobs/{job_id}")
    assert answer.status_code == 200
    assert can(answer.text) == (
        {"cancel"}
        if at is State.QUEUED
        else {"decide"}
        if at is State.UNKNOWN
        else {"retry"}
        if at in {*FINAL, State.EXPIRED}
        else set()
    )
    assert ("the provider has no way to stop" in answer.text) == (
        at in {State.SUBMITTING, State.PROCESSING, State.UNKNOWN}
    )
    assert ("data-every" in answer.text) == (at not in {*FINAL, State.EXPIRED})


@pytest.mark.parametrize("job_id", ["odd", "00000000-0000-0000-0000-000000000000", "%00", EVIL])
def test_a_job_that_is_not_there_is_no_page(visitor: Visitors, job_id: str) -> None:
    ann = visitor()
    ann.get("/jobs")
    for path in ("", "/evidence.json"):
        answer = ann.get(f"/jobs/{job_id}{path}")
        assert answer.status_code == 404
        assert EVIL not in answer.text


def test_the_page_tells_the_whole_story_without_a_secret(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller
) -> None:
    job = processing(rt, caller.service, "a lighthouse")
    secret = "https://cdn.example.com/x/1.png?X-Signature=0123abc"
    body = encoded(prediction(job, outputs=[secret]))
    assert deliver(web, job.token, body).status == 204
    assert deliver(web, job.token, body).status == 204
    text = html.unescape(visitor().get(f"/jobs/{job.job_id}").text)
    told = re.findall(r"<strong>([^<]+)</strong>", text[text.index("Timeline") :])
    assert told[:3] == ["Accepted", "Submission 1 began", "Submission 1: the provider took it"]
    assert told.count("Callback from the provider") == 2
    assert told.index("Callback from the provider") < told.index("Completed")
    for words in ("applied", "duplicate", "webhook-signature: v3,", "a lighthouse", job.prediction_id, "$0.12"):
        assert words in text
    assert job.token not in text
    shown = text.replace(f'href="{secret}"', "")
    assert "0123abc" not in shown
    assert "https://cdn.example.com/x/1.png?…" in shown


def test_outputs_are_shown_as_what_they_are(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job_id = kept(rt, caller.service)
    ann = visitor()
    file = f"/files/{job_id}/0"
    for content_type, words in (
        ("image/png", f'<img class="large" src="{file}" alt="a lighthouse"'),
        ("video/mp4", f'<video class="large" src="{file}" controls'),
        ("audio/mpeg", f'<audio src="{file}" controls'),
        ("application/zip", f'href="{file}" download'),
        ("image/svg+xml", f'href="{file}" download'),
    ):
        execute(rt, "UPDATE assets SET content_type = :type", type=content_type)
        assert words in ann.get(f"/jobs/{job_id}").text


def test_an_output_that_is_a_text_is_shown_as_one(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.COMPLETED, outputs=[{"value": f"two mills {EVIL}", "nsfw": None}])])
    text = visitor().get(f"/jobs/{job.job_id}").text
    assert "two mills" in text
    assert EVIL not in text


@pytest.mark.parametrize(
    ("facts", "words", "leads"),
    [
        (
            "state = 'pending', due_at = now() + interval '1 hour', error = 'answered 503'",
            "The last try failed: answered 503",
            True,
        ),
        ("state = 'pending', due_at = NULL", "Nobody fetches it", True),
        ("state = 'lost', due_at = NULL, error = 'It is not there.'", "It is lost:", False),
        ("review = 'quarantined'", "It was flagged as unsafe and is not shown", False),
        ("review = 'purged'", "a person removed it for good", False),
    ],
)
def test_an_output_that_cannot_be_shown_says_why(
    visitor: Visitors, rt: Runtime, caller: Caller, facts: str, words: str, leads: bool
) -> None:
    job_id = kept(rt, caller.service)
    execute(rt, f"UPDATE assets SET {facts}")
    text = visitor().get(f"/jobs/{job_id}").text
    assert words in text
    assert f"/files/{job_id}/0" not in text
    assert ('rel="noreferrer noopener" target="_blank"' in text) == leads


def test_an_address_that_is_a_script_is_no_link(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.COMPLETED, outputs=[{"url": "javascript:alert(1)", "nsfw": None}])])
    assert 'href="javascript' not in visitor().get(f"/jobs/{job.job_id}").text


def test_a_queued_job_is_taken_back(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job_id = queued(rt, caller.service)
    ann = visitor()
    ann.get(f"/jobs/{job_id}")
    answer = ann.post(f"/jobs/{job_id}/cancel")
    assert "The job is cancelled." in answer.text
    assert state(rt, job_id) == State.CANCELLED
    assert acts(rt, job_id) == [("Ann", "job.cancel", "done")]
    assert "Ann asked for job.cancel (dashboard)" in answer.text


def test_what_is_under_way_is_not_cancelled_and_the_page_says_why(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    job = processing(rt, caller.service)
    ann = visitor()
    page = f"/jobs/{job.job_id}"
    ann.get(page)
    answer = ann.post(f"{page}/cancel", {"back": page})
    assert answer.url.path == page
    assert "has no way to cancel" in answer.text
    assert state(rt, job.job_id) == State.PROCESSING
    assert acts(rt, job.job_id) == [("Ann", "job.cancel", "not_allowed_now")]


def test_a_retry_leads_to_the_new_job_and_a_form_sent_twice_makes_one(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    job_id = placed(rt, caller.service, State.CANCELLED)
    ann = visitor()
    (seen,) = re.findall(r'name="seen" value="(\d+)"', ann.get(f"/jobs/{job_id}").text)
    first = ann.post(f"/jobs/{job_id}/retry", {"seen": seen})
    second = ann.post(f"/jobs/{job_id}/retry", {"seen": seen})
    assert first.url.path == second.url.path
    new_id = UUID(first.url.path.rpartition("/")[2])
    assert (row(rt, new_id).retry_of, row(rt, new_id).service) == (job_id, caller.service.name)
    assert scalar(rt, "SELECT count(*) FROM jobs") == 2
    assert f'href="/jobs/{job_id}"' in first.text, "it names the job that it repeats"
    assert f'href="/jobs/{new_id}"' in ann.get(f"/jobs/{job_id}").text
    (again,) = re.findall(r'name="seen" value="(\d+)"', ann.get(f"/jobs/{job_id}").text)
    assert ann.post(f"/jobs/{job_id}/retry", {"seen": again}).url.path != first.url.path


def test_a_held_job_says_what_each_decision_costs_and_names_the_candidates(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    job = unknown(rt, caller.service)
    execute(rt, "UPDATE jobs SET held_at = now(), held_reason = '2 tasks may be it'")
    execute(
        rt,
        "INSERT INTO events (job_id, seq, kind, data) VALUES (:id, 99, 'attempt.looked_for', :data)",
        id=job.job_id,
        data=json.dumps({"candidates": ["task-one", EVIL], "listed": 2}),
    )
    text = visitor().get(f"/jobs/{job.job_id}").text
    assert "Held for a person: 2 tasks may be it." in text
    assert "then both are paid" in text
    assert 'name="task" value="task-one"' in text
    assert EVIL not in text
    assert text.count("data-asks=") >= 4, "nothing is decided without a question"


def test_a_person_adopts_a_task(visitor: Visitors, rt: Runtime, caller: Caller, sandbox: Sandbox) -> None:
    job, theirs = unknown(rt, caller.service), task(rt)
    ann = visitor()
    page = f"/jobs/{job.job_id}"
    ann.get(page)
    for odd, words in (
        ("", "Must be a task"),
        ("x" * 300, "Must be a task"),
        ("nosuchtask", "knows no task nosuchtask"),
    ):
        assert words in html.unescape(ann.post(f"{page}/decide", {"decision": "adopt", "task": odd, "back": page}).text)
        assert state(rt, job.job_id) == State.UNKNOWN
    answer = ann.post(f"{page}/decide", {"decision": "adopt", "task": f" {theirs} "})
    assert "The task is this job's now." in html.unescape(answer.text)
    assert row(rt, job.job_id).prediction_id == theirs
    assert acts(rt, job.job_id)[0] == ("Ann", "job.decide", "done")


@pytest.mark.parametrize(("decision", "becomes"), [("resubmit", State.QUEUED), ("give_up", State.FAILED)])
def test_a_person_submits_again_or_gives_up(
    visitor: Visitors, rt: Runtime, caller: Caller, decision: str, becomes: State
) -> None:
    job = unknown(rt, caller.service)
    ann = visitor()
    ann.get(f"/jobs/{job.job_id}")
    ann.post(f"/jobs/{job.job_id}/decide", {"decision": decision})
    assert state(rt, job.job_id) == becomes
    assert acts(rt, job.job_id) == [("Ann", "job.decide", "done")]


def test_no_decision_is_none(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job = unknown(rt, caller.service)
    ann = visitor()
    page = f"/jobs/{job.job_id}"
    ann.get(page)
    for fields in ({}, {"decision": "burn"}):
        assert "Choose one of the three." in ann.post(f"{page}/decide", {**fields, "back": page}).text
    assert state(rt, job.job_id) == State.UNKNOWN
    assert acts(rt, job.job_id) == []


def test_its_caller_is_told_again(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job_id = placed(rt, caller.service, State.PROCESSING)
    with receiving() as shop:
        with rt.db.transaction() as tx:
            services.change(tx, caller.service.name, callback_url=f"{shop.url}/hook?token=s3cret")
            advance(tx, [Move(job_id, State.FAILED, error={"code": "rejected", "message": "no"})])
        execute(rt, "UPDATE notifications SET state = 'dead', due_at = NULL, ended_at = now()")
        ann = visitor()
        ann.get(f"/jobs/{job_id}")
        answer = ann.post(f"/jobs/{job_id}/replay")
    assert "1 notification is sent again" in answer.text
    assert scalar(rt, "SELECT state FROM notifications") == Told.PENDING
    assert "s3cret" not in answer.text
    assert acts(rt, job_id) == [("Ann", "notification.replay", "done")]


def test_the_evidence_is_a_file_to_be_saved(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job = processing(rt, caller.service)
    answer = visitor().get(f"/jobs/{job.job_id}/evidence.json")
    assert answer.headers["content-disposition"] == f'attachment; filename="job-{job.job_id}.json"'
    assert answer.json()["job"]["id"] == str(job.job_id)
    assert job.token not in answer.text


def test_a_viewer_sees_everything_but_what_is_hidden_and_does_nothing(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller
) -> None:
    job = processing(rt, caller.service)
    body = encoded(prediction(job, has_nsfw_contents=[True]))
    assert deliver(web, job.token, body).status == 204
    assert scalar(rt, "SELECT review FROM assets") == Review.QUARANTINED
    told = scalar(rt, "SELECT id FROM notifications")
    waiting = queued(rt, caller.service)
    bob, ann = visitor(name="Bob", password=VIEWERS_PASSWORD), visitor()
    address = f"cdn.example.com/predictions/{job.prediction_id}"
    execute(
        rt,
        "INSERT INTO deliveries (notification_id, number, at, target, status, request)"
        " SELECT id, 1, created_at, 'https://shop.example', 204, jsonb_build_object('body', CAST(:body AS text))"
        " FROM notifications",
        body=f"https://{address}/1.png",
    )
    here, there = f"/jobs/{job.job_id}", f"/callbacks/{scalar(rt, 'SELECT id FROM callbacks')}"
    for path in (here, f"{here}/evidence.json", there, f"{there}/body", f"/notifications/{told}"):
        assert address in ann.get(path).text, path
        assert address not in bob.get(path).text, path
    assert "Withheld" in bob.get(f"/jobs/{job.job_id}").text
    assert can(bob.get(f"/jobs/{waiting}").text) == set()
    for action in ("cancel", "retry", "decide", "replay"):
        assert bob.post(f"/jobs/{waiting}/{action}", {"back": f"/jobs/{waiting}"}).status_code == 200
    assert state(rt, waiting) == State.QUEUED
    assert acts(rt, waiting) == []
    assert scalar(rt, "SELECT count(*) FROM jobs") == 2


def test_what_strangers_wrote_runs_nowhere(visitor: Visitors, rt: Runtime, web: str, caller: Caller) -> None:
    """The prompt, metadata, options, the provider's words and payload, a receiver's answer, the names of people."""
    job = processing(rt, caller.service)
    assert deliver(web, job.token, encoded(prediction(job, "failed", error=EVIL, model=EVIL))).status == 204
    assert deliver(web, job.token, EVIL.encode()).status == 400
    execute(
        rt,
        "UPDATE jobs SET input = jsonb_build_object('prompt', CAST(:x AS text), 'style', CAST(:x AS text)),"
        " metadata = jsonb_build_object(CAST(:x AS text), CAST(:x AS text)), held_reason = :x,"
        " callback_task = :x,"
        " error = jsonb_build_object('code', 'no', 'message', CAST(:x AS text), 'provider_code', CAST(:x AS text))",
        x=EVIL,
    )
    execute(rt, "UPDATE attempts SET error = :x", x=EVIL)
    execute(
        rt,
        "INSERT INTO notifications (id, event, job_id, seq, state, endpoint, error, ended_at)"
        " VALUES (:id, :x, :job, 77, 'dead', :x, :x, now())",
        id=uuid4(),
        job=job.job_id,
        x=EVIL,
    )
    execute(
        rt,
        "INSERT INTO deliveries (notification_id, number, target, request, status, answer, error)"
        " SELECT id, 1, :x, jsonb_build_object('headers', jsonb_build_object(CAST(:x AS text), CAST(:x AS text)),"
        " 'body', CAST(:x AS text)), 200, :x, :x FROM notifications WHERE seq = 77",
        x=EVIL,
    )
    with rt.db.transaction() as tx:
        audit.begin(tx, who=EVIL, door=EVIL, action=EVIL, target=str(job.job_id), data={"x": EVIL})
    text = visitor().get(f"/jobs/{job.job_id}").text
    assert text.count("alert(") > 15
    assert "<script>alert" not in text


def test_a_prompt_that_is_no_text_does_not_break_the_page(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job_id = kept(rt, caller.service)
    odd: list[dict[str, Any]] = [
        {},
        {"prompt": {"a": [1]}},
        {"prompt": None},
        {"images": ["https://a.example/1?key=s3cret"]},
    ]
    ann = visitor()
    for value in odd:
        execute(rt, "UPDATE jobs SET input = CAST(:value AS jsonb)", value=json.dumps(value))
        answer = ann.get(f"/jobs/{job_id}")
        assert answer.status_code == 200
        assert "s3cret" not in answer.text


def test_an_idempotency_key_is_shown(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job_id = queued(rt, caller.service)
    execute(
        rt,
        "INSERT INTO idempotency_keys (service_id, key, fingerprint, job_id) VALUES (:service, 'order-42', '', :job)",
        service=caller.service.id,
        job=job_id,
    )
    assert "order-42" in visitor().get(f"/jobs/{job_id}").text


def test_what_people_decide_at_the_dashboard_stands_in_the_jobs_own_history(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    job_id = placed(rt, caller.service, State.FAILED)
    ann = visitor()
    ann.get(f"/jobs/{job_id}")
    ann.post(f"/jobs/{job_id}/retry", {"seen": "odd"})
    assert happened(rt, job_id, "job.retried") == []
    ann.post(f"/jobs/{job_id}/retry")
    assert [one["by"] for one in happened(rt, job_id, "job.retried")] == ["operator"]
