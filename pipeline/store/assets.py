"""
The outputs of jobs: planned in the commit of the completion, fetched by whoever claims them, stored or lost.

A caller is told of a completed job when the last of its outputs is stored or lost, and after GRACE_S at the latest: its
notification is planned for then, and brought forward by `settle`. Each output that is stored or lost after its job's
notification went out is told of by one of its own, `output.stored` or `output.lost`; one that is quarantined is not. In
the job's history stands each: `output.stored`, `output.quarantined` (it is stored, and not served) or `output.lost`.

Where nobody archives, outputs stay pending without an alarm, and callers are told at once. When archiving begins, those
that the provider may still have are fetched; what it has deleted since is lost. Of what is lost while nobody archives
callers are not told: they were promised no copy, and know from the job when the provider deletes its own.

Locks: first jobs, in the order of their ids, then the rest; so two that store outputs of one job take turns, and the
later one sees that its own was the last.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline import measures
from pipeline.outputs import GRACE_S, SOURCE_DAYS, Kept
from pipeline.store import stats
from pipeline.store.tables import new_id
from pipeline.store.workers import DEAD

MOST = 1000
"""How many outputs of one job are kept; the longest list that a model is known to give has 15."""

PLANNED = """
    assets_planned AS (
        INSERT INTO assets (id, job_id, index, service_id, source_url, nsfw, review, due_at)
        SELECT m.asset_ids[o.number::int], m.id, o.number - 1, m.service_id,
               o.item ->> 'url', (o.item ->> 'nsfw')::boolean,
               CASE WHEN (o.item ->> 'nsfw')::boolean THEN
                    CASE coalesce(s.nsfw_policy, c.nsfw_policy)
                         WHEN 'flag' THEN 'flagged' WHEN 'quarantine' THEN 'quarantined' END END,
               CASE WHEN c.archiving THEN clock_timestamp() END
        FROM moved m
        CROSS JOIN LATERAL jsonb_array_elements(m.outputs) WITH ORDINALITY AS o(item, number)
        LEFT JOIN services s ON s.id = m.service_id
        CROSS JOIN account c
        WHERE m.completed AND o.number <= cardinality(m.asset_ids)
        ON CONFLICT DO NOTHING
    )
"""
"""
Common table expression that plans what is to be archived, for a statement whose `moved` has the columns id, service_id,
outputs, asset_ids (as many as `ids_for` gives) and completed.
"""

TELL_AT = f"""
    clock_timestamp() + CASE WHEN completed AND outputs <> '[]' AND (SELECT archiving FROM account)
        THEN interval '{GRACE_S} s' ELSE '0' END
"""
"""When the notification of such a move is due, as SQL."""


def ids_for(outputs: Sequence[object] | None) -> list[str]:
    """Ids for the outputs of one job."""
    return [str(new_id()) for _ in (outputs or ())[:MOST]]


SHOWN = """
    (SELECT jsonb_agg(jsonb_build_object('index', a.index, 'state', a.state, 'content_type', a.content_type,
        'bytes', a.bytes, 'sha256', a.sha256, 'width', a.width, 'height', a.height, 'review', a.review))
     FROM assets a WHERE a.job_id = {job_id})
"""
"""What doors show of a job's outputs, as SQL: one value beside the job's own columns."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Our own copy of an output: where it lies, and what it must be."""

    storage_key: str
    sha256: str


_COPIES = text("""
    SELECT job_id, index, storage_key, sha256 FROM assets
    WHERE job_id = ANY(CAST(:ids AS uuid[])) AND state = 'stored'
      AND (review IS NULL OR review NOT IN ('quarantined', 'purged'))
""")


def copies(tx: Connection, job_ids: Sequence[UUID]) -> dict[tuple[str, int], Copy]:
    """Our copies of the outputs of these jobs that may be given out, by job and number."""
    rows = tx.execute(_COPIES, {"ids": [str(job_id) for job_id in job_ids]})
    return {(str(job_id), index): Copy(storage_key, sha256) for job_id, index, storage_key, sha256 in rows}


@dataclass(frozen=True, slots=True)
class Claimed:
    """One output to be fetched. `age_s` counts from its making, in seconds; with no address *value* is the content."""

    id: UUID
    job_id: UUID
    index: int
    source_url: str | None
    value: Any
    review: str | None
    attempts: int  # this one too
    gone: int
    gone_s: float | None  # since the provider first said that it is not there
    age_s: float


