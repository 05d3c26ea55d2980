"""Everything known of a job in one file, for its owner alone; and its files, which are not kept yet."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline.jobs import FINAL, State
from pipeline.runtime import Runtime
from pipeline.web.api import shapes
from tests.commands import command
from tests.conftest import WEBHOOK_SECRET, Caller
from tests.factories import attempts, encoded, execute, placed, prediction, processing, queued, scalar, signed
from tests.http import get, post
from tests.test_api import is_problem
from tests.test_cli import value
from tests.test_openapi import fits
from tests.test_receiver import deliver


def test_the_evidence_of_a_job_is_everything_that_is_known_of_it(rt: Runtime, web: str, caller: Caller) -> None:
    """As a file to be saved. Whoever has the provider's secret can check each callback's signature with it."""
    job = processing(rt, caller.service)
    body = encoded(prediction(job))
    odd = b'{"id": "\xff"}'
    assert deliver(web, job.token, body).status == 204
    assert deliver(web, job.token, odd).status == 400
    retried = post(f"{web}/v1/jobs/{job.job_id}/retry", key=caller.key).json

    answer = get(f"{web}/v1/jobs/{job.job_id}/evidence", key=caller.key)

    assert answer.headers["content-disposition"] == f'attachment; filename="job-{job.job_id}.json"'
    assert fits(shapes.Evidence, answer)
    found = answer.json
    assert found["job"] == get(f"{web}/v1/jobs/{job.job_id}", key=caller.key).json
    assert [one["outcome"] for one in found["attempts"]] == ["accepted"]
    assert [event["kind"] for event in found["events"]][:4] == [
        "job.queued",
        "job.submitting",
        "job.processing",
        "job.completed",
    ]
    first, second = found["callbacks"]
    assert (first["verdict"], first["body"].encode(), first["body_encoding"]) == ("applied", body, "utf-8")
    at = int(first["headers"]["webhook-timestamp"])
    assert first["headers"].items() >= signed(WEBHOOK_SECRET, body, at=at).items()
    assert (second["verdict"], second["body_encoding"]) == ("unreadable", "base64")
    assert base64.b64decode(second["body"]) == odd
    assert [(one["event"], one["audience"], one["state"]) for one in found["notifications"]] == [
        ("job.completed", "service", "unaddressed")
    ]
    (charge,) = found["charges"]
    assert (charge["prediction_id"], charge["price"]) == (job.prediction_id, 0.12)
    assert (charge["certain"], charge["counts"]) == (True, True)
    assert found["retries"] == [retried["id"]]
    assert job.token not in answer.body.decode()


def test_the_evidence_is_its_owners(rt: Runtime, web: str, make_caller: Callable[..., Caller]) -> None:
    """And the operator's; of a job without a past there is little to tell."""
    shop, blog, operator = make_caller("shop"), make_caller("blog"), make_caller("ops", operator=True)
    url = f"{web}/v1/jobs/{queued(rt, shop.service)}/evidence"

    found = get(url, key=shop.key).json
    assert found == get(url, key=operator.key).json
    assert {name for name, kept in found.items() if kept} == {"job", "events"}
    other = is_problem(get(url, key=blog.key), 404, "unknown_job")
    assert other == is_problem(get(f"{web}/v1/jobs/{uuid4()}/evidence", key=blog.key), 404, "unknown_job")
    is_problem(get(url), 401, "unauthorized")


def test_links_lead_where_a_job_can_go(rt: Runtime, web: str, caller: Caller) -> None:
    """Only what its state allows, and nowhere but to what there is."""
    for at in State:
        job_id = placed(rt, caller.service, at)
        links = get(f"{web}/v1/jobs/{job_id}", key=caller.key).json["links"]
        assert ("cancel" in links) == (at == State.QUEUED)
        assert ("retry" in links) == (at in FINAL | {State.EXPIRED})
        for name in ("self", "evidence"):
            assert get(f"{web}{links[name]}", key=caller.key).status == 200
        for name in links.keys() & {"cancel", "retry"}:
            assert post(f"{web}{links[name]}", key=caller.key).status in {200, 201}


