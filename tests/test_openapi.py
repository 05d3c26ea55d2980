"""The description of the API is true: it names all there is and nothing else, and what it shows works."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from pipeline import predictions
from pipeline.errors import FAILURES, PipelineError, callers_errors
from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.store import budgets
from pipeline.store.budgets import ACCOUNT
from pipeline.web import create_app
from pipeline.web.api import examples, shapes
from pipeline.web.openapi.calls import EVENTS, JSON
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import execute, kept, placed, processing, queued, swept
from tests.http import Answer, get, post, request

Document = dict[str, Any]


@pytest.fixture
def document(web: str) -> Document:
    """Give the document as the live server gives it."""
    answer = get(f"{web}/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    found: Document = answer.json
    return found


def operations(document: Document) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


# The document


def test_every_route_is_described_and_nothing_else(rt: Runtime, document: Document) -> None:
    """A call that nobody can read about does not exist; one that does not exist must not be read about."""
    live = {
        (method.lower(), rule.rule.replace("<job:", "{").replace("<", "{").replace(">", "}"))
        for rule in create_app(rt).url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/v1/") or rule.rule in {"/healthz", "/readyz"}
    }
    assert {(method, path) for method, path, _ in operations(document)} == live


def test_the_document_is_openapi_3_1(document: Document) -> None:
    """Generators of clients and tests read it."""
    assert document["openapi"].startswith("3.1")
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))


def shown(document: Document) -> Iterator[tuple[str, str, Any, Any]]:
    """Every example with its place, its media type and its schema."""
    for method, path, operation in operations(document):
        places = {"body": operation.get("requestBody", {}), **operation["responses"]}
        for place, described in places.items():
            for media_type, body in described.get("content", {}).items():
                for name, example in body["examples"].items():
                    yield f"{method} {path} {place} {name}", media_type, body["schema"], example["value"]
        for parameter in operation["parameters"]:
            if "example" in parameter:
                schema, value = parameter["schema"], parameter["example"]
                value = int(value) if schema.get("type") == "integer" else value
                yield f"{method} {path} {parameter['name']}", "text", schema, value


def test_every_example_is_of_its_schema(document: Document) -> None:
    """And nothing in it is left over: an example with a field that is not described is a lie, or the schema is."""
    wrong = []
    for place, _, schema, value in shown(document):
        strict = strictly({**schema, "components": document["components"]})
        checker = Draft202012Validator(strict, format_checker=FormatChecker())
        wrong += [f"{place}: {error.message}" for error in checker.iter_errors(value)]
    assert wrong == []


def strictly(schema: Any) -> Any:
    """A schema that allows no field which it does not describe."""
    if isinstance(schema, list):
        return [strictly(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strictly(value) for name, value in schema.items()}
    if "properties" in closed and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def test_every_answer_has_an_example(document: Document) -> None:
    """A reader sees what comes, errors included."""
    for method, path, operation in operations(document):
        succeeds = any(status < "400" for status in operation["responses"])
        assert bool(operation["x-codeSamples"]) == succeeds
        for status, answer in operation["responses"].items():
            for body in answer.get("content", {}).values():
                assert body["examples"], (method, path, status)


# Errors


def descendants(kind: type[PipelineError]) -> set[type[PipelineError]]:
    """Those of the one page of errors: what other doors add has no HTTP status of its own."""
    below = [child for child in kind.__subclasses__() if child.__module__ == PipelineError.__module__]
    return {kind}.union(*map(descendants, below))


def test_every_error_that_a_caller_may_meet_is_explained(document: Document, web: str) -> None:
    """What it means and what to do, once for each code, in words of its own."""
    listed = {item["code"]: item for item in document["x-problems"]}
    expected = {error.code for error in descendants(PipelineError) if error.status not in {500, 502}}
    assert set(listed) == expected | {PipelineError.code}
    assert len({item["remedy"] for item in listed.values()}) == len(listed)
    page = get(f"{web}/docs").body.decode()
    for item in listed.values():
        assert item["meaning"].endswith(".")
        assert item["remedy"].endswith(".")
        assert f'id="error-{item["code"]}"' in page


def test_every_error_stands_with_a_call(document: Document) -> None:
    """A code that no call answers with is none; the provider's own signature is not a caller's business."""
    answered = {
        code
        for _, _, operation in operations(document)
        for answer in operation["responses"].values()
        for code in answer.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }
    assert answered == {error.code for error in callers_errors()} - {
        "method_not_allowed",
        "bad_signature",
    }


def test_every_reason_why_a_job_fails_is_explained() -> None:
    """Callers test for `error.code`."""
    from_the_provider = set(predictions._ERROR_CODES.values()) | {"generation_failed"}
    assert from_the_provider < FAILURES.keys()
    assert all(meaning.endswith(".") for meaning in FAILURES.values())


# What it shows works


def waiting(rt: Runtime, caller: Caller) -> Any:
    return queued(rt, caller.service, run_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())


def ended(rt: Runtime, caller: Caller) -> Any:
    """A job with all that a job can show."""
    job = processing(rt, caller.service)
    execute(
        rt,
        """
        UPDATE jobs SET state = 'completed', due_at = NULL, settled_by = 'webhook', inference_ms = 8421,
            submitted_at = clock_timestamp(), finished_at = clock_timestamp(),
            outputs = '[{"url": "https://cdn/1.png", "nsfw": false}, {"value": "a poem", "nsfw": null}]'
        WHERE id = :id
        """,
        id=job.job_id,
    )
    return job.job_id


def failed(rt: Runtime, caller: Caller) -> Any:
    job = processing(rt, caller.service)
    execute(
        rt,
        """
        UPDATE jobs SET state = 'failed', due_at = NULL, settled_by = 'poll', finished_at = clock_timestamp(),
            error = '{"code": "content_moderation", "message": "No.", "provider_code": 1200}'
        WHERE id = :id
        """,
        id=job.job_id,
    )
    return job.job_id


def held(rt: Runtime, caller: Caller) -> Any:
    job_id = placed(rt, caller.service, State.UNKNOWN)
    execute(rt, "UPDATE jobs SET held_at = clock_timestamp(), held_reason = 'none' WHERE id = :id", id=job_id)
    return job_id


def fits(shape: type[BaseModel], answer: Answer) -> bool:
    """Whether an answer is of a shape, and nothing is left over; else pydantic says where."""
    return bool(shape.model_validate_json(answer.body, extra="forbid"))


def test_jobs_read_as_they_are_described(rt: Runtime, web: str, caller: Caller) -> None:
    """In every condition that fills other fields."""
    made = [placed(rt, caller.service, state) for state in State if state is not State.FAILED]
    made += [held(rt, caller)]
    execute(rt, "UPDATE jobs SET error = NULL")
    made += [queued(rt, caller.service, metadata={"order": "1"}), ended(rt, caller), failed(rt, caller)]

    for job_id in made:
        assert fits(shapes.Job, get(f"{web}/v1/jobs/{job_id}", key=caller.key))


def test_what_comes_in_many_reads_as_it_is_described(rt: Runtime, web: str, caller: Caller) -> None:
    """Pages, batches, and events: as a list, and each one of a stream."""
    job_id = ended(rt, caller)

    assert fits(shapes.JobList, get(f"{web}/v1/jobs", key=caller.key))
    assert fits(shapes.Batch, post(f"{web}/v1/jobs/batch", examples.BATCH.encode(), key=caller.key))
    assert fits(shapes.Evidence, get(f"{web}/v1/jobs/{job_id}/evidence", key=caller.key))
    url = f"{web}/v1/jobs/{job_id}/events"
    assert fits(shapes.EventList, request("GET", url, None, {"Accept": JSON}, key=caller.key))
    stream = get(url, key=caller.key)
    assert stream.headers["content-type"] == EVENTS
    sent = [line.removeprefix("data: ") for line in stream.body.decode().splitlines() if line.startswith("data: ")]
    events = [shapes.Event.model_validate_json(one, extra="forbid") for one in sent]
    assert [event.job is not None for event in events] == [False] * (len(events) - 1) + [True]


def test_problems_and_probes_read_as_they_are_described(rt: Runtime, web: str, caller: Caller) -> None:
    """With fields named, too."""
    assert fits(shapes.Problem, get(f"{web}/v1/jobs/{examples.JOB_ID}", key=caller.key))
    assert fits(shapes.Problem, post(f"{web}/v1/jobs", {"input": {}}, key=caller.key))
    assert fits(shapes.Alive, get(f"{web}/healthz"))
    assert fits(shapes.Readiness, get(f"{web}/readyz"))


NEEDS: Mapping[str, Callable[[Runtime, Caller], Any]] = {
    "get_job": ended,
    "stream_events": ended,
    "get_evidence": ended,
    "get_output": lambda rt, caller: kept(rt, caller.service),
    "cancel_job": waiting,
    "retry_job": ended,
}
"""The job that an example's id must stand for, if it is to work."""


