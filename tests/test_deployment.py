"""What a Procfile's processes take of the database: the sum, and what they really open."""

import json
import threading
from pathlib import Path

import pytest

from pipeline.deployment import HEARTBEAT_POOL, SPARE, WEB_POOL, WORKER_POOL, Deployment, formation
from pipeline.embedded import procfile
from pipeline.embedded.processes import Server
from pipeline.errors import ConfigError
from pipeline.jobs import State
from pipeline.lifecycle.examine.platform import DYNO_THREADS, OTHER_THREADS
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.settings import Settings, load
from tests.conftest import Caller
from tests.factories import scalar, until
from tests.http import get, post
from tests.test_stopping import LOCKED, locked, running
from tests.test_submit import many, states

CONNECTIONS = {"heroku-postgresql:essential-2": 40}
"""Source: https://devcenter.heroku.com/articles/heroku-postgres-plans"""

OPEN = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = :name"


def test_the_procfiles_processes_are_summed_up() -> None:
    """Each with its pools, as often as it runs; the release beside the former release's."""
    lines = procfile.read()
    assert Deployment(lines).connections() == {"release": 1, "web": 10, "worker": 9, "beat": 0}
    many = Deployment(lines, {"WEB_CONCURRENCY": "3"}, {"web": 2, "worker": 4, "beat": 2})
    assert many.connections() == {"release": 1, "web": 60, "worker": 36, "beat": 0}
    assert Deployment(lines, {"WEB_CONCURRENCY": ""}).connections()["web"] == 10


@pytest.mark.parametrize(
    ("line", "connections"),
    [
        ("celery -A pipeline.tasks worker --pool prefork --concurrency 3", 27),
        ("celery -A pipeline.tasks worker --concurrency=2 --pool=threads -c 3 -P prefork", 27),
        ("celery -A pipeline.tasks worker", 4 * 9),  # prefork, a child for each CPU
        ("celery -A pipeline.tasks worker --pool solo", 9),
        ("python -m pipeline sweep --loop", 5),
        ("python -m shop", None),
    ],
)
def test_other_lines_are_understood_as_well(line: str, connections: int | None) -> None:
    """People write their own."""
    assert Deployment({"own": line}, cpus=4).connections().get("own") == connections


def test_the_button_makes_an_app_that_fits_its_plans() -> None:
    """Connections of the database's plan with some to spare, threads of the dyno's, and no variable nobody reads."""
    made = json.loads((procfile.PROCFILE.parent / "app.json").read_text())
    environ = {name: item["value"] for name, item in made["env"].items() if "value" in item}
    lines = procfile.read()
    deployed = Deployment(lines, environ, {name: one["quantity"] for name, one in made["formation"].items()})
    plans = [addon["plan"] for addon in made["addons"]]
    assert sum(deployed.connections().values()) <= CONNECTIONS[plans[0]] - SPARE
    assert made["formation"].keys() == lines.keys() - {"release"}
    threads = deployed.number("web", "--blocking-threads", default=0) + OTHER_THREADS
    assert deployed.processes("web") * threads <= DYNO_THREADS
    assert environ["REMAP_SIGTERM"] == "SIGQUIT"
    of_others = {"WEB_CONCURRENCY", "REMAP_SIGTERM"}
    ours = {name.upper() for name in Settings.model_fields}
    assert {name for name in made["env"] if not name.startswith("AWS_")} <= ours | of_others
    assert load({"DATABASE_URL": "postgres://a@b/c", **environ}).web_threads == 96


def test_a_formation_names_lines_that_there_are() -> None:
    """A misspelt one would leave somebody out of the sum."""
    lines = procfile.read()
    assert formation("web=2, worker=0,", lines) == {"web": 2, "worker": 0}
    for text in ("web", "web=-1", "wep=1", "web=1;worker=2"):
        with pytest.raises(ConfigError):
            formation(text, lines)


def test_a_web_process_opens_no_more_than_the_sum_says(rt: Runtime, web: str, caller: Caller) -> None:
    """However many ask at a time, and however long the database takes."""

    def ask() -> None:
        post(f"{web}/v1/jobs", {"input": {"prompt": "a lighthouse"}}, key=caller.key)

    callers = [threading.Thread(target=ask) for _ in range(3 * WEB_POOL)]
    with locked(rt):
        for one in callers:
            one.start()
        until(lambda: scalar(rt, LOCKED) >= WEB_POOL)
        assert get(f"{web}/healthz").status == 200
        assert scalar(rt, OPEN, name="pipeline-web") == WEB_POOL
    for one in callers:
        one.join()
    assert scalar(rt, OPEN, name="pipeline-web") == WEB_POOL


def test_a_worker_process_opens_no_more_than_the_sum_says(
    rt: Runtime, environ: dict[str, str], valkey: Server, caller: Caller, sandbox: Sandbox, tmp_path: Path
) -> None:
    """All its duties at work: jobs submitted, polled, archived and told."""
    most = 0
    jobs = many(rt, caller, 60)
    with running("worker", {**environ, "BROKER_URL": valkey.url}, tmp_path):

        def done() -> bool:
            nonlocal most
            most = max(most, scalar(rt, OPEN, name="pipeline-worker"))
            return states(rt, jobs) == {State.COMPLETED: 60}

        until(done, 60.0)
        assert scalar(rt, OPEN, name="pipeline-heartbeat") == HEARTBEAT_POOL
    assert 1 < most <= WORKER_POOL
