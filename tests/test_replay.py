"""Callbacks that were kept, judged again: each does what it may now, once, and what it was when it came stays."""

import subprocess
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from pipeline.errors import NotAllowedNow
from pipeline.jobs import State
from pipeline.lifecycle.replay import Judgements, foretell, replay
from pipeline.runtime import Runtime
from pipeline.store import audit
from pipeline.store.callbacks import Wanted
from pipeline.store.tables import Base, new_id
from tests.conftest import Caller
from tests.factories import (
    Attempted,
    at_once,
    encoded,
    execute,
    happened,
    kinds,
    prediction,
    processing,
    scalar,
    state,
    unknown,
)
from tests.test_cli import run_in, value
from tests.test_receiver import deliver, stored

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(rt: Runtime, environ: dict[str, str]) -> Run:
    """Run a command on the tests' database."""
    return lambda *words: run_in(environ, "replay", *words)


def tables(rt: Runtime) -> dict[str, list[str]]:
    """All there is in the database."""
    with rt.db.transaction() as tx:
        return {
            name: list(tx.execute(text(f"SELECT x::text FROM {name} x ORDER BY 1")).scalars())
            for name in Base.metadata.tables
        }


def forgotten(rt: Runtime, web: str, caller: Caller, **body: Any) -> Attempted:
    """A job whose callback came while the database had no such attempt, as before a restore."""
    job = processing(rt, caller.service)
    execute(rt, "UPDATE attempts SET token = 'away' || id WHERE id = :id", id=job.attempt_id)
    assert deliver(web, job.token, prediction(job, **body)).status == 204
    execute(rt, "UPDATE attempts SET token = :token WHERE id = :id", id=job.attempt_id, token=job.token)
    return job


def only(judged: Judgements) -> tuple[str, str]:
    """Of one: its verdict then, and now."""
    (one,) = judged.all
    return one.then, one.now


def every_kind(rt: Runtime, web: str, caller: Caller) -> None:
    """A callback of each verdict, and two that were taken otherwise when they came than they are now."""
    done = processing(rt, caller.service)
    deliver(web, done.token, prediction(done))
    deliver(web, done.token, prediction(done))
    deliver(web, done.token, prediction(done, "failed"))
    waits = processing(rt, caller.service)
    deliver(web, waits.token, prediction(waits), at=1_700_000_000)
    deliver(web, waits.token, prediction(waits, id="f" * 32))
    deliver(web, waits.token, b"no json")
    deliver(web, "nobodys", prediction(done))
    deliver(web, "nobodys", b"\xff\x00")
    deliver(web, "nobodys", prediction(done), at=1_700_000_000)
    forgotten(rt, web, caller)
    forgotten(rt, web, caller, status="failed")


def test_an_orphan_whose_job_is_back_settles_it(rt: Runtime, web: str, caller: Caller) -> None:
    job = forgotten(rt, web, caller)
    assert state(rt, job.job_id) == State.PROCESSING
    assert only(replay(rt, Wanted(verdict="orphan"))) == ("orphan", "applied")
    assert state(rt, job.job_id) == State.COMPLETED
    (callback,) = stored(rt)
    assert (callback.verdict, callback.replayed_verdict, callback.job_id) == ("orphan", "applied", job.job_id)
    assert callback.replayed_at > callback.received_at
    (event,) = happened(rt, job.job_id, "job.completed")
    assert event == {"from": "processing", "via": "webhook", "replayed": str(callback.id)}


def test_a_callback_that_could_not_be_read_is_taken_once_it_can(rt: Runtime, web: str, caller: Caller) -> None:
    """The code was mended: here it is the row that becomes what that can read."""
    job = unknown(rt, caller.service)
    assert deliver(web, job.token, b"no json").status == 400
    execute(rt, "UPDATE callbacks SET body = :body", body=encoded(prediction(job)))
    assert only(replay(rt, Wanted(verdict="unreadable"))) == ("unreadable", "applied")
    assert state(rt, job.job_id) == State.COMPLETED
    (callback,) = stored(rt)
    assert (callback.verdict, callback.prediction_id) == ("unreadable", job.prediction_id)


def test_twice_is_as_good_as_once(rt: Runtime, web: str, caller: Caller) -> None:
    job = forgotten(rt, web, caller)
    (callback,) = stored(rt)
    assert only(replay(rt, Wanted(ids=[callback.id]))) == ("orphan", "applied")
    before = (kinds(rt, job.job_id), stored(rt))
    assert only(replay(rt, Wanted(ids=[callback.id]))) == ("orphan", "duplicate")
    assert (kinds(rt, job.job_id), stored(rt)) == before
    assert not replay(rt, Wanted(verdict="orphan", unapplied=True)).all


