"""
The outbox at work: which notifications this process sends next, and what became of them.

Each waits in the queue of its *endpoint*, `SERVICE scheme://host:port` or `SERVICE task:NAME` (`@operator …` for the
operator's), and a claim takes from every queue: however many wait for a receiver that is slow or down, no other waits
for it. The address itself is looked up when it is sent, so a service may move.
"""

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline import measures
from pipeline.store import stats
from pipeline.store.assets import TELL_AT
from pipeline.store.outbox import Audience
from pipeline.store.tables import new_id
from pipeline.store.workers import DEAD

OPERATOR = "@operator"
"""Begins the names of the operator's endpoints; no service can be called so."""

_ORIGIN = "lower(substring({} FROM '^[^/]+//[^/?#]+'))"

ENDPOINT = f"""
    coalesce(s.name || ' task:' || j.callback_task,
             s.name || ' ' || {_ORIGIN.format("coalesce(j.callback_url, s.callback_url)")})
"""
"""
An SQL expression: the endpoint of what is told of a job `j` of the service `s`; NULL when nobody wants to be told.

A job's task is told instead of its URL; the service's URL where the job names neither.
"""


PLANNED = f"""
    planned AS (
        INSERT INTO notifications (id, event, job_id, seq, endpoint, state, due_at, ended_at)
        SELECT j.notice_id, j.kind, j.id, j.last_seq, a.endpoint,
               CASE WHEN a.endpoint IS NULL THEN 'unaddressed' ELSE 'pending' END,
               CASE WHEN a.endpoint IS NOT NULL THEN {TELL_AT} END,
               CASE WHEN a.endpoint IS NULL THEN clock_timestamp() END
        FROM moved j LEFT JOIN services s ON s.id = j.service_id
        CROSS JOIN LATERAL (SELECT {ENDPOINT} AS endpoint) a
        WHERE j.notice_id IS NOT NULL
        RETURNING due_at
    )
"""
"""
Common table expression that plans who is told, for a statement whose `moved` has the columns id, service_id, last_seq,
kind, callback_url, callback_task, completed, outputs, and notice_id: NULL where nobody is.
"""


@dataclass(frozen=True, slots=True)
class Message:
    """One notification to be sent: what of, whose, and where to (`url`, or `task` and `queue`, or nowhere any more)."""

    id: UUID
    event: str
    endpoint: str
    created_at: datetime
    data: Mapping[str, Any]
    job_id: UUID | None
    service_id: UUID | None  # None: it is the operator's
    number: int  # of the delivery that this will be
    task: str | None
    queue: str | None  # of the task; None: its service may no longer name it
    url: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim brought; `strangers` when others are due that have no endpoint yet."""

    messages: Sequence[Message] = ()
    strangers: bool = False


# A loose index scan: one probe an endpoint, however many notifications wait for it.
LANES = """
    lanes AS (
        (SELECT endpoint FROM notifications WHERE due_at IS NOT NULL ORDER BY endpoint LIMIT 1)
        UNION ALL
        SELECT (SELECT n.endpoint FROM notifications n WHERE n.due_at IS NOT NULL AND n.endpoint > l.endpoint
                ORDER BY n.endpoint LIMIT 1)
        FROM lanes l WHERE l.endpoint IS NOT NULL
    )
"""

_STRANGERS = "EXISTS (SELECT FROM notifications WHERE endpoint IS NULL AND due_at <= statement_timestamp())"

_DUE = text(f"""
    WITH RECURSIVE {LANES}
    SELECT {_STRANGERS} OR EXISTS (
        SELECT FROM lanes l LEFT JOIN endpoints e ON e.name = l.endpoint
        WHERE (e.off_at IS NULL OR e.probe_at <= statement_timestamp())
          AND (SELECT min(due_at) FROM notifications n WHERE n.endpoint = l.endpoint AND n.due_at IS NOT NULL)
              <= statement_timestamp())
