"""
The inbox: every authentic callback is kept, and the one that brings news moves its job, in one statement.

One that was kept can be replayed: the same statement judges it again, and notes what came of it beside the verdict it
got when it came.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.jobs import FINAL, IN_FLIGHT, TOLD, State, Via
from pipeline.predictions import Prediction, Status
from pipeline.store import assets, budgets, notifications
from pipeline.store.database import Value
from pipeline.store.moves import LEGAL, flag_double_charges
from pipeline.store.prepared import Prepared
from pipeline.store.tables import Verdict, new_id, one_of

_TARGETS = {
    Status.COMPLETED: State.COMPLETED,
    Status.FAILED: State.FAILED,
    Status.RUNNING: State.PROCESSING,
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One callback as it came: the token of its URL, the headers worth keeping, the raw bytes."""

    token: str
    headers: Mapping[str, str]
    body: bytes
    id: UUID = field(default_factory=new_id)
    kept: bool = False  # it is in the inbox: it is replayed


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of a callback: its verdict, and its job unless the token is nobody's."""

    verdict: str
    job_id: UUID | None = None
    attempt_id: UUID | None = None
    before: str | None = None  # the job's state when it came
    tell: bool = False  # somebody is to be told at once: of this one, or of another in the same statement
    number: int | None = None  # of its attempt; None: its body was not believed
    simple: bool = False  # there is nothing to be looked at but its own attempt and job


# The URL is not covered by the signature, so an authentic body proves itself by its id and model as well. The verdict
# of an earlier attempt counts; but its failure does not end a job whose later attempt is under way and was paid for.
# The attempt is locked before the job, as whoever records an answer does: the other way they would wait in a circle.
_KNOWN = """
        SELECT a.id AS attempt_id, a.number, a.prediction_id, a.job_id, j.state, j.model, j.settled_by,
               j.reserved, j.admitted, CASE WHEN a.outcome = 'accepted' THEN 'known' ELSE 'new' END AS charge,
               j.current_attempt = a.id AS current, j.prediction_id = s.said_id AS told_before
        FROM attempts a JOIN jobs j ON j.id = a.job_id
        WHERE a.token = s.token
"""

_LEGAL = one_of("""(k.state || '>' || k."to")""", LEGAL)
_IN_FLIGHT = one_of("k.state", IN_FLIGHT)

_VERDICT = f"""CASE
            WHEN k.prediction_id <> k.said_id
              OR k.prediction_id IS NULL AND (k.model <> coalesce(k.said_model, k.model)
                 OR (SELECT true FROM attempts o WHERE o.prediction_id = k.said_id)) THEN 'suspicious'
            WHEN {_LEGAL}
              AND (k.current OR k."to" = 'completed' OR NOT {_IN_FLIGHT}) THEN 'applied'
            WHEN k.state = k."to" AND k.told_before
              AND (k.settled_by = '{Via.WEBHOOK}' OR k."to" = 'processing') THEN 'duplicate'
            ELSE 'late' END
"""

_ENDS = one_of('g."to"', FINAL)

# A callback is simple when nothing has to be looked at beside its own attempt and job: no other attempt can have been
# charged for.
_SIMPLE = f"k.number = 1 AND k.current IS TRUE AND NOT {one_of('k.state', (State.CANCELLED, State.FAILED))}"

