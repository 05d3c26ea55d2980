"""Planning, claiming and settling of outputs: the statements, on a real Postgres."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import State
from pipeline.predictions import parse
from pipeline.runtime import Runtime
from pipeline.store import assets, inbox, workers
from pipeline.store.assets import Later, Lost, Settled, Stored
from pipeline.store.moves import Move, advance
from pipeline.store.tables import new_id
from tests.conftest import Caller
from tests.factories import Attempted, at_once, encoded, execute, kinds, prediction, processing, scalar

FILE = "https://cdn.example.com/1.png"
HASH = "ab" * 32
PICTURE = {"url": FILE, "nsfw": False}


@pytest.fixture
def caller(rt: Runtime, caller: Caller) -> Caller:
    """Give a service that wants to be told."""
    execute(rt, "UPDATE services SET callback_url = 'https://shop.example/hook'")
    return caller


def archiving(rt: Runtime, policy: str = "flag") -> None:
    """As the sweep tells the database, where an archive is set up."""
    execute(rt, "UPDATE account SET archiving = true, nsfw_policy = :policy", policy=policy)


def completed(rt: Runtime, caller: Caller, *outputs: Any) -> Attempted:
    """A job with these outputs, completed by a poll."""
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(job.job_id, State.COMPLETED, outputs=outputs)])
    return job


def heard(rt: Runtime, job: Attempted, **fields: Any) -> None:
    """The job's callback, as the receiver takes it."""
    body = prediction(job, **fields)
    with rt.db.transaction() as tx:
        inbox.hear(tx, inbox.Delivery(job.token, {}, encoded(body)), parse(body), poll_s=30.0)


def rows(rt: Runtime, columns: str, table: str = "assets") -> list[tuple[Any, ...]]:
    with rt.db.transaction() as tx:
        return [tuple(row) for row in tx.exec_driver_sql(f"SELECT {columns} FROM {table} ORDER BY id")]


def claim(rt: Runtime, at_most: int = 10, worker_id: UUID | None = None) -> list[assets.Claimed]:
    with rt.db.transaction() as tx:
        return assets.claim(tx, worker_id=worker_id or new_id(), at_most=at_most, lease_s=60.0)


def settle(rt: Runtime, *ends: Stored | Lost) -> list[Settled]:
    with rt.db.transaction() as tx:
        return assets.settle(tx, ends)


def stored(one: assets.Claimed) -> Stored:
    return Stored(one.id, one.job_id, one.review, f"files/ab/{HASH}", HASH, 3, "image/png", 1, 1)


def lost(one: assets.Claimed) -> Lost:
    return Lost(one.id, one.job_id, "It is gone.")


def waits_s(rt: Runtime, event: str = "job.completed") -> float | None:
    """In how many seconds a notification is due."""
    found = scalar(
        rt, "SELECT extract(epoch FROM due_at - clock_timestamp()) FROM notifications WHERE event = :e", e=event
    )
    return None if found is None else float(found)


def poll(rt: Runtime, caller: Caller, outputs: list[Any], flags: list[bool]) -> None:
    completed(rt, caller, *({"url": url, "nsfw": flag} for url, flag in zip(outputs, flags, strict=True)))


def callback(rt: Runtime, caller: Caller, outputs: list[Any], flags: list[bool]) -> None:
    heard(rt, processing(rt, caller.service), outputs=outputs, has_nsfw_contents=flags)


@pytest.mark.parametrize("complete", [poll, callback])
@pytest.mark.parametrize(
    ("policy", "of_service", "review"),
    [
        ("flag", None, "flagged"),
        ("allow", None, None),
        ("quarantine", None, "quarantined"),
        ("quarantine", "allow", None),
        ("allow", "quarantine", "quarantined"),
    ],
)
def test_outputs_are_planned_with_the_verdict_and_flagged_ones_hidden_at_once(
    rt: Runtime,
    caller: Caller,
    complete: Callable[..., None],
    policy: str,
    of_service: str | None,
    review: str | None,
) -> None:
    """Whichever statement completes a job; a quarantined address must not be told even for a moment."""
    archiving(rt, policy)
    execute(rt, "UPDATE services SET nsfw_policy = :policy", policy=of_service)
    complete(rt, caller, [FILE, "https://cdn.example.com/2.png"], [False, True])
    found = sorted(rows(rt, "index, source_url, state, nsfw, review, due_at <= clock_timestamp()"))
    assert found == [
        (0, FILE, "pending", False, None, True),
        (1, "https://cdn.example.com/2.png", "pending", True, review, True),
    ]
    wait_s = waits_s(rt)
    assert wait_s is not None
    assert 50 < wait_s <= 60