""")


def are_due(tx: Connection) -> bool:
    """Whether there is anything to send now."""
    return bool(tx.execute(_DUE).scalar_one())


_CLAIM = text(f"""
    WITH RECURSIVE {LANES}, probed AS (  -- what is switched off gets one notification at a time, now and then
        UPDATE endpoints e SET probe_at = clock_timestamp() + make_interval(secs => :probe_s)
        WHERE e.probe_at <= statement_timestamp()
          AND EXISTS (SELECT FROM notifications n WHERE n.endpoint = e.name AND n.due_at <= statement_timestamp())
        RETURNING e.name
    ), rooms AS (
        SELECT l.endpoint, CASE WHEN e.off_at IS NULL THEN coalesce(r.room, :room)
                                WHEN p.name IS NOT NULL THEN 1 ELSE 0 END AS room
        FROM lanes l
        LEFT JOIN endpoints e ON e.name = l.endpoint
        LEFT JOIN probed p ON p.name = l.endpoint
        LEFT JOIN jsonb_to_recordset(CAST(:rooms AS jsonb)) AS r(endpoint text, room int) ON r.endpoint = l.endpoint
        WHERE l.endpoint IS NOT NULL
    ), waiting AS (
        SELECT q.id, q.due_at, row_number() OVER (PARTITION BY o.endpoint ORDER BY q.due_at) AS place
        FROM rooms o CROSS JOIN LATERAL (
            SELECT n.id, n.due_at FROM notifications n
            WHERE n.endpoint = o.endpoint AND n.due_at <= statement_timestamp()
            ORDER BY n.due_at LIMIT o.room FOR UPDATE SKIP LOCKED
        ) q
        WHERE o.room > 0
    ), taken AS (
        UPDATE notifications n SET worker_id = :worker_id, due_at = clock_timestamp() + make_interval(secs => :lease_s)
        FROM (SELECT id FROM waiting ORDER BY place, due_at LIMIT :at_most) w WHERE n.id = w.id
        RETURNING n.*
    )
    SELECT {_STRANGERS} AS strangers, t.id, t.event, t.endpoint, t.created_at, t.data, t.job_id,
           t.attempts + 1 AS number, CASE WHEN t.audience = '{Audience.SERVICE}' THEN s.id END AS service_id,
           CASE WHEN t.audience = '{Audience.SERVICE}' THEN j.callback_task END AS task,
           (SELECT allowed ->> 'queue' FROM jsonb_array_elements(s.callback_tasks) allowed
            WHERE allowed ->> 'task' = j.callback_task LIMIT 1) AS queue,
           CASE WHEN t.audience = '{Audience.OPERATOR}' THEN CAST(:operator_url AS text)
                ELSE coalesce(j.callback_url, s.callback_url) END AS url
    FROM (SELECT 1) always LEFT JOIN taken t ON true
    LEFT JOIN jobs j ON j.id = t.job_id LEFT JOIN services s ON s.id = j.service_id
    ORDER BY t.created_at
""")


def claim(
    tx: Connection,
    *,
    worker_id: UUID,
    at_most: int,
    room: int,
    rooms: Mapping[str, int],
    lease_s: float,
    probe_s: float,
    operator_url: str | None,
) -> Claim:
    """
    Take up to *at_most* due notifications, in turns from every endpoint; nobody else takes them for *lease_s* seconds.

    Of one endpoint *room* at most, or what *rooms* says of it. One that is switched off is probed every *probe_s*
    seconds.
    """
    parameters = {
        "worker_id": worker_id,
        "at_most": at_most,
        "room": room,
        "rooms": json.dumps([{"endpoint": name, "room": left} for name, left in rooms.items()]),
        "lease_s": lease_s,
        "probe_s": probe_s,
        "operator_url": operator_url,
    }
    rows = tx.execute(_CLAIM, parameters).all()
    messages = [
        Message(
            id=row.id,
            event=row.event,
            endpoint=row.endpoint,
            created_at=row.created_at,
            data=row.data,
            job_id=row.job_id,
            service_id=row.service_id,
            number=row.number,
            task=row.task,
            queue=row.queue,
            url=row.url,
        )
        for row in rows
        if row.id
    ]
    return Claim(messages, strangers=rows[0].strangers)


_ADDRESS = text(f"""
    WITH strange AS (
        SELECT n.id, n.audience, n.job_id FROM notifications n
        WHERE n.endpoint IS NULL AND n.due_at <= statement_timestamp()
        ORDER BY n.due_at LIMIT 1000 FOR UPDATE SKIP LOCKED
    ), found AS (
        SELECT n.id, CASE WHEN n.audience = '{Audience.OPERATOR}'
                          THEN '{OPERATOR} ' || {_ORIGIN.format("CAST(:operator_url AS text)")}
                          ELSE {ENDPOINT} END AS endpoint
        FROM strange n LEFT JOIN jobs j ON j.id = n.job_id LEFT JOIN services s ON s.id = j.service_id
    )
    UPDATE notifications n SET endpoint = f.endpoint,
        state = CASE WHEN f.endpoint IS NULL THEN 'unaddressed' ELSE n.state END,
        due_at = CASE WHEN f.endpoint IS NOT NULL THEN n.due_at END,
        ended_at = CASE WHEN f.endpoint IS NULL THEN clock_timestamp() END
    FROM found f WHERE n.id = f.id
