"""schemathesis against the live server: whatever the document allows or forbids, the answer is one that it names."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import models
from pipeline.runtime import Runtime
from pipeline.web.api.examples import JOB_ID
from tests.conftest import Caller
from tests.factories import scalar
from tests.http import get, request
from tests.test_openapi import operations

NOT_BLANK = r"[^\s\u001c-\u001f\u0085]"  # what is blank in Python, and not everywhere

SEED = os.environ.get("FUZZ_SEED", "20261122")
MAX_EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "4")  # of each call, in each phase
LONGEST_S = 240 * max(1, int(MAX_EXAMPLES) // 10)

pytestmark = pytest.mark.timeout(LONGEST_S + 60)


def exact(document: dict[str, Any], service: str | None) -> dict[str, Any]:
    """
    The document, made as narrow as the server is.

    Answers may have no field that is not described. Requests are for one model, with its schema of the input; and of
    what JSON Schema cannot say (a time at most a year ahead, a task on a list) only what is surely right remains.
    """
    document = copy.deepcopy(document)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        if schema.get("type") == "object":
            schema["additionalProperties"] = False
    for name in {"JobRequest", "BatchLine"} & schemas.keys():
        fields = schemas[name]["properties"]
        fields["model"] = {"enum": ["openai/dall-e-2", None]}
        fields["input"] = copy.deepcopy(models.SCHEMAS["openai/dall-e-2"])
        fields["input"]["properties"]["prompt"]["pattern"] = NOT_BLANK
        fields["run_at"] = {"enum": ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5+02:00", None]}
        fields["callback_url"] = {"enum": ["https://shop.example.com/hook", None]}
        fields["callback_task"] = {"type": "null"}
    batch = document["paths"]["/v1/jobs/batch"]["post"]["requestBody"]["content"]["application/x-ndjson"]
    lines = {"type": "array", "items": batch["schema"]["x-itemSchema"], "minItems": 1}
    batch |= {"schema": lines, "examples": {}}
    for _, _, operation in operations(document):
        for one in operation["parameters"]:
            if one["name"] == "Prefer":
                one["example"] = "wait=0"  # no worker runs, so no job would end
    filters = document["paths"]["/v1/jobs"]["get"]["parameters"]
    for one in filters:
        if one["name"] == "model":
            one["schema"] = {"type": "string", "enum": ["openai/dall-e-2", "some/other-model"]}
        if one["name"] == "service":
            one["schema"] = {"type": "string", "enum": [service]}
    if service is None:
        filters[:] = [one for one in filters if one["name"] != "service"]
    return document


def fuzz(web: str, folder: Path, *arguments: str, key: str | None, service: str | None = None) -> None:
    """Run schemathesis; fail when it found anything, with all that it says of it."""
    file = folder / "openapi.json"
    file.write_text(json.dumps(exact(get(f"{web}/openapi.json").json, service)))
    config = folder / "schemathesis.toml"
    config.write_text("")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", str(file), "--url", web]
    command += ["--no-color", "--seed", SEED, "--generation-database", "none", "--generation-allow-x00", "false"]
    command += ["--continue-on-failure", "--warnings", "off", "--suppress-health-check", "all", *arguments]
    command += ["--header", "Accept: application/json"]  # a stream of events lasts as long as its job
    command += ["--header", f"Authorization: Bearer {key}"] if key else []
    environ = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.fuzzing",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONHASHSEED": "0",  # or the seed would not be all there is
    }
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_request_of_a_service_gets_an_undocumented_answer(
    rt: Runtime, web: str, caller: Caller, tmp_path: Path
) -> None:
    """Calls alone, and one after the other on the same jobs; right ones succeed, wrong ones are refused."""
    fuzz(web, tmp_path, "--max-examples", MAX_EXAMPLES, key=caller.key)


@pytest.mark.slow  # what a service's requests find is mostly the same
def test_no_request_of_an_operator_gets_an_undocumented_answer(
    rt: Runtime, web: str, make_caller: Callable[..., Caller], tmp_path: Path
) -> None:
    """Who may see all may ask for more."""
    operator = make_caller("ops", operator=True)

    fuzz(web, tmp_path, "--phases", "fuzzing", "--max-examples", MAX_EXAMPLES, key=operator.key, service="ops")


def test_no_request_of_nobody_gets_more_than_a_401(rt: Runtime, web: str, tmp_path: Path) -> None:
    """Whatever it is that is asked; the probes answer."""
    fuzz(web, tmp_path, "--phases", "fuzzing", "--max-examples", "3", key=None)

    assert scalar(rt, "SELECT count(*) FROM jobs") == 0
    for method, path, operation in operations(get(f"{web}/openapi.json").json):
        if "security" in operation:
            url = f"{web}{path.format(job_id=JOB_ID, index=0)}"
            assert request(method.upper(), url).status == 401, (method, path)
