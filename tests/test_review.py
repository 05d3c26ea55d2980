"""Review: what is flagged as unsafe waits for a person, who lets it go or has it removed."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery import Celery

from pipeline.broker import QUEUE
from pipeline.embedded.processes import Server
from pipeline.errors import NotAllowedNow, StorageFailed, UnknownOutput
from pipeline.jobs import State
from pipeline.lifecycle import review
from pipeline.outputs import Policy
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import assets, reviews
from pipeline.store.assets import Stored
from pipeline.store.moves import Move, advance
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import execute, processing, queued, row, scalar, state, swept
from tests.http import get
from tests.test_cli import run_in

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(rt: Runtime, environ: dict[str, str]) -> Run:
    """Run a command on the tests' database."""
    return lambda *words: run_in(environ, "review", *words)


def kept(rt: Runtime, caller: Caller, content: bytes, *, nsfw: bool = True) -> UUID:
    """A job with one output, stored as the archive stores it."""
    job = processing(rt, caller.service)
    outputs = [{"url": "https://cdn.example.com/1.png", "nsfw": nsfw}]
    execute(rt, "UPDATE account SET archiving = true, nsfw_policy = 'quarantine'")
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.COMPLETED, attempt_id=job.attempt_id, outputs=outputs)])
    one = asset(rt, job.job_id)
    key = f"{'quarantine' if nsfw else 'files'}/00/{content.hex()}"
    assert rt.storage
    assert rt.storage.folder
    path = rt.storage.folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    stored = Stored(one.id, job.job_id, one.review, key, content.hex(), len(content), "image/png")
    with rt.db.transaction() as tx:
        assert assets.settle(tx, [stored])
    return job.job_id


def asset(rt: Runtime, job_id: UUID) -> Any:
    """The first output's row."""
    with rt.db.transaction() as tx:
        return reviews.output(tx, job_id, 0)


def files(archive: Path) -> list[str]:
    """What lies in the archive, by its key."""
    return sorted(str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file())


def happened(rt: Runtime, job_id: UUID, kind: str) -> list[dict[str, Any]]:
    """The data of events of one kind."""
    sql = "SELECT coalesce(jsonb_agg(data ORDER BY seq), '[]') FROM events WHERE job_id = :id AND kind = :kind"
    found: list[dict[str, Any]] = scalar(rt, sql, id=job_id, kind=kind)
    return found


@pytest.fixture
def alone(rt: Runtime, archive: Path) -> Path:
    """Give the archive, empty."""
    for path in archive.rglob("*"):
        if path.is_file():
            path.unlink()
    return archive


def test_a_flagged_output_is_kept_from_its_caller_until_a_person_releases_it(
    make_rt: Callable[..., Runtime],
    rt: Runtime,
    sandbox: Sandbox,
    web: str,
    caller: Caller,
    make_caller: Callable[..., Caller],
    start_worker: Callable[..., Worker],
    alone: Path,
    run: Run,
    tmp_path: Path,
) -> None:
    """No address of it anywhere; then served, and announced. Who decided, and when, is known for good."""
    worker = start_worker(make_rt(nsfw_policy=Policy.QUARANTINE))
    swept(worker, lambda: scalar(rt, "SELECT archiving AND nsfw_policy = 'quarantine' FROM account"))
    job_id = queued(rt, caller.service, "[sandbox:nsfw] a lighthouse")
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED and asset(rt, job_id).state == "stored")
    source = row(rt, job_id).outputs[0]["url"]

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = get(f"{web}/v1/jobs/{job_id}", key=caller.key).json["outputs"][0]
        return found

    address = f"{web}/v1/jobs/{job_id}/outputs/0"
    assert (shown()["url"], shown()["source_url"], shown()["review"]) == (None, None, "quarantined")
    assert (get(address, key=caller.key).status, get(address, key=caller.key).json["code"]) == (404, "unknown_output")
    assert source not in get(f"{web}/v1/jobs/{job_id}/evidence", key=caller.key).body.decode()
    assert [name.split("/")[0] for name in files(alone)] == ["quarantine"]

    (waiting,) = json.loads(run("list", "--json").stdout)
    assert (waiting["job"], waiting["output"], waiting["service"]) == (str(job_id), 0, "shop")
    seen = get(f"{web}{waiting['address']}", key=make_caller("desk", operator=True).key)
    picture = tmp_path / "seen.png"
    assert run("save", str(job_id), str(picture)).returncode == 0
    assert (seen.status, seen.body) == (200, picture.read_bytes())

    assert run("release", str(job_id), "--by", "Ada").returncode == 0
    assert get(address, key=caller.key).body == seen.body
    assert (shown()["url"], shown()["review"], shown()["stored"]) == (
        f"{rt.settings.public_url}/v1/jobs/{job_id}/outputs/0",
        "released",
        True,
    )
    assert happened(rt, job_id, "output.released") == [{"index": 0, "by": "Ada"}]
    assert asset(rt, job_id).reviewed_by == "Ada"
    told = "SELECT count(*) FROM notifications WHERE job_id = :id AND event = 'output.released'"
    assert scalar(rt, told, id=job_id) == 1
    assert [name.split("/")[0] for name in files(alone)] == ["files"]
    assert json.loads(run("list", "--json").stdout) == []


