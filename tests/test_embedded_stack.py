"""`pipeline dev`, as its users start it: the product's own processes on real servers."""

import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from pipeline.embedded import api, procfile, stack
from pipeline.embedded.processes import wait_until

pytestmark = pytest.mark.xdist_group("stack")


def beat_is_heard(database_url: str) -> bool:
    """Some worker was told to sweep by Celery's beat, over the broker."""
    with psycopg.connect(database_url) as db:
        return db.execute("SELECT FROM pipeline.workers WHERE told_at IS NOT NULL").fetchone() is not None


def test_whatever_is_killed_comes_back_and_nothing_is_left() -> None:
    """Memory runs out, people press the wrong key: the stack is whole again, and gone when it is told to go."""
    with stack.running(workers=2) as it:
        everybody = {pid for pids in it.pids().values() for pid in pids}
        for name in ("worker", "beat", "web", "valkey", "sandbox", "postgres"):
            before = it.pids()[name]
            it.kill(name)
            assert wait_until(lambda: bool(it.pids()[name]) and not {*it.pids()[name]} & {*before}, 20.0), name  # noqa: B023
        assert wait_until(lambda: api.answers(f"{it.url}/readyz"), 20.0)
        assert len(it.pids()["worker"]) >= 2
        assert wait_until(lambda: beat_is_heard(it.database_url), 60.0)
        everybody |= {pid for pids in it.pids().values() for pid in pids}
    assert not any(psutil.pid_exists(pid) for pid in everybody)
    assert not it.data.exists()


@pytest.mark.slow  # every day kept data survives a kill in test_embedded
def test_kept_data_keeps_its_keys_and_belongs_to_one_stack(tmp_path: Path) -> None:
    """Scripts that hold a key go on working tomorrow; two stacks on one database would fight over its jobs."""
    with stack.running(data=tmp_path, without=("web", "worker", "beat")) as first:
        argv = [sys.executable, "-m", "pipeline", "dev", "--data", str(tmp_path)]
        second = subprocess.run(argv, cwd=procfile.PROCFILE.parent, stderr=subprocess.PIPE, text=True, check=False)
        assert second.returncode == 1
        assert "running already" in second.stderr
    with stack.running(data=tmp_path, without=("worker", "beat")) as again:
        assert (again.api_key, again.dashboard_password) == (first.api_key, first.dashboard_password)
        assert api.call("POST", f"{again.url}/v1/jobs", {"input": {"prompt": "a key"}}, key=first.api_key)[0] == 201


@pytest.mark.slow
def test_the_demo_shows_what_it_promises() -> None:
    """It is the first thing that anybody sees of the product."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "demo"],
        cwd=procfile.PROCFILE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "completed" in done.stdout
    assert "content_moderation" in done.stdout
