"""Traces, as a collector on loopback receives them: what is told, what never is; who does not ask pays nothing."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from pipeline import tracing
from pipeline.embedded import procfile
from pipeline.embedded.processes import Process, Program
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from tests.conftest import Caller
from tests.factories import scalar, until
from tests.http import get, request
from tests.serving import serving

PROMPT = "a prompt that only its caller may read"


@dataclass
class Collector:
    """What was received: spans by the process they came from."""

    url: str
    raw: list[bytes] = field(default_factory=list)

    @property
    def spans(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """Process, span, attributes."""
        found = []
        for body in list(self.raw):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                process = _attributes(resource.resource.attributes)["pipeline.process"]
                for scope in resource.scope_spans:
                    found += [(process, span, _attributes(span.attributes)) for span in scope.spans]
        return found

    def named(self, name: str) -> list[tuple[str, Any, dict[str, Any]]]:
        return [one for one in self.spans if one[1].name == name]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Run a collector that keeps what it is sent."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf"):
                received.append(body)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Collector(f"http://127.0.0.1:{server.server_port}", received)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_job_can_be_followed_from_the_request_to_the_notification(
    environ: dict[str, str],
    rt: Runtime,
    caller: Caller,
    sandbox: Sandbox,
    valkey: Any,
    collector: Collector,
    tmp_path: Path,
) -> None:
    """Web and worker tell of it, by its id and attempt; of what is secret, nothing."""
    receiver = f"{collector.url}/v1/nobody?secret=in-the-query"  # any address that answers
    traced = environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "BROKER_URL": valkey.url,
        "POLL_AFTER_S": "0.2",
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "LANG": "C.UTF-8",
    }
    with serving(traced, tmp_path) as web:
        port = web.url.rpartition(":")[2]
        own = traced | {"PUBLIC_URL": f"http://127.0.0.1:{port}"}
        worker = Process(
            Program(
                name="worker",
                argv=procfile.shell(procfile.read()["worker"]),
                log=tmp_path / "worker.log",
                cwd=procfile.PROCFILE.parent,
                env=own,
            )
        )
        try:
            body = {"input": {"prompt": PROMPT}, "callback_url": receiver}
            made = request("POST", f"{web.url}/v1/jobs", body, key=caller.key)
            assert made.status == 201, made.body
            job_id = made.json["id"]
            wanted = {"POST /v1/jobs", "submit", "wavespeed submit", "callback", "archive", "notify"}
            until(lambda: {one[1].name for one in collector.spans} >= wanted, 60.0)
            assert get(f"{web.url}/v1/jobs/{job_id}/nothing", key=caller.key).status == 404
            until(lambda: collector.named("unknown path"))
        finally:
            worker.stop(25.0)
    tokens = [scalar(rt, "SELECT token FROM attempts"), caller.key, "in-the-query", PROMPT, "whsec"]
    everything = b"".join(collector.raw)
    assert [one for one in tokens if one.encode() in everything] == []

    ((process, accepted, facts),) = collector.named("POST /v1/jobs")
    assert (process, facts["http.response.status_code"], facts["http.route"]) == ("web", 201, "/v1/jobs")
    assert facts["pipeline.job_id"] == job_id
    assert facts["pipeline.request_id"] == made.headers["x-request-id"]
    assert accepted.kind == accepted.SPAN_KIND_SERVER
    ((process, outer, facts),) = collector.named("submit")
    assert (process, facts["pipeline.attempt"]) == ("worker", 1)
    ((_, call, facts),) = collector.named("wavespeed submit")
    assert (call.parent_span_id, call.trace_id, call.kind) == (outer.span_id, outer.trace_id, call.SPAN_KIND_CLIENT)
    assert (facts["server.address"], facts["http.response.status_code"]) == ("127.0.0.1", 200)
    (heard, *_) = collector.named("callback")
    (around, *_) = collector.named("POST /webhooks/wavespeed/<token>")
    assert heard[1].parent_span_id == around[1].span_id
    for name in ("submit", "wavespeed submit", "callback", "archive", "notify"):
        assert collector.named(name)[0][2]["pipeline.job_id"] == job_id
    assert all(
        collector.named(name)[0][2]["pipeline.attempt"] == 1 for name in ("wavespeed submit", "callback", "notify")
    )
    (notified, *_) = collector.named("notify")
    assert (notified[2]["pipeline.event"], notified[2]["server.address"]) == ("job.completed", "127.0.0.1")


def run(environ: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


APP = "from pipeline.web import create_app; client = create_app().test_client();"


def test_who_does_not_ask_for_traces_imports_nothing_of_them(environ: dict[str, str]) -> None:
    """Some megabytes, and a thread, in every process."""
    code = f"{APP} assert client.get('/healthz').status_code == 200; import pipeline.tasks, pipeline.worker, sys;"
    done = run(environ, f"{code} print([name for name in sys.modules if name.startswith('opentelemetry')])")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_without_the_extra_there_is_one_warning_and_no_failure(environ: dict[str, str], collector: Collector) -> None:
    """Whoever set the variable finds out why nothing comes; callers do not."""
    missing = "import sys; sys.modules['opentelemetry'] = None;"  # what an import of it does when it is not installed
    code = f"{missing} {APP} print([client.get(path).status_code for path in ('/healthz', '/nowhere')])"
    done = run(environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, code)
    assert (done.returncode, done.stdout) == (0, "[200, 404]\n"), done.stderr
    assert done.stderr.count("tracing.unavailable") == 1
    assert "extra `otel`" in done.stderr
    assert collector.raw == []


def test_an_error_is_told_by_its_class_alone(environ: dict[str, str], collector: Collector) -> None:
    """Its words may be a prompt's, or an address with a token."""
    code = """
from contextlib import suppress
from pipeline import tracing
tracing.begin("test")
tracing.begin("test")
with suppress(ValueError), tracing.span("outer", job_id="j", attempt=2, address="https://h.example:1/secret?secret"):
    with tracing.span("inner", nothing=None) as inner:
        inner.set(status=503)
        raise ValueError("secret")
with tracing.span("next", address="http://[broken/secret"):
    pass
"""
    done = run(environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, code)
    assert done.returncode == 0, done.stderr
    assert b"secret" not in b"".join(collector.raw)
    spans = {span.name: (span, facts) for _, span, facts in collector.spans}
    assert len(collector.spans) == 3
    assert spans["outer"][1] == {
        "pipeline.job_id": "j",
        "pipeline.attempt": 2,
        "server.address": "h.example",
        "error.type": "ValueError",
    }
    assert spans["inner"][1] == {
        "pipeline.job_id": "j",
        "pipeline.attempt": 2,
        "http.response.status_code": 503,
        "error.type": "ValueError",
    }
    assert spans["inner"][0].status.code == spans["inner"][0].status.STATUS_CODE_ERROR
    assert spans["next"][1] == {}


def test_a_span_is_nothing_while_nobody_traces() -> None:
    """It stands on every path, the hottest too: always the same object, whatever it is called with."""
    one: Callable[..., tracing.Span] = tracing.span
    with one("x", job_id="j") as first, one("y") as second:
        first.set(status=500)
    assert first is second is tracing.NOTHING
