"""The product as it is measured: a whole stack, durable, limited by the machine and 5,000 jobs at the provider."""

import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from benchmarks import costs
from pipeline.embedded import postgres, scratch, stack
from pipeline.embedded.stack import RunningStack
from pipeline.sandbox import Sandbox

MODEL = "wavespeed-ai/flux-dev-lora"

LIMITS = {
    "SUBMITS_PER_MINUTE": "1000000",
    "MAX_IN_FLIGHT": "5000",
    "WAVESPEED_API_KEY": "sandbox",  # whatever key the user's environment has: nothing here may cost money
}


@contextmanager
def unlimited(
    *, archive: bool, generation_s: float = 0.5, file_kb: int = 100, env: Mapping[str, str] | None = None
) -> Iterator[RunningStack]:
    """Run a stack: fsync on, one process a line of the Procfile, a provider that sets no limit."""
    with scratch.directory("bench") as room:
        chosen = {**LIMITS, **({} if archive else {"ARCHIVE_URL": "off"}), **(env or {})}
        data = Path(room, "stack")
        with postgres.running(data / "postgres") as server:
            costs.count_statements(server.url)
        with stack.running(data=data, env=chosen) as running:
            provider = Sandbox(running.sandbox_url)
            provider.faults(generation_s=generation_s, file_kb=file_kb)
            provider.set_balance(1e9)
            yield running


def hand_in(running: RunningStack, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hand in a batch over HTTP; give the ids."""
    body = "\n".join(map(json.dumps, jobs)).encode()
    headers = {"Authorization": f"Bearer {running.api_key}", "Idempotency-Key": str(uuid4())}
    with urllib.request.urlopen(urllib.request.Request(f"{running.url}/v1/jobs/batch", body, headers)) as answer:
        ids: list[str] = json.load(answer)["ids"]
        return ids


SMALL = {"size": "256*256"}
"""Drawn by the provider's imitation in a third of the time: what a picture costs there is not what is measured."""


def prompts(count: int, **more: Any) -> list[dict[str, Any]]:
    """Jobs as callers send them, each with a prompt of its own."""
    words = "a lighthouse on a cliff at dusk, number {}, in the manner of an old postcard"
    return [{"model": MODEL, "input": {"prompt": words.format(number), **SMALL}, **more} for number in range(count)]


def single(running: RunningStack) -> Callable[[Mapping[str, Any]], str]:
    """Hand in jobs one by one over one connection; each call gives an id."""
    connection = HTTPConnection(urlsplit(running.url).netloc)
    headers = {"Authorization": f"Bearer {running.api_key}", "Content-Type": "application/json"}

    def send(job: Mapping[str, Any]) -> str:
        connection.request("POST", "/v1/jobs", json.dumps(job), {**headers, "Idempotency-Key": str(uuid4())})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        assert answer.status == 201, said
        return str(said["id"])

    return send