# Each is looked up by itself: whatever the planner expects, by an index.
_MOVED = f"""
    WITH said AS (
        SELECT * FROM jsonb_to_recordset(CAST(:said AS jsonb)) AS s(
            n int, callback_id uuid, token text, said_id text, said_model text, "to" text, outputs jsonb, error jsonb,
            inference_ms int, asset_ids uuid[], notice_id uuid, note jsonb, headers jsonb)
    ), known AS MATERIALIZED (
        SELECT s.*, k.* FROM said s CROSS JOIN LATERAL ({_KNOWN} LIMIT 1 FOR UPDATE OF a, j {{lock}}) k
    ), judged AS (
        SELECT k.*, {_VERDICT} AS verdict, {_SIMPLE} AS simple FROM known k
    ), taken AS (
        SELECT * FROM judged WHERE verdict <> 'suspicious' {{taken}}
    ), learnt AS (
        UPDATE attempts a SET prediction_id = g.said_id, outcome = 'accepted',
               ended_at = coalesce(a.ended_at, clock_timestamp())
        FROM taken g WHERE a.id = g.attempt_id AND g.charge = 'new'
    ), moved AS (
        UPDATE jobs j SET
            state = g."to",
            due_at = CASE WHEN g."to" = 'processing'
                THEN least(clock_timestamp() + make_interval(secs => CAST(:poll_s AS float8)),
                           greatest(j.deadline_at, clock_timestamp())) END,
            finished_at = CASE WHEN {_ENDS} THEN clock_timestamp() END,
            settled_by = CASE WHEN {_ENDS} THEN '{Via.WEBHOOK}' ELSE j.settled_by END,
            prediction_id = g.said_id,
            current_attempt = CASE WHEN g."to" = 'processing' THEN g.attempt_id ELSE j.current_attempt END,
            outputs = coalesce(g.outputs, j.outputs),
            error = coalesce(g.error, j.error),
            inference_ms = coalesce(g.inference_ms, j.inference_ms),
            reserved = CASE WHEN {_ENDS} THEN 0 ELSE j.reserved END,
            held_at = NULL, held_reason = NULL,
            last_seq = j.last_seq + 1
        FROM taken g WHERE j.id = g.job_id AND g.verdict = 'applied'
        RETURNING j.id, j.service_id, j.last_seq, g.state AS "from", g."to" = 'completed' AS completed, j.outputs,
                  g.asset_ids, j.callback_url, j.callback_task, g.note,
                  CASE WHEN {one_of('g."to"', TOLD)} THEN g.notice_id END AS notice_id, 'job.' || g."to" AS kind,
                  g.reserved - j.reserved AS freed,
                  CASE WHEN g."to" <> 'completed' THEN 0 WHEN g.admitted THEN g.reserved
                       ELSE coalesce(j.price, 0) END AS spent
    ), {budgets.FREED}, {assets.PLANNED}, {notifications.PLANNED}, told AS (
        INSERT INTO events (job_id, seq, at, kind, data)
        SELECT id, last_seq, clock_timestamp(), kind,
               jsonb_build_object('from', "from", 'via', '{Via.WEBHOOK}') || coalesce(note, '{{{{}}}}') FROM moved
    )
"""

_KEPT = """
    , kept AS (
        INSERT INTO callbacks (id, received_at, token, attempt_id, job_id, prediction_id, verdict, headers, body)
        SELECT s.callback_id, clock_timestamp(), s.token, g.attempt_id, g.job_id, s.said_id,
               coalesce(g.verdict, 'orphan'), s.headers, (CAST(:bodies AS bytea[]))[s.n]
        FROM said s {whom} g ON g.callback_id = s.callback_id
    )
"""

# What it was when it came stays as it is. That a replay moved its job stays as well: once more, it is a repeat.
_NOTED = """
    UPDATE callbacks c SET
        attempt_id = coalesce(n.attempt_id, c.attempt_id), job_id = coalesce(n.job_id, c.job_id),
        prediction_id = coalesce(n.said_id, c.prediction_id),
        replayed_at = CASE WHEN c.replayed_verdict = 'applied' THEN c.replayed_at ELSE clock_timestamp() END,
        replayed_verdict = CASE WHEN c.replayed_verdict = 'applied' THEN c.replayed_verdict ELSE n.verdict END
"""

_FOUND = """
    SELECT s.callback_id, coalesce(g.verdict, 'orphan'), g.job_id, g.attempt_id, g.state, g.number, g.simple,
           (SELECT bool_or(due_at <= clock_timestamp()) FROM planned) IS TRUE
    FROM said s {whom} g ON g.callback_id = s.callback_id
"""

_ALONE = {"lock": "", "taken": "", "whom": "LEFT JOIN judged"}

# Of many at once those that are simple, and for which nobody has to wait.
_MANY = {"lock": "SKIP LOCKED", "taken": "AND simple", "whom": "JOIN taken"}

