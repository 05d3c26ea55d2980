"""`pipeline doctor`: is this fit for production? So far one question of it: does a deployment cost a job?"""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from pipeline.errors import ConfigError

OFFER = """
`pipeline doctor` has one examination so far:

  --deploy-drill    on this machine, with an imitation of the provider: SIGTERM to every process of web, worker and
                    beat at once, under load; how soon all are gone, and whether a job was lost or paid for twice
"""


class Pool(StrEnum):
    """How Celery runs tasks: the Procfile's choice, or processes of their own."""

    THREADS = "threads"
    PREFORK = "prefork"


def doctor(
    *,
    deploy_drill: Annotated[bool, typer.Option("--deploy-drill", help="Rehearse a deployment under load.")] = False,
    pool: Annotated[Pool, typer.Option(help="The workers' pool in the drill.")] = Pool.THREADS,
    jobs: Annotated[int, typer.Option(min=12, max=10_000, help="How many jobs the drill hands in.")] = 200,
    workers: Annotated[int, typer.Option(min=1, max=32, help="How many worker programs.")] = 1,
    answer_s: Annotated[
        float, typer.Option(min=0.5, max=30.0, help="How long the provider takes to answer a POST, at most.")
    ] = 5.0,
    broker_url: Annotated[str | None, typer.Option(help="A broker that runs; else a Valkey is started.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable, one JSON value on stdout.")] = False,
) -> None:
    """Examine the installation. Exit status 1 when something is not as it should be."""
    if not deploy_drill:
        print(OFFER.strip())
        return
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
