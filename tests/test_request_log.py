"""The log of requests: one line each, and every line says which request, and which job, it is of."""

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.runtime import Runtime
from tests.conftest import WEBHOOK_SECRET, Caller
from tests.factories import encoded, prediction, processing, queued, signed, until
from tests.http import get, request
from tests.serving import Served, serving

FIRST = "the-first.request/of=them"


@pytest.fixture(scope="module")
def server(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a web server as in production: it logs from `info` on."""
    with serving(environ | {"LOG_LEVEL": "info", "WEB_THREADS": "12"}, tmp_path_factory.mktemp("web")) as web:
        yield web


@pytest.fixture
def served(server: Served, rt: Runtime) -> Served:
    """Give that server, on an empty database, with nothing in its log, nor to come of what was before."""
    get(f"{server.url}/the-last-of-before")
    until(lambda: any(line.get("status") == 404 for line in lines(server, "request.served")[-1:]))
    server.log_file.write_text("")  # it appends
    return server


def lines(web: Served, event: str | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in web.log.splitlines() if line.startswith("{")]
    return [line for line in found if event in {None, line["event"]}]


def test_every_line_of_a_request_says_which_one_and_which_job(rt: Runtime, caller: Caller, served: Served) -> None:
    """Somebody asks why: the id in their answer leads to our lines, and the job's id from there to the workers'."""
    asked = {"X-Request-ID": FIRST}
    made = request("POST", f"{served.url}/v1/jobs", {"input": {"prompt": "a mill"}}, asked, key=caller.key)
    job_id = made.json["id"]
    read = get(f"{served.url}/v1/jobs/{job_id}", key=caller.key)
    missing = get(f"{served.url}/nowhere/{job_id}")
    job = processing(rt, caller.service)
    body = encoded(prediction(job))
    heard = request("POST", f"{served.url}/webhooks/wavespeed/{job.token}", body, signed(WEBHOOK_SECRET, body))
    answers = [made, read, missing, heard]
    until(lambda: len(lines(served, "request.served")) == 4)
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert ids[0] == FIRST
    assert len(set(ids)) == 4
    found = [lines(served, "request.served")[n] for n in range(4)]
    assert [(one["request_id"], one["method"], one["route"], one["status"]) for one in found] == [
        (ids[0], "POST", "/v1/jobs", 201),
        (ids[1], "GET", "/v1/jobs/<job:job_id>", 200),
        (ids[2], None, None, 404),
        (ids[3], "POST", "/webhooks/wavespeed/<token>", 204),
    ]
    assert [one.get("service") for one in found] == ["shop", "shop", None, None]
    assert [one.get("job_id") for one in found] == [job_id, job_id, None, str(job.job_id)]
    assert all(one["took_ms"] > 0 for one in found)
    assert (found[3]["verdict"], found[3]["before"]) == ("applied", "processing")


@pytest.mark.parametrize("given", ["", "two words", "a\ttab", "x" * 129, "gr\xfc\xdfe", None], ids=repr)
def test_an_id_that_is_not_sane_is_replaced(served: Served, given: str | None) -> None:
    """It goes into a header and into the log: neither is to be written by strangers."""
    answer = request("GET", f"{served.url}/openapi.json", None, {} if given is None else {"X-Request-ID": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_what_machines_ask_all_the_time_is_not_logged(served: Served) -> None:
    """A probe every few seconds would be most of the log; the longest sane id stays."""
    for path in ("healthz", "readyz"):
        answer = request("GET", f"{served.url}/{path}", None, {"X-Request-ID": "x" * 128})
        assert (answer.status, answer.headers["x-request-id"]) == (200, "x" * 128)
    get(f"{served.url}/openapi.json")
    until(lambda: lines(served, "request.served"))
    assert [one["route"] for one in lines(served, "request.served")] == ["/openapi.json"]


def test_threads_and_streams_keep_their_requests_apart(rt: Runtime, caller: Caller, served: Served) -> None:
    """Few threads serve many: what one request left must not show in the next, nor a stream's in those meanwhile."""
    followed = queued(rt, caller.service)
    stream: list[Any] = []

    def follow() -> None:
        headers = {"X-Request-ID": "the-stream", "Accept": "text/event-stream"}
        stream.append(request("GET", f"{served.url}/v1/jobs/{followed}/events", None, headers, key=caller.key))

    thread = threading.Thread(target=follow)
    thread.start()
    others = [f"other-{number}" for number in range(40)]
    for one in others:
        request("GET", f"{served.url}/v1/jobs", None, {"X-Request-ID": one}, key=caller.key)
        request("GET", f"{served.url}/nowhere", None, {"X-Request-ID": f"{one}-anonymous"})
    request("POST", f"{served.url}/v1/jobs/{followed}/cancel", None, {"X-Request-ID": "the-end"}, key=caller.key)
    thread.join(30)
    assert stream[0].status == 200
    until(lambda: len(lines(served, "request.served")) == 82)
    found = {one["request_id"]: one for one in lines(served, "request.served")}
    assert all(set(found[one]) & {"job_id", "service"} == {"service"} for one in others)
    assert all(not set(found[f"{one}-anonymous"]) & {"job_id", "service"} for one in others)
    assert found["the-stream"]["job_id"] == found["the-end"]["job_id"] == str(followed)
    assert found["the-stream"]["took_ms"] > found["the-end"]["took_ms"]