def test_every_command_works(
    rt: Runtime, web: str, caller: Caller, document: Document, start_worker: Callable[..., Worker]
) -> None:
    """They are copied before anything else is read."""
    commands = []
    for _, path, operation in operations(document):
        for sample in operation["x-codeSamples"]:
            command = sample["source"]
            if "{job_id}" in path:
                assert examples.JOB_ID in command
                command = command.replace(examples.JOB_ID, str(NEEDS[operation["operationId"]](rt, caller)))
            commands.append(command)
    worker = start_worker()

    with ThreadPoolExecutor(len(commands)) as threads:
        running = [threads.submit(shell, command, PIPELINE_URL=web, PIPELINE_KEY=caller.key) for command in commands]
        swept(worker, lambda: all(one.done() for one in running))

    for one in running:
        done = one.result()
        assert done.returncode == 0, (done.args, done.stdout, done.stderr)
        assert done.stdout


def shell(command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


def documented(document: Document, method: str, path: str, answer: Answer, code: str) -> bool:
    """Whether an error is one that its call is said to answer, with all that it carries."""
    described = document["paths"][path][method]["responses"][str(answer.status)]
    told = {"retry-after", "ratelimit", "ratelimit-policy", "www-authenticate"} & answer.headers.keys()
    assert told <= {name.lower() for name in described["headers"]}
    for name, header in described["headers"].items():
        value = answer.headers.get(name.lower())
        if value is not None:
            schema = header["schema"]
            Draft202012Validator(schema).validate(int(value) if schema["type"] == "integer" else value)
    assert answer.json["code"] == code
    assert code in described["content"][answer.headers["content-type"]]["examples"]
    return fits(shapes.Problem, answer)


def test_what_is_rarely_refused_is_described_too(rt: Runtime, web: str, caller: Caller, document: Document) -> None:
    """Limits of size, money and pace are what a caller meets on a bad day, and cannot try out before."""
    url, job = f"{web}/v1/jobs", {"input": {"prompt": "a lighthouse"}}
    done = ended(rt, caller)
    with rt.db.transaction() as tx:
        budgets.open_(tx, ACCOUNT, "day", Decimal("0.01"))
        budgets.catch_up(tx)

    big = {"input": {"prompt": "x" * 300_000}}
    assert documented(document, "post", "/v1/jobs", post(url, big, key=caller.key), "body_too_large")
    lines = b"{}\n" * 10_001
    answer = post(f"{url}/batch", lines, key=caller.key)
    assert documented(document, "post", "/v1/jobs/batch", answer, "body_too_large")
    assert documented(document, "post", "/v1/jobs", post(url, job, key=caller.key), "budget_exceeded")
    answer = post(f"{url}/{done}/retry", key=caller.key)
    assert documented(document, "post", "/v1/jobs/{job_id}/retry", answer, "budget_exceeded")
    execute(rt, "UPDATE services SET requests_per_minute = 1")
    assert get(url, key=caller.key).headers["ratelimit"]
    assert documented(document, "get", "/v1/jobs", get(url, key=caller.key), "rate_limited")
    assert documented(document, "get", "/v1/jobs", get(url), "unauthorized")


# The pages


def test_the_page_needs_nothing_from_elsewhere(web: str, document: Document) -> None:
    """It is read behind firewalls, and must not run what a description smuggles in."""
    answer = get(f"{web}/docs")

    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in answer.headers["content-security-policy"]
    page = answer.body.decode()
    for loaded in ("<script", "<link", "<img", "src=", "@import", "url("):
        assert loaded not in page
    for _, path, operation in operations(document):
        assert f'id="{operation["operationId"]}"' in page
        assert path in page
    for schema in document["components"]["schemas"]:
        assert f'id="{schema}"' in page


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_an_unchanged_page_is_not_sent_again(path: str, web: str) -> None:
    """Clients that look at every start take the one that they have."""
    first = get(f"{web}{path}")

    again = request("GET", f"{web}{path}", None, {"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