@pytest.mark.parametrize("complete", [poll, callback])
def test_where_nobody_archives_callers_are_told_at_once(
    rt: Runtime, caller: Caller, complete: Callable[..., None]
) -> None:
    """Nothing is waited for that does not come; custody still counts what we have no copy of."""
    complete(rt, caller, [FILE], [False])
    assert rows(rt, "state, due_at") == [("pending", None)]
    assert (waits_s(rt) or 0.0) <= 0
    assert claim(rt) == []


def test_a_job_without_outputs_is_told_of_at_once(rt: Runtime, caller: Caller) -> None:
    """There is nothing to wait for."""
    archiving(rt)
    poll(rt, caller, [], [])
    assert rows(rt, "id") == []
    assert (waits_s(rt) or 0.0) <= 0


def test_the_last_output_brings_the_notification_forward_whatever_became_of_the_others(
    rt: Runtime, caller: Caller
) -> None:
    """Callers hear as soon as all there will ever be is there."""
    archiving(rt)
    job = completed(rt, caller, {"url": FILE, "nsfw": False}, {"value": "a text", "nsfw": None})
    first, second = sorted(claim(rt), key=lambda one: one.index)
    assert (first.source_url, first.value, second.source_url, second.value) == (FILE, None, None, "a text")
    assert [one.told for one in settle(rt, lost(first))] == [False]
    assert (waits_s(rt) or 0.0) > 0
    assert [one.told for one in settle(rt, stored(second))] == [True]
    assert (waits_s(rt) or 0.0) <= 0
    assert kinds(rt, job.job_id)[-3:] == ["job.completed", "output.lost", "output.stored"]
    assert rows(rt, "event", "notifications") == [("job.completed",)]


def test_outputs_of_one_job_stored_at_the_same_time_are_told_of_once(rt: Runtime, caller: Caller) -> None:
    """Each of two that store the last ones would see the other's still missing, and callers would wait a minute."""
    archiving(rt)
    for _ in range(5):
        completed(rt, caller, *({"url": f"{FILE}?{number}", "nsfw": False} for number in range(4)))
        ends = claim(rt)

        def one(number: int, ends: list[assets.Claimed] = ends) -> list[Settled]:
            return settle(rt, stored(ends[number]))

        done = at_once(one, 4)
        assert sorted(end.told for (end,) in done) == [False, False, False, True]
    assert (waits_s(rt) or 0.0) <= 0


def test_what_is_stored_after_its_job_was_told_of_is_told_of_itself_unless_it_is_quarantined(
    rt: Runtime, caller: Caller
) -> None:
    """Its callers were told `stored: false`."""
    archiving(rt, "quarantine")
    late = [{"url": FILE, "nsfw": flag} for flag in (False, True)]
    job = completed(rt, caller, *late)
    execute(rt, "UPDATE notifications SET created_at = created_at - interval '61 s', due_at = clock_timestamp()")
    told = settle(rt, *map(stored, claim(rt)))
    assert [(one.index, one.review, one.told) for one in told] == [(0, None, True), (1, "quarantined", True)]
    assert rows(rt, "event", "notifications") == [("job.completed",), ("output.stored",)]
    assert kinds(rt, job.job_id)[-2:] == ["output.stored", "output.quarantined"]


def test_what_is_lost_after_its_job_was_told_of_is_told_of_where_a_copy_was_promised(
    rt: Runtime, caller: Caller
) -> None:
    """Its callers wait for `output.stored`, and a flagged one's for `output.released`; neither will come."""
    archiving(rt, "quarantine")
    job = completed(rt, caller, PICTURE, {"url": FILE, "nsfw": True})
    execute(rt, "UPDATE notifications SET created_at = created_at - interval '61 s', due_at = clock_timestamp()")
    told = settle(rt, *map(lost, claim(rt)))
    assert [(one.index, one.told) for one in told] == [(0, True), (1, True)]
    assert [event for (event,) in rows(rt, "event", "notifications")] == ["job.completed", "output.lost", "output.lost"]
    assert kinds(rt, job.job_id)[-2:] == ["output.lost", "output.lost"]