def test_an_output_that_is_not_stored_says_when_to_ask_again(
    rt: Runtime, web: str, make_caller: Callable[..., Caller]
) -> None:
    """409 while it may come, 404 for what will never be there; and nothing at all to another service."""
    shop, blog = make_caller("shop"), make_caller("blog")
    done, failed, waits = (placed(rt, shop.service, at) for at in (State.COMPLETED, State.FAILED, State.PROCESSING))
    execute(rt, 'UPDATE jobs SET outputs = \'[{"url": "https://cdn/1.png"}]\' WHERE id = :id', id=done)

    (output,) = get(f"{web}/v1/jobs/{done}", key=shop.key).json["outputs"]
    assert (output["stored"], output["source_url"]) == (False, "https://cdn/1.png")
    assert {output[name] for name in ("content_type", "bytes", "sha256", "width", "height", "review")} == {None}
    for job_id in (done, waits):
        answer = get(f"{web}/v1/jobs/{job_id}/outputs/0", key=shop.key)
        is_problem(answer, 409, "not_stored_yet")
        assert int(answer.headers["retry-after"]) > 0
        is_problem(get(f"{web}/v1/jobs/{job_id}/outputs/0", key=blog.key), 404, "unknown_job")
    is_problem(get(f"{web}/v1/jobs/{done}/outputs/1", key=shop.key), 404, "unknown_output")
    is_problem(get(f"{web}/v1/jobs/{failed}/outputs/0", key=shop.key), 404, "unknown_output")


@pytest.mark.parametrize("index", ["x", "-1", "%C2%B2", "9" * 5000, "0x1", "1.0", "%00", "%ED%A0%80"])
def test_what_is_no_number_is_no_output(index: str, rt: Runtime, web: str, caller: Caller) -> None:
    """Never a 500."""
    job_id = placed(rt, caller.service, State.PROCESSING)
    is_problem(get(f"{web}/v1/jobs/{job_id}/outputs/{index}", key=caller.key), 404, "unknown_output")


# On the command line


def test_a_person_cancels_retries_and_takes_the_evidence_home(
    rt: Runtime, environ: dict[str, str], caller: Caller, tmp_path: Path
) -> None:
    """Any service's job, without a key."""
    job_id = queued(rt, caller.service, metadata={"order": "7"})

    def run(*words: str) -> tuple[int, str, str]:
        done = command(environ, *words)
        return done.returncode, done.stdout, done.stderr

    assert "has not ended" in run("retry", str(job_id))[2]
    assert [run("cancel", str(job_id))[::2] for _ in range(2)] == [
        (0, "the job is cancelled\n"),
        (0, "the job was cancelled before\n"),
    ]
    (new,) = value(command(environ, "retry", str(job_id), "--key", "k", "--json"))
    assert (new["retry_of"], new["service"], new["metadata"]) == (str(job_id), "shop", {"order": "7"})
    again = command(environ, "retry", str(job_id), "--key", "k")
    assert (again.returncode, new["id"] in again.stdout) == (0, True)

    file = tmp_path / "evidence.json"
    assert run("evidence", str(job_id), "--output", str(file))[0] == 0
    shown = value(command(environ, "evidence", str(job_id)))
    assert shown == json.loads(file.read_text())
    assert (shown["job"]["state"], shown["retries"]) == ("cancelled", [new["id"]])
    file.write_text("mine")
    status, _, said = run("evidence", str(job_id), "--output", str(file))
    assert (status, "--force" in said, file.read_text()) == (1, True, "mine")
    assert run("evidence", str(job_id), "--output", str(file), "--force")[0] == 0
    assert json.loads(file.read_text()) == shown
    status, _, said = run("evidence", str(job_id), "--output", str(tmp_path / "none" / "x"))
    assert (status, "cannot be written" in said) == (1, True)

    for words in (["--metadata", "order=7"], ["--service", "shop"], ["--model", "openai/dall-e-2"]):
        listed = value(command(environ, "jobs", *words, "--json"))
        assert [job["id"] for job in listed] == [new["id"], str(job_id)]
    older = value(command(environ, "jobs", "--metadata", "order=7", "--after", new["id"], "--json"))
    assert [job["id"] for job in older] == [str(job_id)]
    assert run("jobs", "--metadata", "order")[0] == 2
    for words in (["cancel", new["id"][:-1]], ["retry", str(uuid4())], ["evidence", str(uuid4())]):
        assert run(*words)[0] == 1
    assert scalar(rt, "SELECT count(*) FROM jobs") == 2
    assert not attempts(rt, job_id)
