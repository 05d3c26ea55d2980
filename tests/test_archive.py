"""The archive on real files: fetched from the sandbox by a real worker, served by the real web server."""

import base64
import hashlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import State
from pipeline.lifecycle import prune, review
from pipeline.lifecycle.discard import discard
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import reviews
from pipeline.store.moves import Move, advance
from pipeline.web import create_app
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import execute, happened, kept, kinds, processing, queued, scalar, swept, until
from tests.http import Answer, get, request
from tests.wire import Request, says, wire

StartWorker = Callable[..., Worker]


def output(web: str, caller: Caller, job_id: UUID, index: int = 0) -> dict[str, Any]:
    """An output as its caller sees it."""
    found: dict[str, Any] = get(f"{web}/v1/jobs/{job_id}", key=caller.key).json["outputs"][index]
    return found


def fetched(web: str, caller: Caller, job_id: UUID, rest: str = "", headers: dict[str, str] | None = None) -> Answer:
    return request("GET", f"{web}/v1/jobs/{job_id}/outputs/0{rest}", headers=headers, key=caller.key)


def settled(rt: Runtime, count: int) -> bool:
    return bool(scalar(rt, "SELECT count(*) FROM assets WHERE state <> 'pending'") == count)


def test_outputs_are_kept_and_served_as_they_came(
    rt: Runtime, sandbox: Sandbox, web: str, caller: Caller, start_worker: StartWorker, archive: Path
) -> None:
    """The provider deletes its own after seven days: whole, in parts, unchanged since, or as base64."""
    sandbox.faults(file_kb=200)
    worker = start_worker()
    swept(worker, lambda: scalar(rt, "SELECT archiving FROM account"))
    job_id = queued(rt, caller.service)
    encoded_id = queued(rt, caller.service, input={"prompt": "a lighthouse", "enable_base64_output": True})
    swept(worker, lambda: settled(rt, 2))
    told = output(web, caller, job_id)
    original = get(told["source_url"]).body
    assert told == {
        **told,
        "url": f"{rt.settings.public_url}/v1/jobs/{job_id}/outputs/0",
        "content_type": "image/png",
        "bytes": len(original),
        "sha256": hashlib.sha256(original).hexdigest(),
        "width": 1024,
        "height": 1024,
        "review": None,
        "stored": True,
        "lost": False,
    }
    whole = get(told["url"], key=caller.key)
    assert (whole.status, whole.body == original) == (200, True)
    assert {name: whole.headers.get(name) for name in ("etag", "content-type", "x-content-type-options")} == {
        "etag": f'"{told["sha256"]}"',
        "content-type": "image/png",
        "x-content-type-options": "nosniff",
    }
    assert whole.headers["content-disposition"] == f'inline; filename="{job_id}-0.png"'
    part = fetched(web, caller, job_id, headers={"Range": "bytes=1000-1999"})
    assert (part.status, part.body == original[1000:2000]) == (206, True)
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(original)}"
    parts = fetched(web, caller, job_id, headers={"Range": "bytes=0-1,5-6"})
    assert (parts.status, parts.body == original) == (200, True), "what is asked for in several parts comes whole"
    beyond = fetched(web, caller, job_id, headers={"Range": f"bytes={len(original)}-"})
    assert (beyond.status, beyond.json["code"]) == (416, "not_in_range")
    assert fetched(web, caller, job_id, headers={"If-None-Match": whole.headers["etag"]}).status == 304
    head = request("HEAD", f"{web}/v1/jobs/{job_id}/outputs/0", key=caller.key)
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(original)), b"")
    text = output(web, caller, encoded_id)
    assert text["url"].endswith("?format=base64")
    answer = get(text["url"], key=caller.key)
    assert hashlib.sha256(base64.b64decode(answer.body, validate=True)).hexdigest() == text["sha256"]
    assert fetched(web, caller, job_id, "?format=base32").json["errors"][0]["field"] == "format"
    assert not [path for path in archive.rglob("*") if "#" in path.name]


