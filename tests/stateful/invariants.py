"""What must be true of all rows at any moment, whatever happened before. Each query gives what breaks its promise."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from pipeline.jobs import ALARMED, FINAL, TOLD, State
from pipeline.store.moves import LEGAL
from pipeline.store.tables import one_of

_MOVES = """
    SELECT job_id, seq, kind, substr(kind, 5) AS "to", data ->> 'from' AS "from",
           lag(substr(kind, 5)) OVER (PARTITION BY job_id ORDER BY seq) AS before,
           lead(seq) OVER (PARTITION BY job_id ORDER BY seq) IS NULL AS last
    FROM events WHERE kind = ANY(:moves)
"""

PROMISES: Mapping[str, str] = {
    "every move is legal, and begins where the last one ended": """
        SELECT job_id, "from" || ' > ' || "to" FROM moves
        WHERE before IS NOT NULL AND ("from" IS DISTINCT FROM before OR "from" || '>' || "to" <> ALL(:legal))
           OR before IS NULL AND "to" <> 'queued'
    """,
    "the history ends where the job is": """
        SELECT j.id, j.state || ' <> ' || m."to" FROM jobs j JOIN moves m ON m.job_id = j.id AND m.last
        WHERE m."to" <> j.state
    """,
    "the history has no gaps": """
        SELECT j.id, j.last_seq::text FROM jobs j
        WHERE j.last_seq <> (SELECT count(*) FROM events e WHERE e.job_id = j.id)
    """,
    "a live job has an alarm, a final one has none": f"""
        SELECT id, state FROM jobs
        WHERE due_at IS NULL AND {one_of("state", ALARMED)} OR due_at IS NOT NULL AND {one_of("state", FINAL)}
    """,
    "what must be told is planned once, and nothing else": """
        SELECT coalesce(e.job_id, n.job_id), coalesce(e.kind, n.event) FROM
            (SELECT * FROM events WHERE kind = ANY(:told)) e
            FULL JOIN (SELECT * FROM notifications WHERE job_id IS NOT NULL) n
            ON n.job_id = e.job_id AND n.seq = e.seq AND n.event = e.kind
        GROUP BY 1, 2, e.seq, n.seq HAVING count(e.job_id) <> 1 OR count(n.id) <> 1
    """,
    "an attempt is accepted when it has a task": """
        SELECT job_id, outcome FROM attempts
        WHERE (outcome IS NOT DISTINCT FROM 'accepted') <> (prediction_id IS NOT NULL)
    """,
    "a task is held by one attempt": """
        SELECT min(job_id::text)::uuid, prediction_id FROM attempts WHERE prediction_id IS NOT NULL
        GROUP BY prediction_id HAVING count(*) > 1
    """,
    "a job's task and outputs are of an attempt of its own": """
        SELECT j.id, j.prediction_id FROM jobs j
        WHERE j.prediction_id IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.job_id = j.id AND a.prediction_id = j.prediction_id)
           OR j.state = 'completed' AND j.outputs::text NOT LIKE '%/' || j.prediction_id || '/%'
    """,
    "a job that runs has an attempt of its own as its current one": """
        SELECT j.id, j.state FROM jobs j LEFT JOIN attempts a ON a.id = j.current_attempt
        WHERE j.current_attempt IS NOT NULL AND a.job_id IS DISTINCT FROM j.id
    """,
    "a running job's current attempt was accepted": """
        SELECT j.id, a.outcome FROM jobs j JOIN attempts a ON a.id = j.current_attempt
        WHERE j.state = 'processing' AND a.outcome IS DISTINCT FROM 'accepted'
    """,
    "a job's attempts are counted": """
        SELECT j.id, j.attempts::text FROM jobs j
        WHERE j.attempts <> (SELECT count(*) FROM attempts a WHERE a.job_id = j.id)
    """,
    "only what is unknown waits for a person": """
        SELECT id, state FROM jobs WHERE held_at IS NOT NULL AND state <> 'unknown'
    """,
    "a person is called once for each doubt": """
        SELECT job_id, 'called' FROM events GROUP BY job_id
        HAVING count(*) FILTER (WHERE kind = 'job.needs_decision') > count(*) FILTER (WHERE kind = 'job.unknown')
    """,
    "each charge beside the first is said once": """
        SELECT j.id, a.accepted || ' accepted, said ' || e.said FROM jobs j,
            LATERAL (SELECT count(*) AS accepted FROM attempts WHERE job_id = j.id AND outcome = 'accepted') a,
            LATERAL (SELECT count(*) AS said FROM events WHERE job_id = j.id AND kind = 'job.charged_twice') e
        WHERE e.said <> greatest(a.accepted - 1, 0)
    """,
    "a job has its price reserved while it is not over": """
        SELECT id, state || ' ' || reserved FROM jobs
        WHERE reserved <> CASE WHEN due_at IS NOT NULL THEN price ELSE 0 END
          AND NOT (state = 'expired' AND reserved = 0)  -- never submitted, or long ago
    """,
    "a budget has reserved what its jobs have": """
        SELECT NULL::uuid, b.scope || ' ' || b.period FROM budgets b
        WHERE b.reserved <> (SELECT coalesce(sum(reserved), 0) FROM jobs j
                             WHERE b.scope IN ('account', j.service_id::text))
    """,
    "no more is spent than may have been accepted, and no less than was completed": """
        SELECT NULL::uuid, b.scope || ' ' || b.spent FROM budgets b
        WHERE b.spent > (SELECT coalesce(sum(j.price), 0) FROM attempts a JOIN jobs j ON j.id = a.job_id
                         WHERE a.outcome IN ('accepted', 'lost'))
           OR b.spent < (SELECT coalesce(sum(price), 0) FROM jobs WHERE state = 'completed')
    """,
}

_BROKEN = text(
    f"WITH moves AS MATERIALIZED ({_MOVES}) "
    + " UNION ALL ".join(
        f"SELECT {number}, b.* FROM ({query}) AS b(job_id, seen)" for number, query in enumerate(PROMISES.values())
    )
)

_PARAMETERS = {
    "moves": [f"job.{state}" for state in State],
    "told": ["job.needs_decision", *(f"job.{state}" for state in sorted(TOLD))],
    "legal": LEGAL,
}


def broken(tx: Connection) -> list[tuple[str, Any, str]]:
    """What is broken now: the promise, the job, and what was seen of it."""
    names = list(PROMISES)
    return [(names[row[0]], row[1], row[2]) for row in tx.execute(_BROKEN, _PARAMETERS)]
