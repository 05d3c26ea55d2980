"""Flagged outputs as a person decides about them: who did what and when stands in the row and in the job's history."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.store.tables import new_id


@dataclass(frozen=True, slots=True)
class Decided:
    """An output that a person decided about, and where its bytes lie; None: we have none."""

    id: UUID
    job_id: UUID
    index: int
    storage_key: str | None


_LISTED = text("""
    SELECT a.id, a.job_id, a.index, s.name AS service, a.state, a.review, a.storage_key, a.content_type, a.bytes,
           a.sha256, a.width, a.height, a.created_at, a.stored_at, a.reviewed_by, a.reviewed_at,
           j.model, j.input ->> 'prompt' AS prompt
    FROM assets a LEFT JOIN services s ON s.id = a.service_id LEFT JOIN jobs j ON j.id = a.job_id
    WHERE a.review = 'quarantined' AND a.id > :after ORDER BY a.id LIMIT :limit
""")

_REVIEWED = text("""
    SELECT a.id, a.job_id, a.index, s.name AS service, a.review, a.reviewed_by, a.reviewed_at
    FROM assets a LEFT JOIN services s ON s.id = a.service_id
    WHERE a.reviewed_at IS NOT NULL ORDER BY a.reviewed_at DESC LIMIT :limit
""")


def waiting(tx: Connection, *, after: UUID | None = None, limit: int = 100) -> Sequence[Any]:
    """Outputs under quarantine, the oldest first."""
    return tx.execute(_LISTED, {"after": after or UUID(int=0), "limit": limit}).all()


def reviewed(tx: Connection, *, limit: int = 25) -> Sequence[Any]:
    """What people decided last, the newest first."""
    return tx.execute(_REVIEWED, {"limit": limit}).all()


def waiting_of(tx: Connection, job_id: UUID) -> list[int]:
    """The numbers of a job's outputs that are under quarantine."""
    statement = text("SELECT index FROM assets WHERE job_id = :job_id AND review = 'quarantined' ORDER BY index")
    return list(tx.execute(statement, {"job_id": job_id}).scalars())


def output(tx: Connection, job_id: UUID, index: int) -> Any | None:
    """One output of a job as its row has it; None when there is none."""
    return tx.execute(
        text("SELECT * FROM assets WHERE job_id = :job_id AND index = :index"), {"job_id": job_id, "index": index}
    ).first()


def outputs(tx: Connection, job_id: UUID) -> Sequence[Any]:
    """How a job's outputs stand, in the provider's order."""
    statement = text("""
        SELECT index, state, review, error, attempts, due_at, stored_at, reviewed_by, reviewed_at
        FROM assets WHERE job_id = :job_id ORDER BY index
    """)
    return tx.execute(statement, {"job_id": job_id}).all()


# The job first, as whoever stores its outputs does.
_LOCK = text("SELECT j.id FROM jobs j JOIN assets a ON a.job_id = j.id WHERE a.id = :id FOR UPDATE OF j")

_RELEASE = text("""
    WITH released AS (
        UPDATE assets SET review = 'released', reviewed_by = :by, reviewed_at = clock_timestamp(),
               storage_key = :storage_key
        WHERE id = :id AND review = 'quarantined' AND storage_key IS NOT DISTINCT FROM :held_as
        RETURNING id, job_id, index, storage_key, sha256
    ), counted AS (
        UPDATE jobs j SET last_seq = last_seq + 1 FROM released r WHERE j.id = r.job_id
        RETURNING j.id, j.last_seq
    ), noted AS (
        INSERT INTO events (job_id, seq, at, kind, data)
        SELECT c.id, c.last_seq, clock_timestamp(), 'output.released', jsonb_build_object('index', r.index, 'by', :by)
        FROM counted c JOIN released r ON r.job_id = c.id
    ), told AS (
        INSERT INTO notifications (id, event, job_id, seq, due_at)
        SELECT :notice_id, 'output.released', id, last_seq, clock_timestamp() FROM counted
    )
    SELECT id, job_id, index, storage_key FROM released
""")


