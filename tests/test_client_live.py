"""The Python client and the product's own web server: every call, against real answers."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline import AsyncClient, Client
from pipeline.client import Conflict, InvalidRequest, Job, NotFound, Unauthorized, WaitTimeout
from pipeline.runtime import Runtime
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import scalar, swept, until

T = TypeVar("T")


@pytest.fixture
def client(rt: Runtime, web: str, caller: Caller) -> Iterator[Client]:
    """Give a client of the shop's."""
    with Client(web, caller.key) as made:
        yield made


def meanwhile(worker: Worker, call: Callable[[], T]) -> T:
    """Make a call while a worker sweeps."""
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(call)
        swept(worker, made.done)
        return made.result()


def test_a_job_from_its_prompt_to_its_file(client: Client, start_worker: Callable[..., Worker], tmp_path: Path) -> None:
    """Handed in, followed, waited for, fetched: all that most services need."""
    worker = start_worker()
    job = client.enqueue(
        "a lighthouse", priority=3, deadline_s=900, metadata={"order": "7"}, run_at=datetime.now(UTC) - timedelta(1)
    )
    assert (job.state, job.priority, job.metadata["order"], job.service) == ("queued", 3, "7", "shop")
    with pytest.raises(WaitTimeout):
        client.wait(job, timeout_s=0)

    events = meanwhile(worker, lambda: list(client.events(job)))

    assert [each.seq for each in events] == list(range(1, len(events) + 1))
    turns = [each.kind for each in events if each.kind.startswith("job.")]
    assert (turns[0], turns[-1]) == ("job.queued", "job.completed")
    ended = events[-1].job
    assert ended
    assert ended.completed
    until(lambda: all(one.stored for one in client.get(job).outputs))  # copied at its own time
    done = client.wait(job.id)
    assert replace(ended, outputs=done.outputs, outputs_expire_at=None) == done == client.get(job)
    assert (done.completed, done.ended, done.price, done.error) == (True, True, 0.12, None)
    assert done.created_at
    assert done.finished_at
    assert done.finished_at - done.created_at < timedelta(minutes=5)
    assert {each.kind for each in client.events(job, after=events[-1].seq)} <= {"output.stored"}
    assert client.download(done, to=tmp_path).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(NotFound):
        client.download(job.id, 1, to=tmp_path)
    assert [each.id for each in client.jobs(state="completed", metadata={"order": "7"})] == [job.id]

    again = client.retry(done, idempotency_key="once")
    assert (again.retry_of, client.retry(done, idempotency_key="once").id) == (job.id, again.id)


def test_many_jobs_are_handed_in_and_listed_page_by_page(client: Client, rt: Runtime) -> None:
    """In parts, each once; the list goes on for as long as it is read."""
    requests = [f"picture {n}" for n in range(250)]
    ids = client.enqueue_many(iter(requests), idempotency_key="night")
    assert client.enqueue_many(requests, idempotency_key="night") == ids
    assert scalar(rt, "SELECT count(*) FROM jobs") == len(ids) == 250
    assert [job.id for job in client.jobs()] == ids[::-1]

    with pytest.raises(InvalidRequest) as refused:
        client.enqueue_many(["fine", {"input": {"prompt": ""}}])
    assert {(each.field, each.line) for each in refused.value.errors} == {("input.prompt", 2)}
    assert scalar(rt, "SELECT count(*) FROM jobs") == 250


def test_refusals_have_their_classes_and_codes(client: Client, web: str) -> None:
    """Callers test for them."""
    job = client.enqueue("a lighthouse", idempotency_key="one")
    assert client.enqueue("a lighthouse", idempotency_key="one").id == job.id
    with pytest.raises(Conflict) as conflict:
        client.enqueue("a mill", idempotency_key="one")
    assert conflict.value.code == "idempotency_conflict"
    with pytest.raises(InvalidRequest) as wrong:
        client.enqueue("\ud800", model="no model")
    assert wrong.value.code == "invalid_input"
    with pytest.raises(NotFound) as unknown:
        client.get("../../healthz")
    assert unknown.value.status == 404
    with pytest.raises(Conflict):
        client.retry(job)
    assert client.cancel(job).state == client.cancel(job).state == "cancelled"
    with Client(web, "pk_nobody") as stranger, pytest.raises(Unauthorized):
        stranger.get(job)


def test_the_asynchronous_client_does_the_same(
    rt: Runtime, web: str, caller: Caller, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """Ten jobs at once, from one thread."""
    worker = start_worker()

    async def calls() -> list[Job]:
        async with AsyncClient(web, caller.key) as client:
            jobs = await asyncio.gather(*(client.enqueue(f"picture {n}") for n in range(10)))
            done = await asyncio.gather(*(client.wait(job) for job in jobs))
            assert "job.completed" in [event.kind async for event in client.events(done[0])]
            await client.download(done[0], to=tmp_path / "picture.png")
            return done

    done = meanwhile(worker, lambda: asyncio.run(calls()))

    assert {job.state for job in done} == {"completed"}
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