""")


def address(tx: Connection, *, operator_url: str | None) -> None:
    """Decide where the due notifications wait that have no endpoint yet; that nobody wants end as `unaddressed`."""
    tx.execute(_ADDRESS, {"operator_url": operator_url})


def readdress(tx: Connection, service: str) -> None:
    """Decide anew where the notifications of a service wait, when they are due: it has moved."""
    statement = text("""
        UPDATE notifications SET endpoint = NULL
        WHERE due_at IS NOT NULL AND worker_id IS NULL AND starts_with(endpoint, CAST(:service AS text) || ' http')
    """)
    tx.execute(statement, {"service": service})


@dataclass(frozen=True, slots=True)
class Tried:
    """
    How one try to tell ended, for the log of deliveries.

    `final` when trying again cannot help; `error` is None when it succeeded. The next try waits for at least
    `retry_after_s` seconds.
    """

    message: Message
    target: str
    error: str | None = None
    final: bool = False
    request: Mapping[str, Any] | None = None
    status: int | None = None
    answer: str | None = None
    duration_ms: int | None = None
    retry_after_s: float = 0.0


# What another process claimed meanwhile is its to reschedule; but what was delivered was, whoever hears of it.
_RECORD = text("""
    WITH told AS (
        SELECT *, row_number() OVER (PARTITION BY id) AS n, count(*) OVER (PARTITION BY id) AS many,
               row_number() OVER (PARTITION BY id ORDER BY error IS NULL DESC) = 1 AS counts
        FROM jsonb_to_recordset(CAST(:told AS jsonb)) AS t(id uuid, target text, error text, final boolean,
            request jsonb, status smallint, answer text, duration_ms int, retry_after_s float8, jitter float8)
    ), locked AS (
        SELECT n.id, n.attempts, n.state = 'pending' AND n.worker_id = :worker_id IS TRUE AS ours,
               (CAST(:schedule AS float8[]))[n.tries + 1] AS delay_s
        FROM notifications n WHERE n.id IN (SELECT id FROM told) ORDER BY n.id FOR UPDATE
    ), judged AS (
        SELECT l.*, t.many, t.error, t.retry_after_s, t.jitter,
               CASE WHEN t.error IS NULL THEN 'delivered'
                    WHEN l.ours AND (t.final OR l.delay_s IS NULL) THEN 'dead' END AS ends
        FROM locked l JOIN told t ON t.id = l.id AND t.counts
    ), moved AS (
        UPDATE notifications n SET
            attempts = n.attempts + g.many,
            tries = CASE WHEN g.ours THEN n.tries + 1 ELSE n.tries END,
            state = coalesce(g.ends, n.state),
            due_at = CASE WHEN g.ends IS NOT NULL THEN NULL WHEN g.ours
                THEN clock_timestamp() + make_interval(secs => greatest(g.delay_s * g.jitter, g.retry_after_s))
                ELSE n.due_at END,
            worker_id = CASE WHEN NOT g.ours AND g.ends IS NULL THEN n.worker_id END,
            error = CASE WHEN n.state = 'delivered' THEN n.error ELSE g.error END,
            ended_at = CASE WHEN g.ends IS NOT NULL AND n.state <> 'delivered' THEN clock_timestamp()
                            ELSE n.ended_at END
        FROM judged g WHERE n.id = g.id
        RETURNING n.id, g.ends
    ), logged AS (
        INSERT INTO deliveries (notification_id, number, at, target, request, status, answer, duration_ms, error)
        SELECT t.id, l.attempts + t.n, clock_timestamp(), t.target, t.request, t.status, t.answer, t.duration_ms,
               t.error
        FROM told t JOIN locked l ON l.id = t.id
    )
    SELECT id FROM moved WHERE ends = 'dead'
