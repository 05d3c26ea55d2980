"""The client for an event loop: `Client`, awaited."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx2

from pipeline.client import calls
from pipeline.client.address import Address
from pipeline.client.answers import Event, Job
from pipeline.client.calls import JobInput
from pipeline.client.errors import ConnectionFailed
from pipeline.client.retries import Retries
from pipeline.client.steps import Call, JobLike, Pause, Reply, Steps
from pipeline.client.story import Story
from pipeline.files import WholeFile

T = TypeVar("T")


class AsyncClient:
    """
    What `Client` is, for an event loop: the same methods and rules, which are documented there.

    `jobs` and `events` are iterated with `async for`.
    """

    def __init__(self, url: str | None = None, key: str | None = None, *, retries: Retries | None = None) -> None:
        self._address = Address.of(url, key)
        self._retries = retries or Retries()
        self._http = httpx2.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def enqueue(
        self,
        what: JobInput,
        *,
        model: str | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        deadline_s: float | None = None,
        callback_url: str | None = None,
        callback_task: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        wait_s: float = 0,
    ) -> Job:
        """Hand in one job. See `Client.enqueue`."""
        request = calls.job_request(
            what,
            model=model,
            priority=priority,
            run_at=run_at,
            deadline_s=deadline_s,
            callback_url=callback_url,
            callback_task=callback_task,
            metadata=metadata,
        )
        return await self._run(calls.enqueue(request, idempotency_key, self._retries, wait_s=wait_s))

    async def enqueue_many(self, requests: Iterable[JobInput], *, idempotency_key: str | None = None) -> list[str]:
        """Hand in any number of jobs. See `Client.enqueue_many`."""
        return await self._run(calls.enqueue_many(requests, idempotency_key, self._retries))

    async def get(self, job: JobLike) -> Job:
        """Read a job as it is now."""
        return await self._run(calls.get(job, self._retries))

    async def jobs(
        self,
        *,
        state: str | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[Job]:
        """List jobs, the newest first: as many as are taken, page by page."""
        query = calls.query(state=state, model=model, metadata=metadata, limit=page_size)
        after: str | None = None
        while True:
            found, after = await self._run(calls.page(query | ({"after": after} if after else {}), self._retries))
            for job in found:
                yield job
            if after is None:
                return

    async def wait(self, job: JobLike, *, timeout_s: float = 600.0) -> Job:
        """Give a job as it has ended. See `Client.wait`."""
        return await self._run(calls.wait(job, timeout_s, self._retries))

    async def events(self, job: JobLike, *, after: int = 0) -> AsyncIterator[Event]:
        """Follow a job until it has ended. See `Client.events`."""
        story = Story(job, after, self._retries)
        while not story.over:
            answer = await self._run(story.open())
            try:
                if not story.over:
                    with suppress(httpx2.TransportError):
                        async for message in httpx2.EventSource(answer):
                            for event in story.hear(message):
                                yield event
            finally:
                await answer.aclose()
            story.closed()

    async def cancel(self, job: JobLike) -> Job:
        """Cancel a job that is queued still; else Conflict: the provider cannot be stopped."""
        return await self._run(calls.cancel(job, self._retries))

    async def retry(self, job: JobLike, *, idempotency_key: str | None = None) -> Job:
        """Have a job that has ended done again, as a new job whose `retry_of` is the old one."""
        return await self._run(calls.retry(job, idempotency_key, self._retries))

    async def download(self, job: JobLike, index: int = 0, *, to: str | Path = ".", timeout_s: float = 300.0) -> Path:
        """Fetch one output into a file. See `Client.download`."""
        known = job if isinstance(job, Job) else await self.get(job)
        output = calls.output_of(known, index)
        place = calls.place_of(to, known, output)
        if (value := calls.value_of(output)) is not None:
            with WholeFile(place) as file:
                file.write(value)
            return place
        for tried in range(1, self._retries.times + 2):
            answer = await self._run(calls.file(known, output, timeout_s, self._retries))
            try:
                with WholeFile(place) as file:
                    async for piece in answer.aiter_bytes():
                        file.write(piece)
                    calls.check_sum(output, file.sha256)
                return place
            except (httpx2.RequestError, ConnectionFailed) as error:
                await self._run(calls.pause_before_another(tried, error, self._retries))
            finally:
                await answer.aclose()
        raise AssertionError

    async def _run(self, steps: Steps[T]) -> T:
        """Do what the steps say, in turn, and tell them what came of it."""
        reply: Reply = None
        try:
            while True:
                step = steps.send(reply)
                reply = None
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    reply = await self._send(step)
        except StopIteration as end:
            value: T = end.value
            return value

    async def _send(self, call: Call) -> Reply:
        request = self._http.build_request(**self._address.request(call))
        try:
            answer = await self._http.send(request, stream=call.stream, follow_redirects=call.stream)
            if call.stream and not answer.is_success:
                await answer.aread()
        except httpx2.RequestError as error:
            return error
        return answer
