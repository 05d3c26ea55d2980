"""A job's whole story in one list: its moves, POSTs, callbacks, outputs, notifications, and what people did."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pipeline.jobs import Outcome
from pipeline.store.outbox import Audience
from pipeline.web.dashboard.outputs import WITHHELD
from pipeline.web.dashboard.words import TONES, discreet, duration, raw, size

CUT = "\n… cut here; the evidence file has all of it."


@dataclass(frozen=True, slots=True)
class Paper:
    """Something long, folded away; `id` stays the same, so that what a person unfolded stays so."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened. `word` is a state to be shown as one, `job` another job that it leads to."""

    at: datetime
    what: str
    tone: str = ""
    word: str | None = None
    said: str | None = None
    facts: Sequence[tuple[str, str]] = ()
    papers: Sequence[Paper] = ()
    job: str | None = None


@dataclass(frozen=True)
class Story:
    """Everything that is known of one job, as `store` has it. *withheld*: bodies may name what is under quarantine."""

    events: Sequence[Any] = ()
    attempts: Sequence[Any] = ()
    letters: Sequence[Any] = ()
    notifications: Sequence[Any] = ()
    deliveries: Mapping[UUID, Sequence[Any]] = field(default_factory=dict)
    acts: Sequence[Any] = ()
    withheld: bool = False


def tell(story: Story) -> list[Entry]:
    """All that happened, in the order of time; of one moment, what caused a move before the move."""
    found = [*_attempts(story), *_letters(story), *_acts(story), *_events(story), *_notifications(story)]
    return sorted(found, key=lambda entry: entry.at)  # stable


_MOVES: Mapping[str, tuple[str, str]] = {
    "job.queued": ("Waiting in the queue", "idle"),
    "job.submitting": ("Being submitted", "busy"),
    "job.processing": ("The provider has it", "busy"),
    "job.unknown": ("In doubt: the answer was lost", "warn"),
    "job.completed": ("Completed", "good"),
    "job.failed": ("Failed", "bad"),
    "job.expired": ("Expired", "bad"),
    "job.cancelled": ("Cancelled", "idle"),
    "job.needs_decision": ("Held for a person", "warn"),
    "job.retried": ("Tried again, as a new job", "idle"),
    "job.charged_twice": ("Charged more than once", "bad"),
    "job.charged_in_vain": ("Charged after it had ended", "bad"),
    "attempt.looked_for": ("Looked for in the provider's list", "warn"),
    "attempt.look_failed": ("The provider's list could not be read", "warn"),
    "output.stored": ("Output stored", "good"),
    "output.quarantined": ("Output stored, under quarantine", "warn"),
    "output.lost": ("Output lost", "bad"),
    "output.released": ("Output released from quarantine", "good"),
    "output.purged": ("Output purged", "idle"),
}

_ENDS: Mapping[str, tuple[str, str]] = {
    Outcome.ACCEPTED: ("the provider took it", "good"),
    Outcome.REJECTED: ("refused, never to be repeated", "bad"),
    Outcome.THROTTLED: ("turned away for now; nothing was paid", "warn"),
    Outcome.BLOCKED: ("refused: the account's key or credit; nothing was paid", "warn"),
    Outcome.NOT_SENT: ("nothing was sent; nothing was paid", "warn"),
    Outcome.LOST: ("its answer was lost; it may be paid for", "warn"),
    Outcome.ABSENT: ("its answer was lost; the provider's list proves that it was never taken", "warn"),
}

_VERDICTS: Mapping[str, str] = {
    "applied": "It moved the job.",
    "duplicate": "The same news once more: nothing changed.",
    "late": "The job had moved on before: nothing changed.",
    "stale": "Signed too long ago to be believed: the provider was asked instead.",
    "suspicious": "It does not fit the task of this job, so it was not believed: the provider was asked instead.",
    "unreadable": "It cannot be read: the provider was asked instead.",
}


def _events(story: Story) -> Iterator[Entry]:
    for event in story.events:
        what, tone = _MOVES.get(event.kind, (event.kind, ""))
        data = dict(event.data)
        if event.kind == "job.queued":
            what = "Back in the queue" if data.get("from") else "Accepted"
        if event.kind == "job.submitting" and "attempt" in data:
            what = f"Submission {data.pop('attempt')} began"
        if event.kind.startswith("output.") and "index" in data:
            what = f"{what}: number {data.pop('index')}"
        data.pop("from", None)  # the entry before tells
        if event.kind == "job.processing" and "attempt" in data:  # the answer to that submission has both
            data = {name: value for name, value in data.items() if name not in {"attempt", "prediction_id"}}
        said = data.pop("why", None)
        job = data.pop("retry", None) if event.kind == "job.retried" else None
        facts = [(name.replace("_", " "), _fact(name, value)) for name, value in data.items()]
        yield Entry(event.at, what, tone, said=said and discreet(str(said)), facts=facts, job=job)