_CLAIM = text("""
    WITH due AS MATERIALIZED (  -- as a subquery it may be run once for each output, and its limit be none
        SELECT id FROM assets WHERE due_at <= statement_timestamp()
        ORDER BY due_at LIMIT :at_most FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE assets a SET worker_id = :worker_id, attempts = least(attempts + 1, 32767),
               due_at = clock_timestamp() + make_interval(secs => :lease_s)
        FROM due d WHERE a.id = d.id
        RETURNING a.*
    )
    SELECT t.id, t.job_id, t.index, t.source_url,
           CASE WHEN t.source_url IS NULL THEN j.outputs -> t.index::int -> 'value' END AS value,
           t.review, t.attempts, t.gone,
           extract(epoch FROM clock_timestamp() - t.gone_at)::float8 AS gone_s,
           extract(epoch FROM clock_timestamp() - t.created_at)::float8 AS age_s
    FROM taken t LEFT JOIN jobs j ON j.id = t.job_id
    ORDER BY t.created_at
""")


def claim(tx: Connection, *, worker_id: UUID, at_most: int, lease_s: float) -> list[Claimed]:
    """Take up to *at_most* outputs that are due; nobody else takes them for *lease_s* seconds, while this one lives."""
    parameters = {"worker_id": worker_id, "at_most": at_most, "lease_s": lease_s}
    return [Claimed(*row) for row in tx.execute(_CLAIM, parameters)]


@dataclass(frozen=True, slots=True)
class Stored:
    """What was put into our storage. `review` is as it was claimed: if that has changed, it has to be put again."""

    id: UUID
    job_id: UUID
    review: str | None
    storage_key: str
    sha256: str
    bytes: int
    content_type: str
    width: int | None = None
    height: int | None = None
    declared: str | None = None  # the type that its server named, where the content is of another


@dataclass(frozen=True, slots=True)
class Lost:
    """An output that cannot be had any more, and why."""

    id: UUID
    job_id: UUID
    error: str


@dataclass(frozen=True, slots=True)
class Settled:
    """An output whose fate is known: stored or lost. `told` of a job: its callers may be told now."""

    id: UUID
    job_id: UUID
    index: int
    state: str
    review: str | None
    told: bool
    service_id: UUID


# By statements of their own: only the next one sees what others committed while these waited.
_LOCK = text("SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE")
_LOCK_NOTICES = text("""
    SELECT id FROM notifications
    WHERE job_id = ANY(CAST(:ids AS uuid[])) AND event = 'job.completed' AND state = 'pending'
    ORDER BY id FOR UPDATE
""")
_LOCK_FILES = text("""
    SELECT pg_advisory_xact_lock(hashtextextended(k, 0)) FROM unnest(CAST(:keys AS text[])) k ORDER BY k
""")

_IN_GRACE = f"n.created_at > clock_timestamp() - interval '{GRACE_S} s'"

_SETTLE = text(f"""
    WITH wanted AS (
        SELECT * FROM jsonb_to_recordset(CAST(:ends AS jsonb)) AS w(
            id uuid, review text, storage_key text, sha256 text, bytes bigint, content_type text, width int, height int,
            declared text, error text, notice_id uuid)
    ), ended AS (
        UPDATE assets a SET
            state = CASE WHEN w.error IS NULL THEN 'stored' ELSE 'lost' END,
            storage_key = w.storage_key, sha256 = w.sha256, bytes = w.bytes, content_type = w.content_type,
            width = w.width, height = w.height, error = w.error,
            stored_at = CASE WHEN w.error IS NULL THEN clock_timestamp() END,
            due_at = NULL, worker_id = NULL
        FROM wanted w
        WHERE a.id = w.id AND a.state = 'pending' AND (w.error IS NOT NULL OR a.review IS NOT DISTINCT FROM w.review)
        RETURNING a.*, w.declared, w.notice_id, CASE WHEN w.error IS NOT NULL THEN 'output.lost'
            WHEN a.review = 'quarantined' THEN 'output.quarantined' ELSE 'output.stored' END AS kind
    ), numbered AS (
        SELECT e.*, row_number() OVER (PARTITION BY job_id ORDER BY index) AS number FROM ended e
    ), counted AS (
        UPDATE jobs j SET last_seq = j.last_seq + n.count
        FROM (SELECT job_id, count(*)::int AS count FROM ended GROUP BY 1) n WHERE j.id = n.job_id
        RETURNING j.id, j.last_seq - n.count AS before
    ), noted AS (
        INSERT INTO events (job_id, seq, at, kind, data)
        SELECT n.job_id, c.before + n.number, clock_timestamp(), n.kind, jsonb_strip_nulls(jsonb_build_object(
            'index', n.index, 'sha256', n.sha256, 'bytes', n.bytes, 'content_type', n.content_type,
            'declared', n.declared, 'error', n.error))
        FROM numbered n JOIN counted c ON c.id = n.job_id
    ), waiting AS (  -- callers who have not been told yet, because the outputs were waited for
        SELECT n.id, n.job_id FROM notifications n JOIN counted c ON c.id = n.job_id
        WHERE n.event = 'job.completed'
          AND (n.state = 'pending' AND {_IN_GRACE} OR n.state = 'unaddressed')  -- whom nobody ever has to tell
    ), told AS (
        UPDATE notifications n SET due_at = clock_timestamp() FROM waiting w
        WHERE n.id = w.id AND n.due_at > clock_timestamp()
          AND NOT EXISTS (SELECT FROM assets a WHERE a.job_id = n.job_id AND a.due_at IS NOT NULL
                          AND a.id NOT IN (SELECT id FROM ended))
        RETURNING n.job_id
    ), late AS (
        INSERT INTO notifications (id, event, job_id, seq, due_at)
        SELECT n.notice_id, n.kind, n.job_id, c.before + n.number, clock_timestamp()
        FROM numbered n JOIN counted c ON c.id = n.job_id
        WHERE (n.kind = 'output.stored' OR n.kind = 'output.lost' AND (SELECT archiving FROM account))
          AND n.job_id NOT IN (SELECT job_id FROM waiting)
        RETURNING job_id
    )
    SELECT id, job_id, index, state, review,
           job_id IN (SELECT job_id FROM told UNION ALL SELECT job_id FROM late) AS told,
           service_id
    FROM ended ORDER BY job_id, index
""")