def test_what_the_provider_deletes_where_nobody_archives_is_in_the_history_and_told_to_nobody(
    rt: Runtime, caller: Caller
) -> None:
    """No copy was promised, and `outputs_expire_at` named the day."""
    job = completed(rt, caller, PICTURE)
    execute(rt, "UPDATE notifications SET state = 'delivered', due_at = NULL, ended_at = clock_timestamp()")
    execute(rt, "UPDATE assets SET created_at = created_at - interval '8 days'")
    with rt.db.transaction() as tx:
        assert [one.told for one in assets.lose_old(tx)] == [False]
    assert kinds(rt, job.job_id)[-1] == "output.lost"
    assert rows(rt, "event", "notifications") == [("job.completed",)]


def test_a_second_end_of_an_output_changes_nothing(rt: Runtime, caller: Caller) -> None:
    """A worker that was taken for dead may come back with what another has stored meanwhile."""
    archiving(rt)
    job = completed(rt, caller, PICTURE)
    (one,) = claim(rt)
    assert len(settle(rt, stored(one))) == 1
    assert settle(rt, lost(one)) == settle(rt, stored(one)) == []
    assert kinds(rt, job.job_id).count("output.stored") == 1


def test_what_was_reviewed_while_it_was_fetched_is_put_into_its_new_place_instead(rt: Runtime, caller: Caller) -> None:
    """The file of a released output would lie among those under quarantine."""
    archiving(rt, "quarantine")
    completed(rt, caller, {"url": FILE, "nsfw": True})
    (one,) = claim(rt)
    execute(rt, "UPDATE assets SET review = 'released'")
    assert settle(rt, stored(one)) == []
    assert rows(rt, "state") == [("pending",)]


def test_one_output_has_one_fetcher_until_it_dies_or_gives_it_back(rt: Runtime, caller: Caller) -> None:
    """A file is fetched once, and by somebody."""
    archiving(rt)
    worker_id = new_id()
    for _ in range(10):
        completed(rt, caller, PICTURE)
    taken = at_once(lambda _number: claim(rt, at_most=3), 4)
    assert len({one.id for some in taken for one in some}) == 10
    with rt.db.transaction() as tx:  # none of these workers was ever heard of
        assert assets.give_up_claims(tx, dead_after_s=12.0) == 10
        workers.beat(tx, worker_id)
    assert len(claim(rt, worker_id=worker_id)) == 10
    with rt.db.transaction() as tx:
        assert assets.give_up_claims(tx, dead_after_s=12.0) == 0
        assert assets.give_back(tx, worker_id) == 10
    assert len(claim(rt)) == 10


def test_a_failed_attempt_is_repeated_later_and_knows_for_how_long_it_was_gone(rt: Runtime, caller: Caller) -> None:
    """A file that is not there yet and one that is there no more give the same answer."""
    archiving(rt)
    completed(rt, caller, PICTURE)
    for expected in (0, 1, 2):
        worker_id = new_id()
        (one,) = claim(rt, worker_id=worker_id)
        assert (one.attempts, one.gone, one.gone_s is None) == (expected + 1, expected, expected == 0)
        with rt.db.transaction() as tx:
            assets.put_off(tx, [Later(one.id, 0.0, "HTTP 404", gone=True)], worker_id=new_id())  # not its own
        assert claim(rt) == []
        with rt.db.transaction() as tx:
            assets.put_off(tx, [Later(one.id, 0.0, "HTTP 404", gone=True)], worker_id=worker_id)
    (one,) = claim(rt, worker_id=worker_id)
    with rt.db.transaction() as tx:
        assets.put_off(tx, [Later(one.id, 60.0, "Timeout")], worker_id=worker_id)
    assert rows(rt, "gone, gone_at, error, worker_id") == [(0, None, "Timeout", None)]
    assert claim(rt) == []
