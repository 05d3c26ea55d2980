"""`pipeline doctor`: is this fit for its work? The environment is examined; or, in a drill, a deployment."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text

from pipeline.cli.common import out, plain, runtime
from pipeline.deployment import Deployment, formation
from pipeline.embedded import procfile
from pipeline.errors import ConfigError
from pipeline.lifecycle.examine import Finding, Level, examine, fail


class Pool(StrEnum):
    """How Celery runs tasks: the Procfile's choice, or processes of their own."""

    THREADS = "threads"
    PREFORK = "prefork"


def doctor(
    *,
    formation_: Annotated[
        str,
        typer.Option("--formation", help="How many of each line of the Procfile run: web=2,worker=3; one by default."),
    ] = "",
    deploy_drill: Annotated[
        bool,
        typer.Option(
            "--deploy-drill",
            help="Rehearse a deployment under load instead, on this machine and with an imitation of the provider: "
            "SIGTERM to every process at once; how soon all are gone, and whether a job was lost or paid for twice.",
        ),
    ] = False,
    pool: Annotated[Pool, typer.Option(help="The workers' pool in the drill.")] = Pool.THREADS,
    jobs: Annotated[int, typer.Option(min=12, max=10_000, help="How many jobs the drill hands in.")] = 200,
    workers: Annotated[int, typer.Option(min=1, max=32, help="How many worker programs.")] = 1,
    answer_s: Annotated[
        float, typer.Option(min=0.5, max=30.0, help="How long the provider takes to answer a POST, at most.")
    ] = 5.0,
    broker_url: Annotated[str | None, typer.Option(help="A broker that runs; else a Valkey is started.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable, one JSON value on stdout.")] = False,
) -> None:
    """
    Examine the installation. Exit status 1 when something is not as it should be.

    Settings, Procfile, database, connections, broker, provider, clocks, webhooks, archive, models, workers: each ok,
    warn or fail, with what to do. A signed ping goes out through PUBLIC_URL, and must come back in.
    """
    if not deploy_drill:
        sys.exit(_examine(formation_, as_json=json_))
    try:
        from pipeline.embedded import drill  # noqa: PLC0415  # needs the extras `embedded` and `sandbox`
        from pipeline.embedded.supervisor import Stopped, StopSignals  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed here: run `make setup`.") from None

    plan = drill.Plan(pool=pool, jobs=jobs, workers=workers, answer_s=answer_s, broker_url=broker_url)
    with StopSignals().caught() as signals:
        try:
            report = drill.run(plan, signals)
        except Stopped:
            sys.exit(1)
    if json_:
        print(json.dumps(asdict(report) | {"breaches": report.breaches}))
    else:
        drill.show(report)
    sys.exit(1 if report.breaches else 0)


def _examine(asked: str, *, as_json: bool) -> int:
    found = []
    for finding in _findings(asked):
        found.append(finding)
        if not as_json:
            mark = Text(f"{finding.level:>6}  ", _STYLES[finding.level])
            out.print(mark.append(f"{finding.what:13}", "default").append(plain(finding.words)))
            if finding.todo:
                out.print(Text(" " * 21 + "→ ").append(plain(finding.todo)))
    failed = any(finding.level == Level.FAIL for finding in found)
    if as_json:
        print(json.dumps({"fit": not failed, "findings": [asdict(finding) for finding in found]}))
    return 1 if failed else 0


def _findings(asked: str) -> Iterator[Finding]:
    try:
        lines = procfile.read()
    except ConfigError:  # installed as a package: somebody else starts the processes
        lines = {}
    deployment = Deployment(lines, os.environ, formation(asked, lines), os.cpu_count() or 1)
    try:
        rt = runtime()
    except ConfigError as error:
        _, *each = error.detail.splitlines()
        for words in each or [error.detail]:
            todo = "mend that variable: heroku config:set, or your platform's way"
            yield fail("settings", "settings_wrong", words.strip(), todo)
        return
    yield from examine(rt, deployment)


_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
