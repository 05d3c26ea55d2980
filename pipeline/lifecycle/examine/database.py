"""The database: reachable, of a version we know, encrypted, near, on time, migrated, and with room for all of us."""

from collections.abc import Iterator

from pipeline.deployment import SPARE, Deployment
from pipeline.errors import Unavailable
from pipeline.lifecycle.examine.findings import Finding, fail, ok, warn
from pipeline.lifecycle.examine.reasons import reason
from pipeline.runtime import Runtime
from pipeline.store import schema, server
from pipeline.store.server import Server

OLDEST, NEWEST = 14, 18
FAR_MS = 20.0
"""A callback takes a handful of statements: further away than this it is felt."""

OFF_S = 10.0
"""How far the database's clock, which all alarms go by, may be from this machine's, in seconds."""


def database(rt: Runtime) -> Iterator[Finding]:
    """Look at the server; nothing else can be asked when this raises Unavailable."""
    with rt.db.transaction() as tx:
        found = server.look(tx)
    yield from judge(found)
    yield _clock(found)


def tables(rt: Runtime) -> Finding:
    """Whether the schema is that of this code."""
    with rt.db.transaction() as tx:
        version, is_older = schema.current(tx), schema.is_older_than_the_code(tx)
    if is_older:
        words = f"at {version}, older than this code" if version else "there are no tables yet"
        return fail("schema", "schema_older", words, "pipeline migrate")
    if version not in schema.known():
        words = f"at {version}, newer than this code: a release is under way, or one was rolled back"
        return warn("schema", "schema_newer", words, "deploy the newer code again, unless it is about to come")
    return ok("schema", f"at {version}")


def connections(rt: Runtime, deployment: Deployment) -> Iterator[Finding]:
    """Whether all processes together can have the connections that their pools may open."""
    each = {name: count for name, count in deployment.connections().items() if count}
    if not each:
        return
    need = sum(each.values())
    with rt.db.transaction() as tx:
        tightest = min(server.limits(tx), key=lambda limit: limit.most - limit.others)
    of_each = ", ".join(
        f"{name} {count}" + (f" in {copies} processes" if copies > 1 else "")
        for name, count in each.items()
        for copies in [deployment.processes(name) * (1 if name == "release" else deployment.count(name))]
    )
    taken = f", {tightest.others} of which others have" if tightest.others else ""
    words = f"at most {need} ({of_each}); {tightest.what} allows {tightest.most}{taken}"
    todo = "fewer processes (WEB_CONCURRENCY, the formation), or a database that allows more"
    left = tightest.most - tightest.others - need
    if left < 0:
        yield fail("connections", "too_few_connections", words, todo)
    elif left < SPARE:
        yield warn("connections", "no_connections_to_spare", f"{words}: none is left for a person", todo)
    else:
        yield ok("connections", words)


def unreachable(rt: Runtime, error: Unavailable) -> Finding:
    """It cannot be asked; where that is known, why."""
    why = reason(server.refusal(rt.db))
    words = f"cannot be used: it {why}" if why else error.detail
    return fail("database", "database_unreachable", words, "see DATABASE_URL, and whether it runs")


def judge(found: Server) -> Iterator[Finding]:
    """What is to be said of a server."""
    name = f"Postgres {found.version}"
    if found.major < OLDEST:
        yield fail("database", "database_too_old", f"{name} is too old", f"upgrade it: {OLDEST} to {NEWEST}")
    elif found.major > NEWEST:
        words = f"{name} is newer than any this code was tried with"
        yield warn("database", "database_too_new", words, f"use {OLDEST} to {NEWEST}, or a newer release of this")
    elif not found.is_here and not found.is_encrypted:
        words = f"{name} is on another machine, and what we say to it is not encrypted"
        yield warn("database", "database_not_encrypted", words, "add ?sslmode=require to DATABASE_URL")
    elif found.latency_ms > FAR_MS:
        words = f"{name} takes {found.latency_ms:.0f} ms for a trivial statement, and a callback takes several"
        yield warn("database", "database_far", words, "move it to the region of the processes")
    else:
        how = "on this machine" if found.is_here else "encrypted"
        yield ok("database", f"{name}, {how}, {found.latency_ms:.1f} ms for a trivial statement")


def _clock(found: Server) -> Finding:
    words = f"the database's is {abs(found.ahead_s):.1f} s {'ahead of' if found.ahead_s > 0 else 'behind'} this machine"
    if abs(found.ahead_s) > OFF_S:
        return warn("db clock", "database_clock_off", words, "set the clocks by NTP: alarms go by the database's")
    return ok("db clock", words)
