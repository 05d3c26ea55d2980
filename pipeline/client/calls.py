"""The calls of the client, one by one."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2

from pipeline.client.answers import Job, Output
from pipeline.client.errors import ApiError, ClientError, ConnectionFailed, NotFound, WaitTimeout
from pipeline.client.retries import Retries, failure, passing
from pipeline.client.steps import Call, JobLike, Pause, Steps, ask, decoded, job_in, path_of, prefer
from pipeline.files import name_of

JobInput = str | Mapping[str, Any]
"""A prompt, or an object."""

MAX_BATCH_LINES = 10_000
MAX_BATCH_BYTES = 32 * 1024 * 1024
LONGEST_WAIT_S = 25
"""How long the pipeline holds one request."""

NDJSON = "application/x-ndjson"


def job_request(what: JobInput, **options: Any) -> dict[str, Any]:
    """One job as the API takes it: a prompt, or a model's input, and what else is said of it."""
    model_input = {"prompt": what} if isinstance(what, str) else dict(what)
    return {"input": model_input} | {name: value for name, value in options.items() if value is not None}


def query(
    *, state: str | None, model: str | None, metadata: Mapping[str, str] | None, limit: int
) -> dict[str, str | int]:
    """Which jobs to list, as the API takes it."""
    named = {"state": state, "model": model} | {f"metadata.{name}": value for name, value in (metadata or {}).items()}
    return {"limit": limit} | {name: str(value) for name, value in named.items() if value is not None}


def enqueue(request: Mapping[str, Any], key: str | None, retries: Retries, *, wait_s: float = 0) -> Steps[Job]:
    """Hand in one job; with a key, as here always, it may be sent any number of times."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key or str(uuid4()), **prefer(wait_s)}
    call = Call("POST", "/v1/jobs", headers=headers, content=_encoded(request), answer_s=30.0 + wait_s)
    return job_in((yield from ask(call, retries)))


def enqueue_many(requests: Iterable[JobInput], key: str | None, retries: Retries) -> Steps[list[str]]:
    """Hand in any number of jobs, as many at a time as the pipeline takes; each part is all or nothing."""
    key = key or str(uuid4())
    ids: list[str] = []
    for number, part in enumerate(_parts(requests), start=1):
        headers = {"Content-Type": NDJSON, "Idempotency-Key": f"{key}-{number}"}
        call = Call("POST", "/v1/jobs/batch", headers=headers, content=b"\n".join(part), answer_s=120.0)
        try:
            answer = yield from ask(call, retries)
        except ApiError as error:
            error.stored_ids = tuple(ids)
            error.errors = tuple(each.further_down(len(ids)) for each in error.errors)
            raise
        ids += decoded(answer)["ids"]
    return ids


def get(job: JobLike, retries: Retries, *, wait_s: float = 0) -> Steps[Job]:
    """Read a job, perhaps when it has ended."""
    call = Call("GET", path_of(job), headers=prefer(wait_s), answer_s=30.0 + wait_s)
    return job_in((yield from ask(call, retries)))


def page(query: Mapping[str, str | int], retries: Retries) -> Steps[tuple[list[Job], str | None]]:
    """Read one page of the list of jobs, and where the next begins."""
    value = decoded((yield from ask(Call("GET", "/v1/jobs", params=query), retries)))
    return [Job.read(each) for each in value["items"]], value.get("next")


def cancel(job: JobLike, retries: Retries) -> Steps[Job]:
    """Cancel a job; it may be said twice."""
    return job_in((yield from ask(Call("POST", f"{path_of(job)}/cancel", content=b""), retries)))


def retry(job: JobLike, key: str | None, retries: Retries) -> Steps[Job]:
    """Have a job done again, once however often this is sent."""
    headers = {"Idempotency-Key": key or str(uuid4())}
    return job_in((yield from ask(Call("POST", f"{path_of(job)}/retry", headers=headers, content=b""), retries)))


def wait(job: JobLike, timeout_s: float, retries: Retries) -> Steps[Job]:
    """Ask until the job has ended. What passes, such as a restart of the pipeline, only delays."""
    end = time.monotonic() + timeout_s
    while True:
        asked = time.monotonic()
        found = None
        try:
            found = yield from get(job, retries, wait_s=max(0, min(LONGEST_WAIT_S, int(end - asked))))
        except ClientError as error:
            if not passing(error) or time.monotonic() >= end:
                raise
        now = time.monotonic()
        if found and found.ended:
            return found
        if found and now >= end:
            raise WaitTimeout(found)
        if now - asked < 1.0:  # so many wait there that it answers at once, or the time is nearly over
            yield Pause(max(0.0, min(1.0, end - now)))


def output_of(job: Job, index: int) -> Output:
    """One output of a job; else NotFound."""
    for output in job.outputs:
        if output.index == index:
            return output
    raise NotFound(404, "unknown_output", f"The job {job.id} is {job.state} and has no output {index}.")


def value_of(output: Output) -> bytes | None:
    """What stands in the file of a result that came as none; None when there is a file to fetch."""
    if output.value is None or output.source_url or output.url:
        return None
    return (output.value if isinstance(output.value, str) else json.dumps(output.value)).encode()


def place_of(to: str | Path, job: Job, output: Output) -> Path:
    """Where an output goes: to the file named, or, into a folder, under the job's id and its number."""
    place = Path(to)
    if not place.is_dir() and not str(to).endswith("/"):
        return place
    if value_of(output) is not None:
        return place / f"{job.id}-{output.index}.txt"
    return place / name_of(job.id, output.index, output.source_url or output.url, output.content_type)


def check_sum(output: Output, sha256: str) -> None:
    """Compare what was written with what it should be, if that is known."""
    if output.sha256 not in (None, sha256):
        raise ConnectionFailed("The file was damaged on its way: its checksum is another one.")


def file(job: Job, output: Output, timeout_s: float, retries: Retries) -> Steps[httpx2.Response]:
    """Open one file: the pipeline's copy, else the provider's original, else the copy once it is stored."""
    end = time.monotonic() + timeout_s
    ours = Call("GET", f"{path_of(job)}/outputs/{output.index}", stream=True)
    while True:
        try:
            return (yield from ask(ours, retries))
        except ApiError as error:
            pause_s = error.retry_after_s or 1.0
            if error.code != "not_stored_yet" or (not output.source_url and time.monotonic() + pause_s > end):
                raise
        if output.source_url:  # the same bytes, at once
            original = Call("GET", output.source_url, stream=True, outside=True)
            return (yield from ask(original, retries))
        yield Pause(pause_s)


def pause_before_another(tried: int, error: httpx2.RequestError | ConnectionFailed, retries: Retries) -> Steps[None]:
    """Let pass what is due after a file that broke off; raise when it has done so too often."""
    broken = error if isinstance(error, httpx2.RequestError) else httpx2.ReadError(str(error))
    pause_s = retries.pause_s(tried, broken)
    if pause_s is None:
        raise failure(error) if isinstance(error, httpx2.RequestError) else error
    yield Pause(pause_s)


def _parts(requests: Iterable[JobInput]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for given in requests:
        line = _encoded(job_request(given) if isinstance(given, str) else given)
        if part and (len(part) == MAX_BATCH_LINES or size + len(line) + 1 > MAX_BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line) + 1
    if part:
        yield part


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False, default=_plain).encode()


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"A {type(value).__name__} cannot be sent as JSON.")
