"""Review: a person releases outputs that were flagged as unsafe, or purges them. Who and when stands in the history."""

from typing import TYPE_CHECKING, Any
from uuid import UUID

from pipeline import telemetry
from pipeline.errors import NotAllowedNow, StorageFailed, Unavailable, UnknownOutput
from pipeline.lifecycle.discard import discard
from pipeline.outputs import Review
from pipeline.runtime import Runtime
from pipeline.store import reviews

if TYPE_CHECKING:
    from pipeline.storage import Storage

log = telemetry.get(__name__)

HELD, SERVED = "quarantine/", "files/"
"""Where files lie that are not served, and those that are."""

_TRIES = 5


def release(rt: Runtime, job_id: UUID, index: int, *, by: str) -> None:
    """
    Let callers have an output that is under quarantine; *by* whom it was looked at. They are told: `output.released`.

    Raises:
        UnknownOutput: There is none of that number.
        NotAllowedNow: It is not under quarantine.
        StorageFailed: Its file could not be moved; nothing has changed.
    """
    for _ in range(_TRIES):
        one = _output(rt, job_id, index)
        if one.review != Review.QUARANTINED:
            raise NotAllowedNow(f"Output {index} of the job is not under quarantine: it is {one.review or 'served'}.")
        target = _served_as(one.storage_key)
        if target and target != one.storage_key:
            _storage(rt).copy_now(one.storage_key, target)
        with rt.db.transaction() as tx:
            done = reviews.release(tx, one.id, by=by, held_as=one.storage_key, storage_key=target)
        if done:
            break  # else somebody was first, or it was just stored
    else:
        raise Unavailable("The output is being changed again and again.")
    if target and target != one.storage_key:
        _settle(rt, one.storage_key, target)
    log.info("output.released", job_id=str(job_id), index=index, by=by)
    rt.nudge("notify")


def purge(rt: Runtime, job_id: UUID, index: int, *, by: str) -> bool:
    """
    Remove an output for good, whether it is under quarantine or not. Once done, again is fine: it removes what is left.

    Returns:
        Whether this call purged it.

    Raises:
        UnknownOutput: There is none of that number.
        StorageFailed: It is served no more, but its bytes are still there, perhaps: purge it again.
    """
    one = _output(rt, job_id, index)
    with rt.db.transaction() as tx:
        done = reviews.purge(tx, one.id, by=by)
    if done:
        log.info("output.purged", job_id=str(job_id), index=index, by=by)
    if key := done.storage_key if done else one.storage_key:
        try:
            discard(rt, [key])
        except StorageFailed as error:
            raise StorageFailed(f"It is served no more, but its bytes are not removed yet. {error.detail}") from None
    return done is not None


def content(rt: Runtime, job_id: UUID, index: int) -> tuple[Any, bytes]:
    """
    An output's row and its bytes, for whoever is to decide.

    Raises:
        UnknownOutput: There is none of that number, or its bytes are not there.
        StorageFailed: The storage is away.
    """
    one = _output(rt, job_id, index)
    source = _storage(rt).open_now(one.storage_key) if one.storage_key and one.review != Review.PURGED else None
    if source is None:
        raise UnknownOutput("We have no copy of it, or not yet.")
    with source:
        return one, source.read()


def _settle(rt: Runtime, held_as: str, served_as: str) -> None:
    """Have the released file in its place, though others may have discarded it meanwhile; and no other copy of it."""
    try:
        storage = _storage(rt)
        if (served := storage.open_now(served_as)) is None:
            storage.copy_now(held_as, served_as)
        else:
            served.close()
        discard(rt, [held_as])
    except StorageFailed as error:  # it is released nevertheless; a copy too many is not served
        log.warning("output.left_behind", why=error.detail)


def _served_as(key: str | None) -> str | None:
    return f"{SERVED}{key.removeprefix(HELD)}" if key and key.startswith(HELD) else key


def _storage(rt: Runtime) -> "Storage":
    if rt.storage is None:
        raise StorageFailed(f"The files are not where this process looks: {rt.storage_problem}.")
    return rt.storage


def _output(rt: Runtime, job_id: UUID, index: int) -> Any:
    with rt.db.transaction() as tx:
        one = reviews.output(tx, job_id, index)
    if one is None:
        raise UnknownOutput(f"There is no output {index} of a job {job_id}.")
    return one