_HEAR = Prepared((_MOVED + _KEPT + _FOUND).format_map(_ALONE))
_HEAR_MANY = Prepared((_MOVED + _KEPT + _FOUND).format_map(_MANY))
_HEAR_AGAIN = Prepared(
    f"""{_MOVED}, noted AS (
        {_NOTED}
        FROM (SELECT s.callback_id, s.said_id, g.attempt_id, g.job_id, coalesce(g.verdict, 'orphan') AS verdict
              FROM said s {{whom}} g ON g.callback_id = s.callback_id) n
        WHERE c.id = n.callback_id
    ) {_FOUND}""".format_map(_ALONE)
)


@dataclass(frozen=True, slots=True)
class Call:
    """A fresh callback, and what it says."""

    delivery: Delivery
    prediction: Prediction


def hear_many(tx: Connection, calls: Sequence[Call], *, poll_s: float) -> list[Heard | None]:
    """
    Do what `hear` does for each of *calls*, by one statement alone: for almost all of them there is no more to do.

    None: nothing was done for that one. Its token is nobody's; it says what another of these says; its body does not
    fit; its job may have been charged for twice, or is locked.
    """
    chosen: list[Call] = []
    names: set[str] = set()
    for call in calls:
        if names.isdisjoint(own := {call.delivery.token, call.prediction.id}):
            names |= own
            chosen.append(call)
    found = dict(_sent(tx, _HEAR_MANY, chosen, poll_s))
    return [found.get(call.delivery.id) for call in calls]


def hear(tx: Connection, delivery: Delivery, prediction: Prediction, *, poll_s: float) -> Heard:
    """
    Keep a fresh callback, unless it is kept, and let it move its job, if the job's state allows.

    *poll_s* is when to ask for the result of a task that the callback says is still running, in seconds.
    """
    ((_, heard),) = _sent(tx, _HEAR_AGAIN if delivery.kept else _HEAR, [Call(delivery, prediction)], poll_s)
    if heard.attempt_id and heard.verdict != Verdict.SUSPICIOUS and not heard.simple:
        budgets.spend(tx, flag_double_charges(tx, [heard.attempt_id]))
    return heard


def _sent(tx: Connection, statement: Prepared, calls: Sequence[Call], poll_s: float) -> Iterator[tuple[UUID, Heard]]:
    values: dict[str, Value] = {
        "said": _text([_said(n, call) for n, call in enumerate(calls, 1)]),
        "bodies": [call.delivery.body for call in calls],
        "poll_s": str(poll_s),
    }
    for callback_id, verdict, job_id, attempt_id, before, number, simple, tell in statement.all(tx, values):
        yield callback_id, Heard(verdict, job_id, attempt_id, before, tell=tell, number=number, simple=bool(simple))


_text = json.JSONEncoder(check_circular=False, default=str).encode


def _said(n: int, call: Call) -> dict[str, object]:
    delivery, prediction = call.delivery, call.prediction
    to = _TARGETS[prediction.status]
    said: dict[str, object] = {
        "n": n,
        "callback_id": delivery.id,
        "token": delivery.token,
        "headers": delivery.headers,
        "said_id": prediction.id,
        "said_model": prediction.model,
        "to": to,
        "notice_id": new_id(),
        "inference_ms": prediction.inference_ms,
        "asset_ids": [],
    }
    if delivery.kept:
        said["note"] = {"replayed": delivery.id}
    if to is State.COMPLETED:
        said["outputs"], said["asset_ids"] = prediction.files, assets.ids_for(prediction.outputs)
    elif to is State.FAILED:
        said["error"] = prediction.problem
    return said


_HINTED = """
    WITH known AS (
        SELECT a.id AS attempt_id, a.job_id, j.state FROM attempts a JOIN jobs j ON j.id = a.job_id
        WHERE a.token = :token
    ), hinted AS (  -- at most one poll in 10 s may be provoked by callbacks that are not believed
        UPDATE attempts a SET hint_id = coalesce(:prediction_id, a.hint_id), hinted_at = clock_timestamp()
        FROM known k WHERE a.id = k.attempt_id
          AND (a.hinted_at IS NULL OR a.hinted_at < clock_timestamp() - interval '10 seconds')
        RETURNING a.job_id
    ), woken AS (
        UPDATE jobs j SET due_at = clock_timestamp()
        FROM hinted h WHERE j.id = h.job_id
          AND (j.state IN ('processing', 'unknown') OR j.state = 'expired' AND j.prediction_id IS NOT NULL)
    ), judged AS (
        SELECT k.*, CAST(:prediction_id AS text) AS said_id,
               CASE WHEN k.job_id IS NULL AND :verdict <> 'unreadable' THEN 'orphan' ELSE :verdict END AS verdict
        FROM (SELECT 1) always LEFT JOIN known k ON true
    )
"""