def test_a_download_that_fails_is_repeated_on_the_same_url_and_one_that_is_gone_is_lost_and_said(
    rt: Runtime, sandbox: Sandbox, web: str, caller: Caller, start_worker: StartWorker
) -> None:
    """A copy is never paid for again; and callers are not left to wait for what does not come."""
    worker = start_worker()
    swept(worker, lambda: scalar(rt, "SELECT archiving FROM account"))
    cut_id = queued(rt, caller.service, "[sandbox:file_cut]")
    gone_id = queued(rt, caller.service, "[sandbox:file_expired]", callback_url="http://127.0.0.1:9/nobody")
    until(lambda: scalar(rt, "SELECT count(*) FROM assets WHERE error IS NOT NULL AND worker_id IS NULL") == 2)
    assert not output(web, caller, cut_id)["stored"]
    early = fetched(web, caller, gone_id)
    assert (early.status, early.json["code"], early.headers["retry-after"]) == (409, "not_stored_yet", "10")
    execute(rt, "UPDATE assets SET due_at = clock_timestamp(), gone = gone * 9, gone_at = gone_at - interval '1 h'")
    swept(worker, lambda: output(web, caller, gone_id)["lost"])
    late = fetched(web, caller, gone_id)
    assert (late.status, late.json["code"]) == (404, "unknown_output")
    assert "403" in happened(rt, gone_id, "output.lost")[0]["error"]
    until(lambda: scalar(rt, "SELECT attempts FROM notifications WHERE job_id = :id", id=gone_id))
    execute(
        rt,
        "UPDATE assets SET created_at = created_at - interval '8 days', due_at = clock_timestamp()"
        " WHERE state = 'pending'",
    )
    swept(worker, lambda: output(web, caller, cut_id)["lost"])
    assert len(sandbox.ledger()) == 2


def test_a_quarantined_output_is_told_to_nobody_but_the_reviewer(
    make_rt: Callable[..., Runtime],
    rt: Runtime,
    web: str,
    caller: Caller,
    make_caller: Callable[..., Caller],
    start_worker: StartWorker,
    archive: Path,
) -> None:
    """Neither the file nor its address at the provider, by whatever door."""
    worker = start_worker(make_rt(nsfw_policy="quarantine"))
    swept(worker, lambda: scalar(rt, "SELECT archiving FROM account"))
    job_id = queued(rt, caller.service, "[sandbox:nsfw]")
    swept(worker, lambda: settled(rt, 1))
    told = output(web, caller, job_id)
    assert (told["url"], told["source_url"], told["stored"], told["review"]) == (None, None, True, "quarantined")
    refused = fetched(web, caller, job_id)
    assert (refused.status, refused.json["code"]) == (404, "unknown_output")
    key = scalar(rt, "SELECT storage_key FROM assets")
    assert key.startswith("quarantine/")
    address = scalar(rt, "SELECT source_url FROM assets")
    evidence = get(f"{web}/v1/jobs/{job_id}/evidence", key=caller.key)
    assert address not in evidence.body.decode()
    assert evidence.json["callbacks"][0]["body_encoding"] == "withheld"
    assert kinds(rt, job_id)[-1] == "output.quarantined"
    operator = make_caller("operator", operator=True)
    assert fetched(web, operator, job_id).body == (archive / key).read_bytes()
    assert address in get(f"{web}/v1/jobs/{job_id}/evidence", key=operator.key).body.decode()


@pytest.mark.parametrize(
    ("value", "content_type", "content"),
    [
        ("a text\u2026", "text/plain; charset=utf-8", "a text\u2026".encode()),
        ({"a": [1]}, "application/json", b'{"a": [1]}'),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(90)).decode(), "image/png", b"\x89PNG\r\n\x1a\n" + bytes(90)),
    ],
)
def test_outputs_that_are_no_address_are_kept_too(
    rt: Runtime, web: str, caller: Caller, value: Any, content_type: str, content: bytes
) -> None:
    """Some models answer with texts or objects; and a file may come as base64, though we ask for an address."""
    execute(rt, "UPDATE account SET archiving = true")
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.COMPLETED, outputs=[{"value": value, "nsfw": None}])])
    worker = Worker(rt)
    worker.look_once()
    worker.stop(0.0)
    told = output(web, caller, job.job_id)
    assert (told["content_type"], told["stored"], told.get("value")) == (
        content_type,
        True,
        None if content_type == "image/png" else value,
    )
    answer = get(told["url"], key=caller.key)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, content, content_type)
    shown = "inline" if content_type == "image/png" else "attachment"
    assert answer.headers["content-disposition"].startswith(shown)


def test_a_worker_that_stops_leaves_its_downloads_to_others_at_once(
    rt: Runtime, caller: Caller, start_worker: StartWorker
) -> None:
    """The platform kills after 30 s: a file of gigabytes, or a server that says nothing, is not waited for."""
    execute(rt, "UPDATE account SET archiving = true")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/1.png"
        job = processing(rt, caller.service)
        with rt.db.transaction() as tx:
            advance(tx, [Move(job.job_id, State.COMPLETED, outputs=[{"url": url, "nsfw": False}])])
        worker = start_worker()
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(4) == b"GET "
            worker.stop(0.0)
    left = "SELECT due_at <= clock_timestamp() AND worker_id IS NULL AND attempts = 0 AND error IS NULL FROM assets"
    assert scalar(rt, left) is True