def test_what_is_purged_is_gone_with_its_bytes_and_for_everybody(
    rt: Runtime, web: str, caller: Caller, make_caller: Callable[..., Caller], alone: Path, run: Run
) -> None:
    """The law may ask for it; the history still says who did it."""
    job_id = kept(rt, caller, b"unsafe")
    assert run("purge", str(job_id)).returncode == 1, "nobody said yes"
    assert run("purge", str(job_id), "--yes", "--by", " Ada ").returncode == 0
    assert files(alone) == []
    for key in (caller.key, make_caller("desk", operator=True).key):
        assert get(f"{web}/v1/jobs/{job_id}/outputs/0", key=key).status == 404
    assert happened(rt, job_id, "output.purged") == [{"index": 0, "by": "Ada"}]
    again = run("purge", str(job_id), "--output", "0", "--yes")
    assert (again.returncode, again.stderr) == (0, "output 0 is purged before\n")
    assert len(happened(rt, job_id, "output.purged")) == 1
    with pytest.raises(NotAllowedNow):
        review.release(rt, job_id, 0, by="Ada")
    assert run("release", str(job_id)).returncode == 1


def test_content_that_others_share_outlives_what_is_decided_about_one(rt: Runtime, caller: Caller, alone: Path) -> None:
    """Equal files are one file: it is there as long as anybody needs it, served or held."""
    first, second, third = (kept(rt, caller, b"same") for _ in range(3))
    clean = kept(rt, caller, b"same", nsfw=False)
    key = b"same".hex()
    review.purge(rt, first, 0, by="Ada")
    review.release(rt, second, 0, by="Ada")
    assert files(alone) == [f"files/00/{key}", f"quarantine/00/{key}"]
    review.purge(rt, third, 0, by="Ada")
    review.purge(rt, clean, 0, by="Ada")
    assert files(alone) == [f"files/00/{key}"]
    assert review.content(rt, second, 0)[1] == b"same"
    review.purge(rt, second, 0, by="Ada")
    assert files(alone) == []


def test_one_who_decides_twice_or_about_nothing_is_told(rt: Runtime, caller: Caller, alone: Path, run: Run) -> None:
    """A name stands for a decision: it must be one, and be made once."""
    job_id = kept(rt, caller, b"unsafe")
    review.release(rt, job_id, 0, by="Ada")
    with pytest.raises(NotAllowedNow, match="it is released"):
        review.release(rt, job_id, 0, by="Grace")
    assert happened(rt, job_id, "output.released") == [{"index": 0, "by": "Ada"}]
    with pytest.raises(UnknownOutput):
        review.release(rt, job_id, 1, by="Ada")
    for wrong in ("", " ", "a" * 101, "a\nb"):
        assert run("release", str(job_id), "--by", wrong).returncode == 1
    assert run("release", "no-id").returncode == 1


def test_a_release_wakes_who_tells_of_it(rt: Runtime, caller: Caller, environ: dict[str, str], valkey: Server) -> None:
    """Else its caller hears of it at the next sweep only."""
    job_id = kept(rt, caller, b"one")
    broker = Celery(broker=valkey.url, set_as_current=False)
    with broker.connection_for_read() as connection, connection.SimpleQueue(QUEUE) as messages:
        messages.clear()
        assert run_in(environ | {"BROKER_URL": valkey.url}, "review", "release", str(job_id)).returncode == 0
        message = messages.get(timeout=10)
        message.ack()
    assert message.headers["task"] == "pipeline.notify"


def test_a_storage_that_is_away_leaves_a_release_undone_and_a_purge_to_be_finished(
    make_rt: Callable[..., Runtime], rt: Runtime, caller: Caller, alone: Path
) -> None:
    """What is purged must not be served, wherever its bytes are; what is released must be there."""
    released, purged = kept(rt, caller, b"one"), kept(rt, caller, b"two")
    away = make_rt(archive_url="off")
    with pytest.raises(StorageFailed):
        review.release(away, released, 0, by="Ada")
    assert asset(rt, released).review == "quarantined"
    with pytest.raises(StorageFailed, match="served no more"):
        review.purge(away, purged, 0, by="Ada")
    assert asset(rt, purged).review == "purged"
    assert len(files(alone)) == 2
    assert review.purge(rt, purged, 0, by="Ada") is False
    assert files(alone) == [f"quarantine/00/{b'one'.hex()}"]