_FILE = text(f"""
    {_HINTED}
    INSERT INTO callbacks (id, received_at, token, attempt_id, job_id, prediction_id, verdict, headers, body)
    SELECT CAST(:id AS uuid), clock_timestamp(), :token, g.attempt_id, g.job_id, :prediction_id, g.verdict,
           CAST(:headers AS jsonb), :body
    FROM judged g
    RETURNING verdict, job_id, attempt_id, (SELECT state FROM judged)
""")

_FILE_AGAIN = text(f"""
    {_HINTED} {_NOTED}
    FROM judged n
    WHERE c.id = CAST(:id AS uuid)
    RETURNING n.verdict, n.job_id, n.attempt_id, n.state
""")


def file(tx: Connection, delivery: Delivery, verdict: str, *, prediction_id: str | None) -> Heard:
    """Keep a callback whose body is not believed (stale, unreadable), unless it is kept; have its job looked at now."""
    parameters = {**_filed(delivery), "verdict": verdict, "prediction_id": prediction_id}
    return Heard(*tx.execute(_FILE_AGAIN if delivery.kept else _FILE, parameters).one())


def look_now(tx: Connection, attempt_id: UUID) -> None:
    """Have an attempt's job asked about at once, at most once in 10 s: a callback for it does not fit."""
    statement = text("""
        WITH hinted AS (
            UPDATE attempts SET hinted_at = clock_timestamp()
            WHERE id = :attempt_id AND (hinted_at IS NULL OR hinted_at < clock_timestamp() - interval '10 seconds')
            RETURNING job_id
        )
        UPDATE jobs j SET due_at = clock_timestamp()
        FROM hinted h WHERE j.id = h.job_id
          AND (j.state IN ('processing', 'unknown') OR j.state = 'expired' AND j.prediction_id IS NOT NULL)
    """)
    tx.execute(statement, {"attempt_id": attempt_id})


@dataclass(frozen=True, slots=True)
class Said:
    """What a callback says, for `foretell`; `verdict` when its body is not believed, whatever it says."""

    token: str
    prediction: Prediction | None
    verdict: str | None = None


_FORETELL = text(f"""
    SELECT CASE WHEN k.attempt_id IS NULL AND k.verdict IS DISTINCT FROM 'unreadable' THEN 'orphan'
                WHEN k.verdict IS NOT NULL THEN k.verdict
                ELSE {_VERDICT} END, k.job_id
    FROM (
        SELECT s.*, k.*
        FROM jsonb_to_recordset(CAST(:said AS jsonb)) AS s(
                 n int, token text, said_id text, said_model text, "to" text, verdict text)
            LEFT JOIN LATERAL ({_KNOWN}) k ON true
    ) k
    ORDER BY k.n
""")


def foretell(tx: Connection, said: Sequence[Said]) -> list[tuple[str, UUID | None]]:
    """The verdict that each would get now, were it the only one to come, and its job. Nothing is locked or changed."""
    rows = [
        {
            "n": n,
            "token": one.token,
            "verdict": one.verdict,
            **(
                {
                    "said_id": one.prediction.id,
                    "said_model": one.prediction.model,
                    "to": _TARGETS[one.prediction.status],
                }
                if one.prediction
                else {}
            ),
        }
        for n, one in enumerate(said)
    ]
    return [(row[0], row[1]) for row in tx.execute(_FORETELL, {"said": json.dumps(rows)})]


def _filed(delivery: Delivery) -> dict[str, str | bytes]:
    return {
        "id": str(delivery.id),
        "token": delivery.token,
        "headers": json.dumps(dict(delivery.headers)),
        "body": delivery.body,
    }
