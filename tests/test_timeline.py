"""A job's story in one list: everything is in it once, in the order of time, and no secret."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from pipeline.jobs import Outcome
from pipeline.store.reading import Letter
from pipeline.store.tables import Verdict
from pipeline.web.dashboard.timeline import Story, tell
from pipeline.web.dashboard.words import discreet

START = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)
SIGNED = "https://cdn.example.com/a/1.png?X-Signature=0123abc&Expires=9"
NOTICE = UUID(int=7)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def event(seconds: float, kind: str, *, seq: int = 0, before: str | None = None, **data: Any) -> Any:
    return SimpleNamespace(seq=seq, at=at(seconds), kind=kind, data={"from": before, **data} if before else data)


def attempt(number: int, start: float, end: float | None, outcome: str | None, **facts: Any) -> Any:
    usual = {"prediction_id": None, "http_status": None, "error": None, "missing_polls": 0, "missing_at": None}
    ended = None if end is None else at(end)
    return SimpleNamespace(number=number, started_at=at(start), ended_at=ended, outcome=outcome, **{**usual, **facts})


def letter(seconds: float, body: bytes, verdict: str = Verdict.APPLIED, size: int | None = None) -> Letter:
    headers = {"webhook-id": "evt_1", "webhook-signature": "v3,abc"}
    return Letter(UUID(int=3), at(seconds), verdict, "task1", headers, body, size or len(body))


def notice(seconds: float, **facts: Any) -> Any:
    usual: dict[str, Any] = {
        "audience": "service",
        "state": "delivered",
        "endpoint": "shop https://shop.example",
        "due_at": None,
    }
    usual |= {"error": None, "event": "job.completed", "seq": 5}
    return SimpleNamespace(id=NOTICE, created_at=at(seconds), **{**usual, **facts})


def delivery(number: int, seconds: float, **facts: Any) -> Any:
    usual = {"target": "https://shop.example/hook", "request": None, "status": 200, "answer": None}
    usual |= {"duration_ms": 12, "error": None}
    return SimpleNamespace(number=number, at=at(seconds), **{**usual, **facts})


def whole() -> Story:
    sent = {"headers": {"webhook-signature": "v1,xyz"}, "body": f'{{"url": "{SIGNED}"}}', "truncated": False}
    return Story(
        events=[
            event(0, "job.queued"),
            event(1, "job.submitting", attempt=1),
            event(2.1, "job.unknown", why="answer lost"),
            event(4, "attempt.looked_for", absent=False, listed=3, candidates=["t1", "t2"], next_look_s=12.5),
            event(9.1, "job.completed", seq=5, via="webhook"),
            event(11, "output.stored", index=0, bytes=2048),
        ],
        attempts=[attempt(1, 1, 2, Outcome.LOST, http_status=504, error=f"cut off at {SIGNED}")],
        letters=[letter(9, f'{{"outputs": ["{SIGNED}"]}}'.encode())],
        notifications=[notice(9.05)],
        deliveries={
            NOTICE: [
                delivery(1, 12, request=sent, status=500, error="answered 500", answer=f"no: {SIGNED}"),
                delivery(2, 17, request=sent),
            ]
        },
        acts=[
            SimpleNamespace(
                at=at(6),
                who="Ann",
                door="dashboard",
                action="job.decide",
                data={"decision": "adopt"},
                outcome="not_allowed_now",
            )
        ],
    )


def test_everything_is_told_once_in_the_order_of_time() -> None:
    told = tell(whole())
    assert [entry.what for entry in told] == [
        "Accepted",
        "Submission 1 began",
        "Submission 1: its answer was lost; it may be paid for",
        "In doubt: the answer was lost",
        "Looked for in the provider's list",
        "Ann asked for job.decide (dashboard)",
        "Callback from the provider",
        "Completed",
        "To be told to the caller: job.completed",
        "Output stored: number 0",
        "Notification job.completed, try 1",
        "Notification job.completed, try 2",
    ]
    assert [entry.at for entry in told] == sorted(entry.at for entry in told)


def test_what_is_folded_away_has_a_name_of_its_own() -> None:
    """By it the page knows again what a person unfolded."""
    names = [paper.id for entry in tell(whole()) for paper in entry.papers]
    assert len(names) == 7
    assert len(set(names)) == len(names)


def test_signed_addresses_are_shown_without_what_signs_them() -> None:
    told = repr(tell(whole()))
    assert "https://cdn.example.com/a/1.png?…" in told
    assert "0123abc" not in told
    assert "Expires" not in told


def test_where_an_output_is_hidden_no_body_is_shown() -> None:
    story = whole()
    told = repr(tell(Story(**{**vars(story), "withheld": True})))
    assert "cdn.example.com/a/1.png" not in told.replace("cut off at https://cdn.example.com/a/1.png?…", "")
    assert told.count("Withheld") == 4


def test_a_long_body_says_that_it_was_cut() -> None:
    (entry,) = tell(Story(letters=[letter(0, b"x" * 10, Verdict.UNREADABLE, size=100)]))
    assert "cut here" in entry.papers[1].text
    assert (entry.word, entry.tone) == ("unreadable", "bad")


def test_bytes_that_are_no_text_are_shown_as_far_as_they_are() -> None:
    (entry,) = tell(Story(letters=[letter(0, b'{"id": "\xff"}', Verdict.UNREADABLE)]))
    assert "\ufffd" in entry.papers[1].text


def test_an_attempt_without_an_event_of_its_own_is_told_all_the_same() -> None:
    told = tell(Story(attempts=[attempt(2, 1, None, None, missing_polls=2, missing_at=at(3))]))
    assert [entry.what for entry in told] == ["Submission 2 began", "Submission 2: its task is not found"]
    assert "2 times in a row" in str(told[1].said)


def test_an_event_that_a_later_release_wrote_is_shown_as_it_is() -> None:
    (entry,) = tell(Story(events=[event(0, "job.teleported", where="Mars", how=["fast"])]))
    assert entry.what == "job.teleported"
    assert entry.facts == [("where", "Mars"), ("how", '["fast"]')]


def test_a_job_that_is_queued_again_says_why() -> None:
    first, again = tell(
        Story(events=[event(0, "job.queued"), event(1, "job.queued", why="throttled", before="submitting")])
    )
    assert (first.what, again.what) == ("Accepted", "Back in the queue")
    assert (again.said, again.facts) == ("throttled", [])


def test_a_retry_leads_to_the_new_job() -> None:
    (entry,) = tell(Story(events=[event(0, "job.retried", retry="0199", by="operator")]))
    assert (entry.job, entry.facts) == ("0199", [("by", "operator")])


def test_the_tokens_of_our_own_addresses_are_cut() -> None:
    for text in (
        "https://we.example/webhooks/wavespeed/tok_EN-1",
        r"https:\/\/we.example\/webhooks\/wavespeed\/tok_EN-1",
    ):
        assert "tok_EN" not in discreet(f'"{text}" was called')
    assert discreet("why? because") == "why? because"