def test_replayed_at_once_by_many_it_moves_its_job_once(rt: Runtime, web: str, caller: Caller) -> None:
    job = forgotten(rt, web, caller)
    (callback,) = stored(rt)
    found = at_once(lambda _: only(replay(rt, Wanted(ids=[callback.id])))[1], 8)
    assert sorted(found) == ["applied", *["duplicate"] * 7]
    assert kinds(rt, job.job_id).count("job.completed") == 1
    assert stored(rt)[0].replayed_verdict == "applied"


def test_a_callback_is_as_fresh_as_it_was_when_it_came(rt: Runtime, web: str, caller: Caller) -> None:
    """However long ago that was; and what was stale then is only a hint to ask, still."""
    fresh = forgotten(rt, web, caller)
    execute(
        rt,
        "UPDATE callbacks SET received_at = received_at - interval '30 days', headers = headers ||"
        " jsonb_build_object('webhook-timestamp', ((headers ->> 'webhook-timestamp')::bigint - 2592000)::text)",
    )
    assert only(replay(rt, Wanted())) == ("orphan", "applied")
    assert state(rt, fresh.job_id) == State.COMPLETED
    stale = processing(rt, caller.service)
    deliver(web, stale.token, prediction(stale), at=1_700_000_000)
    assert only(replay(rt, Wanted(job_id=stale.job_id))) == ("stale", "stale")
    assert state(rt, stale.job_id) == State.PROCESSING


def test_an_id_that_is_no_callbacks_replays_none(rt: Runtime, web: str, caller: Caller) -> None:
    job = forgotten(rt, web, caller)
    (callback,) = stored(rt)
    with pytest.raises(NotAllowedNow):
        replay(rt, Wanted(ids=[callback.id, new_id()]))
    assert state(rt, job.job_id) == State.PROCESSING


def test_what_is_foretold_changes_nothing_and_comes_true(rt: Runtime, web: str, caller: Caller) -> None:
    every_kind(rt, web, caller)
    before = tables(rt)
    foretold = foretell(rt, Wanted())
    assert tables(rt) == before
    assert foretold.counts() == {
        "applied": 2,
        "duplicate": 2,
        "late": 1,
        "stale": 1,
        "orphan": 2,
        "suspicious": 1,
        "unreadable": 2,
    }
    assert [(one.then, one.now) for one in foretold.different] == [("orphan", "applied")] * 2
    replayed = replay(rt, Wanted())
    assert [(one.id, one.now, one.job_id) for one in replayed.all] == [
        (one.id, one.now, one.job_id) for one in foretold.all
    ]
    assert not foretell(rt, Wanted()).different


def test_a_window_is_gone_through_piece_by_piece(rt: Runtime, web: str, caller: Caller) -> None:
    every_kind(rt, web, caller)
    after: UUID | None = None
    found = []
    while True:
        some = foretell(rt, Wanted(), after=after, at_most=4)
        found += [one.id for one in some.all]
        if (after := some.next) is None:
            break
    assert found == [callback.id for callback in stored(rt)]
    assert len(found) == 11


def test_the_command_replays_what_its_options_choose(rt: Runtime, web: str, caller: Caller, run: Run) -> None:
    every_kind(rt, web, caller)
    before = tables(rt)
    dry = run("--since", "1h", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "11 would be replayed: 2 applied, 2 duplicate" in dry.stderr
    assert tables(rt) == before
    done = value(run("--verdict", "orphan", "--json"))
    assert sorted(one["now"] for one in done) == ["applied", "applied", "orphan", "orphan"]
    assert scalar(rt, "SELECT count(*) FROM jobs WHERE state = 'completed'") == 2
    with rt.db.transaction() as tx:
        (entry,) = audit.newest(tx)
    assert (entry.action, entry.outcome, entry.data["verdict"]) == ("callback.replay", "done", "orphan")
    assert entry.who.startswith("cli:")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Say which callbacks"),
        (("--verdict", "good"), "--verdict: must be one of applied, duplicate"),
        (("x",), "'x' is not a callback's id."),
        (("--since", "soon"), "--since: 'soon' is neither a time"),
        (("019a0000-0000-7000-8000-000000000000",), "There is no callback 019a0000"),
    ],
)
def test_the_command_says_what_is_wrong(words: tuple[str, ...], said: str, run: Run) -> None:
    done = run(*words)
    assert done.returncode == 1
    assert said in done.stderr