def test_what_is_purged_while_it_is_fetched_leaves_no_bytes_behind(
    rt: Runtime, caller: Caller, start_worker: StartWorker, archive: Path
) -> None:
    """Purged means removed, though the file came only after the person had decided."""
    execute(rt, "UPDATE account SET archiving = true")
    purged = threading.Event()

    def slow(_request: Request, connection: socket.socket) -> None:
        assert purged.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n\x89PNG\r\n\x1a\n")

    with wire(slow) as provider:
        job = processing(rt, caller.service)
        outputs = [{"url": f"{provider.url}/1.png", "nsfw": True}]
        with rt.db.transaction() as tx:
            advance(tx, [Move(job.job_id, State.COMPLETED, outputs=outputs)])
        start_worker()
        until(lambda: provider.requests)
        assert review.purge(rt, job.job_id, 0, by="a person")
        purged.set()
        until(lambda: scalar(rt, "SELECT count(*) FROM leftovers"))
    kept_for_nothing = archive / scalar(rt, "SELECT storage_key FROM leftovers")
    assert kept_for_nothing.exists()
    assert prune.remove(rt)["files"] == 1
    assert not kept_for_nothing.exists()
    assert scalar(rt, "SELECT count(*) FROM leftovers") == 0


def test_an_answer_that_is_empty_is_no_file(rt: Runtime, caller: Caller, start_worker: StartWorker) -> None:
    """A CDN that says 200 and sends nothing has not got it yet: it is asked again."""
    execute(rt, "UPDATE account SET archiving = true")
    with wire(says(200)) as provider:
        job = processing(rt, caller.service)
        with rt.db.transaction() as tx:
            advance(tx, [Move(job.job_id, State.COMPLETED, outputs=[{"url": f"{provider.url}/1.png", "nsfw": False}])])
        start_worker()
        until(lambda: scalar(rt, "SELECT error FROM assets"))
    assert scalar(rt, "SELECT jsonb_build_array(state, error) FROM assets") == [
        "pending",
        "Its server sent nothing in its place.",
    ]


def test_outputs_from_before_the_archive_are_fetched_when_there_is_one_and_lost_when_they_are_too_old(
    rt: Runtime, make_rt: Callable[..., Runtime], caller: Caller
) -> None:
    """Those planned while nobody archived, and those of jobs that an earlier release completed."""
    off = make_rt(archive_url="off")
    planned, unplanned, old = (kept(rt, caller.service, b"%d" % number) for number in range(3))
    execute(rt, "UPDATE assets SET state = 'pending', storage_key = NULL, stored_at = NULL")
    execute(rt, "DELETE FROM assets WHERE job_id = :id", id=unplanned)
    execute(rt, "UPDATE assets SET created_at = created_at - interval '8 days' WHERE job_id = :id", id=old)
    worker = Worker(off)
    worker.look_once()
    worker.stop(0.0)
    states = "SELECT state FROM assets WHERE job_id = :id"
    assert [scalar(rt, states, id=job_id) for job_id in (planned, unplanned, old)] == ["pending", None, "lost"]
    worker = Worker(rt)
    worker.look_once()
    worker.stop(0.0)
    due = "SELECT attempts > 0 OR due_at IS NOT NULL FROM assets WHERE job_id = :id"
    assert [scalar(rt, due, id=job_id) for job_id in (planned, unplanned)] == [True, True]


def test_a_file_that_outputs_share_is_removed_with_the_last_of_them(rt: Runtime, caller: Caller, archive: Path) -> None:
    """The same prompt twice, or two services: a purge of one must not take the other's."""
    first, second = kept(rt, caller.service, b"the same"), kept(rt, caller.service, b"the same")
    key = scalar(rt, "SELECT DISTINCT storage_key FROM assets")
    for job_id, there in ((first, True), (second, False)):
        asset_id = scalar(rt, "SELECT id FROM assets WHERE job_id = :id", id=job_id)
        with rt.db.transaction() as tx:
            assert reviews.purge(tx, asset_id, by="a person")
        discard(rt, [key])
        assert (archive / key).exists() == there
        assert scalar(rt, "SELECT storage_key FROM assets WHERE id = :id", id=asset_id) is None
    assert kinds(rt, first)[-1] == "output.purged"


def test_ready_says_that_outputs_are_not_kept(make_rt: Callable[..., Runtime]) -> None:
    """Where nobody looks into the settings, somebody looks at that."""
    asked = create_app(make_rt(archive_url=None, dyno="web.1")).test_client().get("/readyz").get_json()
    (found,) = [one for one in asked["degraded"] if one["what"] == "archive"]
    assert "dyno" in found["why"]
