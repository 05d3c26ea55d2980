"""
Examine: is this installation fit for its work? Each finding says in plain words how a thing is, and what to do.

    platform.py  settings and Procfile      address.py  PUBLIC_URL, by a ping through it    findings.py  what is found
    database.py  Postgres, connections      provider.py  key, balance, clock, secret
    broker.py    Redis, Valkey, RabbitMQ    files.py, work.py  outputs, models, account, workers
    reasons.py   why a server lets nobody in
"""

from collections.abc import Iterator

from pipeline.deployment import Deployment
from pipeline.errors import Unavailable
from pipeline.lifecycle.examine import address, broker, database, files, platform, provider, work
from pipeline.lifecycle.examine.findings import Finding, Level, fail
from pipeline.runtime import Runtime

__all__ = ["Finding", "Level", "examine", "fail"]


def examine(rt: Runtime, deployment: Deployment | None = None) -> Iterator[Finding]:
    """
    Look at one thing after the other; what hangs on something that is broken is left out.

    Without a *deployment*, what its Procfile would tell is left out too.
    """
    deployment = deployment or Deployment()
    yield from platform.settings(rt)
    yield from platform.procfile(rt, deployment)
    usable = False
    try:
        yield from database.database(rt)
        yield from database.connections(rt, deployment)
        schema = database.tables(rt)
        yield schema
        usable = schema.code != "schema_older"
    except Unavailable as error:
        yield database.unreachable(rt, error)
    yield from broker.broker(rt)
    yield from provider.provider(rt, usable=usable)
    yield files.archive(rt)
    try:
        yield from address.address(rt, usable=usable)
        if usable:
            yield from files.outputs(rt)
            yield work.models(rt)
            yield work.screen(rt)
            yield from work.work(rt)
            yield work.lost(rt)
    except Unavailable as error:  # it has just gone, or takes no writes
        yield database.unreachable(rt, error)
