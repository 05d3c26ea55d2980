"""The client that blocks. Threads may share one."""

import time
from collections.abc import Iterable, Iterator, Mapping
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


class Client:
    """
    Calls the pipeline at *url* with a service's *key*; by default those of PIPELINE_URL and PIPELINE_KEY.

    What can do no harm twice is repeated when it fails for a passing reason (see `Retries`); nothing else is. Every
    method raises a ClientError (see `pipeline.client.errors`). Keep one client: it keeps its connections.
    """

    def __init__(self, url: str | None = None, key: str | None = None, *, retries: Retries | None = None) -> None:
        self._address = Address.of(url, key)
        self._retries = retries or Retries()
        self._http = httpx2.Client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def enqueue(
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
        """
        Hand in one job: *what* is its prompt, or the model's whole input.

        The same *idempotency_key* is the same job, whoever sends it when; without one the call makes its own, so that
        it may be repeated until it is answered. With *wait_s* (at most 25) the answer waits for the job's end.
        """
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
        return self._run(calls.enqueue(request, idempotency_key, self._retries, wait_s=wait_s))

    def enqueue_many(self, requests: Iterable[JobInput], *, idempotency_key: str | None = None) -> list[str]:
        """
        Hand in any number of jobs, and give their ids in order.

        Each request is a prompt, or an object as `POST /v1/jobs` takes it (`{"input": {…}, "model": …}`). They go in
        parts of at most 10,000 and 32 MiB, each of them all or nothing. When a part is refused, the error has the
        ids of those before it (`stored_ids`), and its lines count from the first request of all. The same requests
        with the same *idempotency_key* are the same jobs.
        """
        return self._run(calls.enqueue_many(requests, idempotency_key, self._retries))

    def get(self, job: JobLike) -> Job:
        """Read a job as it is now."""
        return self._run(calls.get(job, self._retries))

    def jobs(
        self,
        *,
        state: str | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> Iterator[Job]:
        """List jobs, the newest first: as many as are taken, page by page."""
        query = calls.query(state=state, model=model, metadata=metadata, limit=page_size)
        after: str | None = None
        while True:
            found, after = self._run(calls.page(query | ({"after": after} if after else {}), self._retries))
            yield from found
            if after is None:
                return

    def wait(self, job: JobLike, *, timeout_s: float = 600.0) -> Job:
        """
        Give a job as it has ended, be it well or not: see its `state`.

        Raises:
            WaitTimeout: It has not ended in *timeout_s* seconds. It goes on.
        """
        return self._run(calls.wait(job, timeout_s, self._retries))

    def events(self, job: JobLike, *, after: int = 0) -> Iterator[Event]:
        """
        Follow a job: each event once, from the one *after* the given number on, until it has ended.

        A stream that breaks is taken up where it broke.
        """
        story = Story(job, after, self._retries)
        while not story.over:
            answer = self._run(story.open())
            try:
                if not story.over:
                    with suppress(httpx2.TransportError):
                        for message in httpx2.EventSource(answer):
                            yield from story.hear(message)
            finally:
                answer.close()
            story.closed()

    def cancel(self, job: JobLike) -> Job:
        """Cancel a job that is queued still; else Conflict: the provider cannot be stopped."""
        return self._run(calls.cancel(job, self._retries))

    def retry(self, job: JobLike, *, idempotency_key: str | None = None) -> Job:
        """Have a job that has ended done again, as a new job whose `retry_of` is the old one."""
        return self._run(calls.retry(job, idempotency_key, self._retries))

    def download(self, job: JobLike, index: int = 0, *, to: str | Path = ".", timeout_s: float = 300.0) -> Path:
        """
        Fetch one output into the file *to*, or into a folder under a name of its own, and give the file's path.

        The file is there whole or not at all. It is the pipeline's own copy; until there is one, the provider's file;
        where that cannot be had, the copy is waited for, for *timeout_s* seconds.

        Raises:
            NotFound: The job has no such output (yet: wait for its end first).
        """
        known = job if isinstance(job, Job) else self.get(job)
        output = calls.output_of(known, index)
        place = calls.place_of(to, known, output)
        if (value := calls.value_of(output)) is not None:
            with WholeFile(place) as file:
                file.write(value)
            return place
        for tried in range(1, self._retries.times + 2):
            answer = self._run(calls.file(known, output, timeout_s, self._retries))
            try:
                with WholeFile(place) as file:
                    for piece in answer.iter_bytes():
                        file.write(piece)
                    calls.check_sum(output, file.sha256)
                return place
            except (httpx2.RequestError, ConnectionFailed) as error:
                self._run(calls.pause_before_another(tried, error, self._retries))
            finally:
                answer.close()
        raise AssertionError

    def _run(self, steps: Steps[T]) -> T:
        """Do what the steps say, in turn, and tell them what came of it."""
        reply: Reply = None
        try:
            while True:
                step = steps.send(reply)
                reply = None
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    reply = self._send(step)
        except StopIteration as end:
            value: T = end.value
            return value

    def _send(self, call: Call) -> Reply:
        request = self._http.build_request(**self._address.request(call))
        try:
            answer = self._http.send(request, stream=call.stream, follow_redirects=call.stream)
            if call.stream and not answer.is_success:
                answer.read()
        except httpx2.RequestError as error:
            return error
        return answer