def release(tx: Connection, asset_id: UUID, *, by: str, held_as: str | None, storage_key: str | None) -> Decided | None:
    """
    Let callers have an output that was under quarantine, and plan that they are told.

    Its bytes were copied from *held_as*, the row's key until now, to *storage_key*; both are None while there are none.

    Returns:
        None when it is not under quarantine any more, or has got another key meanwhile: look again.
    """
    tx.execute(_LOCK, {"id": asset_id})
    if storage_key:
        tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": storage_key})
    parameters = {"id": asset_id, "by": by, "held_as": held_as, "storage_key": storage_key, "notice_id": new_id()}
    row = tx.execute(_RELEASE, parameters).first()
    return Decided(*row) if row else None


# The content of an output that is no file stands in the job as well.
_PURGE = text("""
    WITH purged AS (
        UPDATE assets SET review = 'purged', reviewed_by = :by, reviewed_at = clock_timestamp(),
               state = CASE WHEN state = 'stored' THEN state ELSE 'lost' END, due_at = NULL, worker_id = NULL,
               error = CASE WHEN state = 'stored' THEN error ELSE 'It was purged.' END
        WHERE id = :id AND review IS DISTINCT FROM 'purged'
        RETURNING id, job_id, index, storage_key
    ), counted AS (
        UPDATE jobs j SET last_seq = last_seq + 1, outputs = CASE
            WHEN j.outputs -> p.index::int ? 'value'
            THEN jsonb_set(j.outputs, ARRAY[p.index::text, 'value'], 'null') ELSE j.outputs END
        FROM purged p WHERE j.id = p.job_id
        RETURNING j.id, j.last_seq
    ), noted AS (
        INSERT INTO events (job_id, seq, at, kind, data)
        SELECT c.id, c.last_seq, clock_timestamp(), 'output.purged', jsonb_build_object('index', p.index, 'by', :by)
        FROM counted c JOIN purged p ON p.job_id = c.id
    )
    SELECT id, job_id, index, storage_key FROM purged
""")


def purge(tx: Connection, asset_id: UUID, *, by: str) -> Decided | None:
    """
    Give up an output for good. After the commit `lifecycle.discard` removes its bytes, and `forget_keys` the key.

    Returns:
        None when it was purged before.
    """
    tx.execute(_LOCK, {"id": asset_id})
    row = tx.execute(_PURGE, {"id": asset_id, "by": by}).first()
    return Decided(*row) if row else None


def unfinished(tx: Connection, *, limit: int = 100) -> Sequence[Any]:
    """Purged outputs whose bytes may still be there: the process died on its way."""
    statement = text("""
        SELECT id, storage_key FROM assets WHERE storage_key IS NOT NULL AND review = 'purged' LIMIT :limit
    """)
    return tx.execute(statement, {"limit": limit}).all()


def lock_file(tx: Connection, key: str) -> None:
    """Until this transaction ends nobody begins, or ceases, to share this file."""
    tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": key})


def shares(tx: Connection, key: str, *, but_for: Collection[UUID] = ()) -> bool:
    """Whether an output, other than these and purged ones, has its bytes in this file."""
    statement = text("""
        SELECT EXISTS (SELECT FROM assets WHERE storage_key = :key AND review IS DISTINCT FROM 'purged'
                       AND id <> ALL(CAST(:ids AS uuid[])))
    """)
    return bool(tx.execute(statement, {"key": key, "ids": [str(one) for one in but_for]}).scalar())


def forget_key(tx: Connection, key: str) -> None:
    """The file is gone: purged outputs have no key any more."""
    tx.execute(
        text("UPDATE assets SET storage_key = NULL WHERE storage_key = :key AND review = 'purged'"), {"key": key}
    )