def settle(tx: Connection, ends: Iterable[Stored | Lost]) -> list[Settled]:
    """
    Record what became of outputs, in the history of their jobs too, and have their callers told.

    An output may stand in *ends* once. Those that somebody else stored meanwhile, or that were reviewed while they were
    fetched, are left out: a repeat, or a worker that lost the race.
    """
    wanted = [
        {name: str(value) if isinstance(value, UUID) else value for name, value in asdict(end).items()}
        | {"notice_id": str(new_id())}
        for end in ends
    ]
    if not wanted:
        return []
    job_ids = {"ids": sorted({one["job_id"] for one in wanted})}
    tx.execute(_LOCK, job_ids)
    tx.execute(_LOCK_NOTICES, job_ids)  # nobody begins to tell before what it would tell is written
    if keys := sorted({one["storage_key"] for one in wanted if one.get("storage_key")}):
        tx.execute(_LOCK_FILES, {"keys": keys})  # see `unshared`
    return [
        Settled(*row) for row in tx.execute(_SETTLE, {"ends": json.dumps(wanted), "ids": [one["id"] for one in wanted]})
    ]


_PUT_OFF = text("""
    UPDATE assets a SET due_at = clock_timestamp() + make_interval(secs => w.s), worker_id = NULL, error = w.error,
        gone = CASE WHEN w.gone THEN least(a.gone + 1, 32767) ELSE 0 END,
        gone_at = CASE WHEN w.gone THEN coalesce(a.gone_at, clock_timestamp()) END
    FROM jsonb_to_recordset(CAST(:later AS jsonb)) AS w(id uuid, s float8, error text, gone boolean)
    WHERE a.id = w.id AND a.worker_id = :worker_id AND a.state = 'pending'
""")


@dataclass(frozen=True, slots=True)
class Later:
    """An output to be tried again: in so many seconds, why, and whether the provider says that it is not there."""

    id: UUID
    s: float
    error: str
    gone: bool = False
    job_id: UUID | None = None  # for the log


def put_off(tx: Connection, later: Collection[Later], *, worker_id: UUID) -> None:
    """Try these again later, unless somebody else has taken them."""
    rows = [{"id": str(one.id), "s": one.s, "error": one.error, "gone": one.gone} for one in later]
    if rows:
        tx.execute(_PUT_OFF, {"later": json.dumps(rows), "worker_id": worker_id})


def give_back(tx: Connection, worker_id: UUID) -> int:
    """Let others fetch at once what this worker has begun: it stops. Returns how many."""
    statement = text("""
        UPDATE assets SET due_at = clock_timestamp(), worker_id = NULL, attempts = greatest(attempts - 1, 0)
        WHERE worker_id = :worker_id AND state = 'pending'
    """)
    return tx.execute(statement, {"worker_id": worker_id}).rowcount


