"""
What a call of the client is made of: requests and pauses, which it yields, and is sent what came of them.

So each rule is written once, and two clients, one that blocks and one that does not, carry it out.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID

import httpx2

from pipeline.client.answers import Job
from pipeline.client.errors import ConnectionFailed
from pipeline.client.retries import Retries, failure

T = TypeVar("T")
JobLike = Job | UUID | str


@dataclass(frozen=True, slots=True)
class Call:
    """
    A request to make.

    `answer_s`: how long the answer may keep us waiting.
    `stream`: the body is read by who asked, in pieces. `outside`: the address is not the pipeline's, and gets no key.
    """

    method: str
    target: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    answer_s: float = 30.0
    stream: bool = False
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Time to let pass, in seconds."""

    seconds: float


Reply = httpx2.Response | httpx2.RequestError | None
Steps = Generator[Call | Pause, Reply, T]


def ask(call: Call, retries: Retries) -> Steps[httpx2.Response]:
    """
    Make a call until it succeeds, or it makes no sense any more.

    Every call of this client may be made twice: it reads, or carries an idempotency key, or finds its work done.
    """
    for tried in count(1):
        reply = yield call
        assert reply is not None
        if isinstance(reply, httpx2.Response) and reply.is_success:
            return reply
        pause_s = retries.pause_s(tried, reply)
        if pause_s is None:
            raise failure(reply)
        yield Pause(pause_s)
    raise AssertionError


def decoded(answer: httpx2.Response) -> Any:
    """The JSON value of an answer."""
    try:
        return answer.json()
    except ValueError:
        raise ConnectionFailed("The answer is not JSON: is this the pipeline's address?") from None


def job_in(answer: httpx2.Response) -> Job:
    """The job of an answer."""
    value = decoded(answer)
    try:
        return Job.read(value)
    except (TypeError, AttributeError, ValueError):  # the last of a time that is none
        raise ConnectionFailed("The answer is not a job: is this the pipeline's address?") from None


def path_of(job: JobLike) -> str:
    """The address of a job."""
    return f"/v1/jobs/{quote(job.id if isinstance(job, Job) else str(job), safe='')}"


def prefer(wait_s: float) -> dict[str, str]:
    """Ask that the answer wait for the job's end, if it is to."""
    return {"Prefer": f"wait={int(wait_s)}"} if wait_s >= 1 else {}