""")


def record(
    tx: Connection, group: Sequence[Tried], *, worker_id: UUID, schedule: Sequence[float], jitter: float
) -> set[UUID]:
    """
    Log these tries, and set what they bring: an end, or the next one as *schedule* says, in seconds after each failure.

    Each wait is longer or shorter by up to the share *jitter*: what failed together is not to come back together.

    Returns:
        The ids of those that have died: the schedule is exhausted, or trying again cannot help.
    """
    told = [
        {
            "id": str(one.message.id),
            "target": one.target,
            "error": one.error,
            "final": one.final,
            "request": one.request,
            "status": one.status,
            "answer": one.answer,
            "duration_ms": one.duration_ms,
            "retry_after_s": one.retry_after_s,
            "jitter": random.uniform(1 - jitter, 1 + jitter),  # noqa: S311 - no secret
        }
        for one in group
    ]
    parameters = {"told": json.dumps(told), "worker_id": worker_id, "schedule": list(schedule)}
    return set(tx.execute(_RECORD, parameters).scalars())


def give_back(tx: Connection, ids: Sequence[UUID], *, worker_id: UUID) -> None:
    """Let others send what this process claimed and has not heard the answer to."""
    statement = text("""
        UPDATE notifications SET due_at = clock_timestamp(), worker_id = NULL
        WHERE id = ANY(CAST(:ids AS uuid[])) AND worker_id = :worker_id AND state = 'pending'
    """)
    tx.execute(statement, {"ids": [str(one) for one in ids], "worker_id": worker_id})


_ABANDONED = text(f"""
    UPDATE notifications n SET due_at = clock_timestamp(), worker_id = NULL
    WHERE n.id IN (
        SELECT n.id FROM notifications n LEFT JOIN workers w ON w.id = n.worker_id
        WHERE n.worker_id IS NOT NULL AND (w.id IS NULL OR {DEAD})
        ORDER BY n.id LIMIT 1000 FOR UPDATE OF n SKIP LOCKED
    )
""")


def take_back(tx: Connection, *, dead_after_s: float) -> int:
    """Let others send what dead workers had claimed. Returns how many."""
    return tx.execute(_ABANDONED, {"dead_after_s": dead_after_s}).rowcount


_HOPELESS = text("""
    UPDATE notifications n SET state = 'dead', due_at = NULL, worker_id = NULL, ended_at = clock_timestamp(),
        error = coalesce(n.error || '; then ', '') || 'its endpoint stayed switched off'
    WHERE n.id IN (
        SELECT n.id FROM endpoints e JOIN notifications n ON n.endpoint = e.name
        WHERE e.off_at IS NOT NULL AND n.due_at <= statement_timestamp() AND n.worker_id IS NULL
          AND coalesce(n.replayed_at, n.created_at) < statement_timestamp() - make_interval(secs => :patience_s)
        ORDER BY n.id LIMIT 1000 FOR UPDATE OF n SKIP LOCKED
    )
    RETURNING n.id
""")


def bury(tx: Connection, *, patience_s: float) -> int:
    """End what has waited for longer than *patience_s* seconds for an endpoint that is switched off."""
    dead = tx.execute(_HOPELESS, {"patience_s": patience_s}).scalars().all()
    count_dead(tx, dead)
    return len(dead)


def count_dead(tx: Connection, ids: Collection[UUID]) -> None:
    """Add those that have died to what happened: the last statement of its transaction."""
    statement = text("""
        SELECT j.service_id FROM notifications n LEFT JOIN jobs j ON j.id = n.job_id
        WHERE n.id = ANY(CAST(:ids AS uuid[]))
    """)
    if ids:
        services = tx.execute(statement, {"ids": [str(one) for one in ids]}).scalars()
        stats.add(tx, [(service_id or stats.NOBODY, measures.NOTIFICATIONS_DEAD, 1) for service_id in services])


def plan_for_operator(tx: Connection, event: str, data: Mapping[str, Any]) -> None:
    """Have the operator told, once this is committed."""
    statement = text(f"""
        INSERT INTO notifications (id, event, audience, data, due_at)
        VALUES (:id, :event, '{Audience.OPERATOR}', CAST(:data AS jsonb), clock_timestamp())
    """)
    tx.execute(statement, {"id": new_id(), "event": event, "data": json.dumps(data)})


def tell_of_endpoint(tx: Connection, event: str, endpoint: str, facts: Mapping[str, Any]) -> None:
    """Have the operator told what became of an endpoint; not of his own."""
    service, _, where = endpoint.partition(" ")
    if service != OPERATOR:
        plan_for_operator(tx, event, {"service": service, "endpoint": where, **facts})
