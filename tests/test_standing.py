"""What a job waits for, in words."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import standing
from pipeline.jobs import State
from pipeline.standing import Around

NOW = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)
SOON = NOW + timedelta(seconds=4)
LATER = NOW + timedelta(hours=1)


def job(state: State, **facts: Any) -> Any:
    usual = {"due_at": NOW, "run_at": NOW, "attempts": 0, "admitted": True, "held_at": None, "held_reason": None}
    return SimpleNamespace(state=state, **{**usual, **facts})


@pytest.mark.parametrize(
    ("facts", "around", "words", "at"),
    [
        ({}, {}, "waits for its turn", None),
        ({"run_at": LATER, "due_at": LATER}, {"halted": True}, "asked for at a later time", LATER),
        ({"attempts": 1, "due_at": SOON}, {}, "Its last try brought nothing, and cost nothing", SOON),
        ({"admitted": False}, {}, "waits to be checked, priced", None),
        ({"admitted": False, "due_at": SOON}, {}, "waits to be checked, priced", SOON),
        ({}, {"paused": True}, "Its service is paused", None),
        ({}, {"halted": True}, "account is halted", None),
        ({}, {"backoff_until": SOON}, "turned requests away", SOON),
        ({"due_at": LATER, "attempts": 2}, {"backoff_until": SOON}, "turned requests away", LATER),
        ({}, {"backoff_until": NOW - timedelta(seconds=1)}, "waits for its turn", None),
    ],
)
def test_a_queued_job_says_what_holds_it_back(
    facts: Mapping[str, Any], around: Mapping[str, Any], words: str, at: datetime | None
) -> None:
    found = standing.of(job(State.QUEUED, **facts), Around(NOW, **around))
    assert words in found.words
    assert found.at == at
    assert bool(found.then) == (at is not None)


def test_every_state_has_words_and_the_final_ones_wait_for_nothing() -> None:
    for state in State:
        found = standing.of(job(state), Around(NOW))
        assert found.words.endswith(".")
        if state in {State.COMPLETED, State.FAILED, State.CANCELLED}:
            assert found.at is None


def test_a_held_job_says_why_and_when_it_is_looked_for_next() -> None:
    held = job(State.UNKNOWN, held_at=NOW, held_reason="3 tasks may be it", due_at=LATER)
    found = standing.of(held, Around(NOW))
    assert "Held for a person: 3 tasks may be it." in found.words
    assert (found.then, found.at) == ("Next look", LATER)


def test_an_expired_job_says_whether_anybody_still_asks() -> None:
    assert standing.of(job(State.EXPIRED, due_at=LATER), Around(NOW)).at == LATER
    assert "nobody asks" in standing.of(job(State.EXPIRED, due_at=None), Around(NOW)).words
