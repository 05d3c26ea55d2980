"""Files that `pipeline enqueue --download` fetches: our own copy, else by the guarded client; whole or not at all."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import views
from pipeline.cli.download import fetch
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import assets, reading
from pipeline.store.assets import Copy
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import execute, queued, scalar, swept
from tests.test_outbound import INSIDE, US
from tests.wire import says, wire


def fetched(
    rt: Runtime, folder: Path, job: dict[str, Any], copies: Mapping[tuple[str, int], Copy] | None = None
) -> list[str]:
    """Fetch a job's outputs; what went wrong."""
    told: list[int] = []
    wrong = asyncio.run(fetch(rt, [job], copies or {}, folder, told=lambda: told.append(1)))
    assert len(told) == len(job["outputs"])
    return wrong


def test_a_file_is_fetched_from_where_one_may_go_only(make_rt: Callable[..., Runtime], tmp_path: Path) -> None:
    """Its address is the provider's word: nothing on the operator's own machine or network is read for it."""
    with wire(says(200, b"secret"), host=INSIDE) as inside, wire(says(302, Location=f"{inside.url}/a")) as server:
        url = f"{server.url}/a.png?sig=1"
        outputs = [{"index": 0, "source_url": url}, {"index": 1, "source_url": None, "value": "yes"}]
        job = {"id": "job", "outputs": outputs}
        assert fetched(make_rt(outbound_allow=()), tmp_path, job) == [
            f"job, output 0: {server.url}/a.png: the address must not lead to 127.0.0.1, a loopback address."
        ]
        assert server.untouched
        (wrong,) = fetched(make_rt(outbound_allow=(US,)), tmp_path, job)
        assert wrong.startswith(f"job, output 0: {server.url}/a.png redirects to {inside.url}/a: ")
        assert inside.untouched
        assert [path.name for path in tmp_path.iterdir()] == ["job-1.txt"]
        server.handler = says(200, b"hello")
        assert fetched(make_rt(outbound_allow=(US,)), tmp_path, job) == []
    assert (tmp_path / "job-0.png").read_bytes() == b"hello"


def test_our_own_copy_is_taken_while_it_is_sound(
    rt: Runtime,
    sandbox: Sandbox,
    web: str,
    caller: Caller,
    start_worker: Callable[..., Worker],
    archive: Path,
    tmp_path: Path,
) -> None:
    """It is there when the provider's is gone; what was tampered with, or is put aside, is not taken for it."""
    worker = start_worker()
    swept(worker, lambda: scalar(rt, "SELECT archiving FROM account"))
    job_id = queued(rt, caller.service)
    swept(worker, lambda: scalar(rt, "SELECT count(*) FROM assets WHERE state = 'stored'"))
    sandbox.faults(file_expired=1.0)

    def attempt(folder: str) -> list[str]:
        with rt.db.transaction() as tx:
            job, copies = views.job(reading.job(tx, job_id)), assets.copies(tx, [job_id])
        return fetched(rt, tmp_path / folder, job, copies)

    assert attempt("first") == []
    place = archive / str(scalar(rt, "SELECT storage_key FROM assets"))
    assert (tmp_path / "first" / f"{job_id}-0.png").read_bytes() == place.read_bytes()

    place.write_bytes(b"other bytes")
    assert "the provider answers 403" in attempt("second")[0]
    place.unlink()
    assert "the provider answers 403" in attempt("third")[0]
    execute(rt, "UPDATE assets SET review = 'quarantined'")
    assert "it is quarantined" in attempt("fourth")[0]
    assert not [path for folder in ("second", "third", "fourth") for path in (tmp_path / folder).glob("*")]
