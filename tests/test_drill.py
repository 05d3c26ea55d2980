"""The deploy drill, as an operator runs it: `pipeline doctor --deploy-drill`."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from pipeline.embedded import procfile

pytestmark = pytest.mark.xdist_group("stack")


def doctor(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `pipeline doctor` to its end."""
    argv = [sys.executable, "-m", "pipeline", "doctor", *arguments]
    env = {**os.environ, **environ}
    return subprocess.run(argv, cwd=procfile.PROCFILE.parent, env=env, capture_output=True, text=True, check=False)


def drill(pool: str, *arguments: str, **environ: str) -> dict[str, Any]:
    """Run a short drill."""
    words = ("--deploy-drill", "--pool", pool, "--jobs", "30", "--answer-s", "2", "--json", *arguments)
    process = doctor(*words, **environ)
    assert process.stdout, process.stderr
    report: dict[str, Any] = json.loads(process.stdout)
    assert process.returncode == (1 if report["breaches"] else 0)
    return report


def assert_harmless(report: dict[str, Any]) -> None:
    """Everything left by itself, with every answer, and each job was paid for once."""
    assert report["posts_under_way"] >= 1
    assert report["backlog"] >= 1
    assert report["killed"] == []
    assert set(report["statuses"].values()) == {0}
    assert (report["lost"], report["repeated"], report["answers_lost"]) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_deployment_under_load_loses_nothing_and_pays_for_nothing_twice(pool: str) -> None:
    """SIGTERM to every process at once, as on a dyno, whichever pool Celery has."""
    report = drill(pool)

    assert_harmless(report)
    assert report["processes"] == (6 if pool == "prefork" else 4)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_nor_does_one_where_sigterm_is_remapped(pool: str) -> None:
    """Celery's cold shutdown, which Heroku's users of Celery ask for so, would wait for no answer."""
    assert_harmless(drill(pool, REMAP_SIGTERM="SIGQUIT"))