_ABANDONED = text(f"""
    UPDATE assets a SET due_at = clock_timestamp(), worker_id = NULL
    FROM (
        SELECT x.id FROM assets x LEFT JOIN workers w ON w.id = x.worker_id
        WHERE x.worker_id IS NOT NULL AND x.due_at > statement_timestamp() AND (w.id IS NULL OR {DEAD})
        LIMIT 1000 FOR UPDATE OF x SKIP LOCKED
    ) d WHERE a.id = d.id
""")


def give_up_claims(tx: Connection, *, dead_after_s: float) -> int:
    """Let others fetch what dead workers had begun. Returns how many."""
    return tx.execute(_ABANDONED, {"dead_after_s": dead_after_s}).rowcount


_LOSE_OLD = text(f"""
    SELECT id, job_id FROM assets
    WHERE state = 'pending' AND created_at < statement_timestamp() - interval '{SOURCE_DAYS} days'
      AND (due_at IS NULL OR due_at < statement_timestamp() - interval '1 day')
    ORDER BY created_at LIMIT :at_most
""")


def count_lost(tx: Connection, settled: Iterable[Settled]) -> None:
    """Add those of them that are lost to what happened: the last statement of its transaction."""
    stats.add(tx, [(one.service_id, measures.OUTPUTS_LOST, 1) for one in settled if one.state == Kept.LOST])


def lose_old(tx: Connection, *, at_most: int = 500) -> list[Settled]:
    """Count as lost what nobody archives and the provider has deleted: for where nothing is archived."""
    error = f"It was not archived in the {SOURCE_DAYS} days that the provider keeps it."
    return settle(tx, [Lost(row.id, row.job_id, error) for row in tx.execute(_LOSE_OLD, {"at_most": at_most})])


def wake_idle(tx: Connection, *, at_most: int = 500) -> int:
    """Have outputs fetched that were planned while nobody archived. Returns how many."""
    statement = text("""
        UPDATE assets SET due_at = clock_timestamp() WHERE id = ANY(ARRAY(
            SELECT id FROM assets WHERE state = 'pending' AND due_at IS NULL
            ORDER BY created_at LIMIT :at_most FOR UPDATE SKIP LOCKED))
    """)
    return tx.execute(statement, {"at_most": at_most}).rowcount


_UNPLANNED = text(f"""
    SELECT j.id, j.service_id, j.outputs, j.finished_at, j.state = 'completed' AND j.outputs <> '[]'
        AND j.finished_at > statement_timestamp() - interval '{SOURCE_DAYS} days'
        AND NOT EXISTS (SELECT FROM assets a WHERE a.job_id = j.id) AS unplanned
    FROM jobs j WHERE j.id > :after ORDER BY j.id LIMIT :at_most
""")
_ADOPT = text("""
    INSERT INTO assets (id, job_id, index, service_id, source_url, nsfw, review, created_at)
    SELECT w.id, j.id, w.index, j.service_id, o.item ->> 'url', (o.item ->> 'nsfw')::boolean,
           CASE WHEN (o.item ->> 'nsfw')::boolean THEN
                CASE coalesce(s.nsfw_policy, c.nsfw_policy)
                     WHEN 'flag' THEN 'flagged' WHEN 'quarantine' THEN 'quarantined' END END,
           j.finished_at
    FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS w(id uuid, job_id uuid, index int)
    JOIN jobs j ON j.id = w.job_id
    CROSS JOIN LATERAL (SELECT j.outputs -> w.index AS item) o
    LEFT JOIN services s ON s.id = j.service_id
    CROSS JOIN account c
    ON CONFLICT DO NOTHING
""")


def adopt(tx: Connection, *, after: UUID, at_most: int = 1000) -> UUID | None:
    """
    Plan the outputs of jobs that a release before this one completed; look at *at_most* jobs, the ids *after* this one.

    Returns:
        The last id looked at; None when there was none.
    """
    jobs = tx.execute(_UNPLANNED, {"after": after, "at_most": at_most}).all()
    wanted = [
        {"id": asset_id, "job_id": str(job.id), "index": index}
        for job in jobs
        if job.unplanned
        for index, asset_id in enumerate(ids_for(job.outputs))
    ]
    if wanted:
        tx.execute(_ADOPT, {"wanted": json.dumps(wanted)})
    return jobs[-1].id if jobs else None


def fetch_again(tx: Connection, ids: Collection[UUID]) -> None:
    """Forget that these were stored: their files are not there."""
    statement = text("""
        UPDATE assets SET state = 'pending', due_at = clock_timestamp(), storage_key = NULL, stored_at = NULL
        WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'stored' AND review IS DISTINCT FROM 'purged'
    """)
    tx.execute(statement, {"ids": [str(one) for one in ids]})
