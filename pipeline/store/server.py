"""The Postgres server itself: its version and clock, the way there, and how many connections it has to give."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from pipeline.store.database import Database

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Server:
    """A server, as one connection sees it."""

    version: str  # as it says it: 18.1
    major: int
    is_here: bool  # on this machine
    is_encrypted: bool  # the connection
    latency_ms: float  # of a trivial statement, at best
    ahead_s: float  # its clock against this machine's


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that limits connections: how many it allows, and how many of those others than us have now."""

    what: str
    most: int
    others: int


def look(tx: Connection) -> Server:
    """Look at the server."""
    version, number = tx.execute(
        text("SELECT current_setting('server_version'), current_setting('server_version_num')::int")
    ).one()
    clock = text("SELECT extract(epoch FROM clock_timestamp())::float8")
    best_s, ahead_s = float("inf"), 0.0
    for _ in range(_TRIES):  # the best tells the distance; the others, how busy it is here or there
        sent, began = time.time(), time.monotonic()
        now: float = tx.execute(clock).scalar_one()
        took_s = time.monotonic() - began
        if took_s < best_s:
            best_s, ahead_s = took_s, now - (sent + took_s / 2)
    raw = tx.connection.driver_connection
    assert raw is not None
    return Server(
        version=version.partition(" ")[0],
        major=number // 10_000,
        is_here=not raw.info.hostaddr or ip_address(raw.info.hostaddr).is_loopback,  # none: a socket in a folder
        is_encrypted=bool(raw.pgconn.ssl_in_use),
        latency_ms=best_s * 1000,
        ahead_s=ahead_s,
    )


def refusal(db: Database) -> str:
    """What the server, or the way to it, says when a connection is asked for; empty when one is given."""
    try:
        db.engine.connect().close()
    except DBAPIError as error:
        return str(error.orig)
    return ""


_LIMITS = text("""
    WITH role AS (SELECT rolsuper, rolconnlimit FROM pg_roles WHERE rolname = session_user),
    busy AS (
        SELECT usename = session_user AS role, datname = current_database() AS database,
               datname = current_database() AND application_name LIKE 'pipeline-%' AS ours
        FROM pg_stat_activity WHERE datname IS NOT NULL)
    SELECT 'the server' AS what, current_setting('max_connections')::int
               - current_setting('superuser_reserved_connections')::int
               - coalesce(current_setting('reserved_connections', true)::int, 0) AS most,
           (SELECT count(*) FROM busy WHERE NOT ours)::int AS others
    UNION ALL
    SELECT 'its role', rolconnlimit, (SELECT count(*) FROM busy WHERE role AND NOT ours)::int
    FROM role WHERE rolconnlimit >= 0 AND NOT rolsuper
    UNION ALL
    SELECT 'its database', datconnlimit, (SELECT count(*) FROM busy WHERE database AND NOT ours)::int
    FROM pg_database, role WHERE datname = current_database() AND datconnlimit >= 0 AND NOT rolsuper
""")


def limits(tx: Connection) -> Sequence[Limit]:
    """What limits our connections; superusers' own are not counted, for they are kept for emergencies."""
    return [Limit(*row) for row in tx.execute(_LIMITS)]
