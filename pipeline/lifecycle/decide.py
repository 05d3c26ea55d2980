"""Decide: a person says what became of a paid request that nothing could prove. Only an unknown job asks for it."""

import asyncio
from uuid import UUID

from pipeline import telemetry
from pipeline.errors import InvalidInput, NotAllowedNow, NotFound
from pipeline.jobs import State, Via
from pipeline.predictions import Prediction
from pipeline.runtime import Runtime
from pipeline.store import missing
from pipeline.store.missing import Missing

log = telemetry.get(__name__)


def adopt(rt: Runtime, job_id: UUID, prediction_id: str) -> None:
    """
    The job's task is *prediction_id*: give it that, and whatever verdict it already has.

    Raises:
        InvalidInput: The provider knows no such task, it is another model's, or another job has it.
        NotAllowedNow: The job is not unknown.
    """
    one = _asked(rt, job_id)
    found = asyncio.run(_fetch(rt, prediction_id))
    if found.model not in {None, one.model}:
        raise InvalidInput(f"The task {prediction_id} is of the model {found.model}, the job of {one.model}.")
    with rt.db.transaction() as tx:
        why = "a person said that this is its task"
        moved = missing.adopt(tx, one, found, poll_s=rt.settings.first_poll_s, why=why, via=Via.OPERATOR)
        if not moved and missing.known_ids(tx, [prediction_id]):
            raise InvalidInput(f"The task {prediction_id} is another job's.")
    _decided(rt, job_id, "adopt", moved=moved)


def resubmit(rt: Runtime, job_id: UUID) -> None:
    """
    The job's task was never made, or does not matter: pay for another. A double charge is then this person's choice.

    Raises:
        NotAllowedNow: The job is not unknown.
    """
    one = _asked(rt, job_id)
    with rt.db.transaction() as tx:
        moved = missing.give_back(tx, one, State.QUEUED, why="a person decided to submit it again")
    _decided(rt, job_id, "resubmit", moved=moved)


def give_up(rt: Runtime, job_id: UUID) -> None:
    """
    Nobody will look any longer: the job has failed.

    Raises:
        NotAllowedNow: The job is not unknown.
    """
    one = _asked(rt, job_id)
    with rt.db.transaction() as tx:
        moved = missing.give_back(tx, one, State.FAILED, why="a person gave it up")
    _decided(rt, job_id, "give_up", moved=moved)


def _asked(rt: Runtime, job_id: UUID) -> Missing:
    with rt.db.transaction() as tx:
        found = missing.one(tx, job_id)
    if found is None:
        raise NotAllowedNow("Only an unknown job can be decided; `pipeline show` tells how this one is.")
    return found


async def _fetch(rt: Runtime, prediction_id: str) -> Prediction:
    provider = rt.provider()
    try:
        return await provider.result(prediction_id)
    except NotFound:
        raise InvalidInput(f"The provider knows no task {prediction_id}.") from None
    finally:
        await provider.close()


def _decided(rt: Runtime, job_id: UUID, decision: str, *, moved: bool) -> None:
    if not moved:
        raise NotAllowedNow("The job has moved on meanwhile; `pipeline show` tells how it is.")
    log.warning("job.decided", job_id=str(job_id), decision=decision)
    rt.nudge("submit", "poll", "archive", "notify")