def _attempts(story: Story) -> Iterator[Entry]:
    begun = {event.data.get("attempt") for event in story.events if event.kind == "job.submitting"}
    for one in story.attempts:
        if one.number not in begun:
            yield Entry(one.started_at, f"Submission {one.number} began", "busy")
        if one.missing_polls:
            said = f"The provider said {one.missing_polls} times in a row that it knows no such task."
            yield Entry(one.missing_at, f"Submission {one.number}: its task is not found", "warn", said=said)
        if one.ended_at is None:
            continue
        what, tone = _ENDS.get(one.outcome, (str(one.outcome), ""))
        took_s = (one.ended_at - one.started_at).total_seconds()
        facts = [("took", duration(took_s))]
        if one.http_status is not None:
            facts.append(("HTTP status", str(one.http_status)))
        if one.prediction_id:
            facts.append(("task", one.prediction_id))
        yield Entry(
            one.ended_at,
            f"Submission {one.number}: {what}",
            tone,
            word=one.outcome,
            said=one.error and discreet(one.error),
            facts=facts,
        )


def _letters(story: Story) -> Iterator[Entry]:
    for letter in story.letters:
        headers = "\n".join(f"{name}: {value}" for name, value in letter.headers.items())
        body = WITHHELD if story.withheld else discreet(raw(letter.body))
        cut = CUT if letter.size > len(letter.body) and not story.withheld else ""
        facts = [("task", letter.prediction_id)] if letter.prediction_id else []
        if signature := letter.headers.get("webhook-signature"):
            facts.append(("signature", signature))
        yield Entry(
            letter.received_at,
            "Callback from the provider",
            TONES.get(letter.verdict, ""),
            word=letter.verdict,
            said=_VERDICTS.get(letter.verdict),
            facts=facts,
            papers=(
                Paper(f"c{letter.id}-headers", "Its headers", headers),
                Paper(f"c{letter.id}-body", f"Its body ({size(letter.size)})", body + cut),
            ),
        )


def _notifications(story: Story) -> Iterator[Entry]:
    moments = {event.seq: event.at for event in story.events}
    for one in story.notifications:
        planned = max(one.created_at, moments.get(one.seq, one.created_at))  # one statement wrote both
        whom = "the caller" if one.audience == Audience.SERVICE else "the operator"
        tries = story.deliveries.get(one.id, ())
        facts = [("to", one.endpoint.partition(" ")[2] or one.endpoint)] if one.endpoint else []
        said = "Nobody has said where to send it." if one.state == "unaddressed" else None
        if one.due_at and one.error:
            facts.append(("next try", f"{one.due_at:%Y-%m-%d %H:%M:%S} UTC"))
        tone = TONES.get(one.state, "")
        yield Entry(planned, f"To be told to {whom}: {one.event}", tone, word=one.state, said=said, facts=facts)
        for number, delivery in enumerate(tries, 1):
            yield _delivery(one, delivery, last=number == len(tries), withheld=story.withheld)


def _delivery(notification: Any, one: Any, *, last: bool, withheld: bool) -> Entry:
    facts = [("to", one.target)]
    if one.status is not None:
        facts.append(("HTTP status", str(one.status)))
    if one.duration_ms is not None:
        facts.append(("took", duration(one.duration_ms / 1000)))
    if notification.due_at and last and one.error:
        facts.append(("next try", f"{notification.due_at:%Y-%m-%d %H:%M:%S} UTC"))
    papers = []
    name = f"d{notification.id}-{one.number}"
    if one.request:
        headers = "\n".join(f"{header}: {value}" for header, value in one.request.get("headers", {}).items())
        body = WITHHELD if withheld else discreet(one.request.get("body", ""))
        cut = CUT if one.request.get("truncated") and not withheld else ""
        if headers:
            papers.append(Paper(f"{name}-headers", "Headers sent", headers))
        papers.append(Paper(f"{name}-body", "Body sent", body + cut))
    if one.answer:
        papers.append(Paper(f"{name}-answer", "What it answered", WITHHELD if withheld else discreet(one.answer)))
    return Entry(
        one.at,
        f"Notification {notification.event}, try {one.number}",
        "bad" if one.error else "good",
        word="failed" if one.error else "delivered",
        said=one.error and discreet(one.error),
        facts=facts,
        papers=papers,
    )


def _acts(story: Story) -> Iterator[Entry]:
    for act in story.acts:
        facts = [(name, str(value)) for name, value in act.data.items() if value is not None]
        what = f"{act.who} asked for {act.action} ({act.door})"
        yield Entry(act.at, what, "idle", word=act.outcome or "broke off", facts=facts)


def _fact(name: str, value: Any) -> str:
    if name == "bytes" and isinstance(value, int):
        return size(value)
    if name in {"next_look_s", "patience_s"} and isinstance(value, int | float):
        return duration(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return discreet(text)
