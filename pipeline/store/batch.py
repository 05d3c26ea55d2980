"""Batches in: many jobs of one service, all stored or none, each key naming what it named before."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, select, text

from pipeline.errors import FieldError, IdempotencyConflict, Unavailable
from pipeline.store import intake
from pipeline.store.intake import NewJob, Stored
from pipeline.store.tables import IdempotencyKeyRow

AT_ONCE = 1000
"""Jobs a statement, so that no statement of a large batch takes longer than a web request's may."""

ANOTHER_BODY = "Was used before for another job: use a new key, or repeat the first request unchanged."


@dataclass(frozen=True, slots=True)
class Line:
    """One job of a batch; *number* is its line, from 1, *fingerprint* what its key stands for, if it has one."""

    number: int
    job: NewJob
    key: str | None = None
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class Added:
    """The jobs of a batch in its order, and those of its lines that were stored by this call, likewise in order."""

    ids: list[UUID]
    lines: Sequence[Line]
    stored: Sequence[Stored]


_CLAIM = text("""
    INSERT INTO idempotency_keys (service_id, key, fingerprint, job_ids)
    VALUES (:service_id, :key, :fingerprint, CAST(:ids AS uuid[]))
    ON CONFLICT DO NOTHING RETURNING key
""")

_RENAME = text("""
    UPDATE idempotency_keys SET job_ids = CAST(:ids AS uuid[]) WHERE service_id = :service_id AND key = :key
""")


def _array(ids: Iterable[UUID]) -> str:
    """As Postgres spells an array: ten thousand of them are written in no time."""
    return f"{{{','.join([one.hex for one in ids])}}}"


def seen(tx: Connection, service_id: UUID, key: str, fingerprint: bytes) -> list[UUID] | None:
    """
    The jobs of the batch that *key* names; None when it names nothing yet.

    Raises:
        IdempotencyConflict: It names something else.
    """
    query = select(IdempotencyKeyRow.job_ids, IdempotencyKeyRow.fingerprint)
    found = tx.execute(query.where(IdempotencyKeyRow.service_id == service_id, IdempotencyKeyRow.key == key)).first()
    if found is None:
        return None
    if found.job_ids is None or found.fingerprint != fingerprint:
        raise IdempotencyConflict("Use a new Idempotency-Key for a new batch, or repeat the first one unchanged.")
    return list(found.job_ids)


def claim(tx: Connection, service_id: UUID, key: str, fingerprint: bytes, ids: Sequence[UUID]) -> list[UUID] | None:
    """
    Let *key* name the jobs *ids*; or, if it names those of an equal batch already, give them.

    Raises:
        IdempotencyConflict: It names something else.
    """
    names = {"service_id": service_id, "key": key, "fingerprint": fingerprint, "ids": _array(ids)}
    if tx.execute(_CLAIM, names).first():
        return None
    # ON CONFLICT waited for the other transaction, so its row is there for this statement to see.
    found = seen(tx, service_id, key, fingerprint)
    if found is None:
        raise Unavailable("The batch of this Idempotency-Key was just being removed.")
    return found


def rename(tx: Connection, service_id: UUID, key: str, ids: Sequence[UUID]) -> None:
    """Let a claimed *key* name these jobs instead."""
    tx.execute(_RENAME, {"service_id": service_id, "key": key, "ids": _array(ids)})


# In the order of keys, so that two batches with common keys never wait for one another in a circle.
_CLAIM_LINES = text("""
    INSERT INTO idempotency_keys (service_id, key, fingerprint, job_id)
    SELECT :service_id, n.key, decode(n.fingerprint, 'hex'), n.job_id
    FROM jsonb_to_recordset(CAST(:lines AS jsonb)) AS n(key text, fingerprint text, job_id uuid)
    ORDER BY n.key COLLATE "C"
    ON CONFLICT DO NOTHING
    RETURNING key
""")

_NAMED = text("""
    SELECT key, fingerprint, job_id FROM idempotency_keys WHERE service_id = :service_id AND key = ANY(:keys)
""")


def add(tx: Connection, service_id: UUID, lines: Sequence[Line], *, however_old: bool = False) -> Added:
    """
    Store the jobs of *lines*, but those whose key names a job already: these are that job.

    *however_old*: an old price will do.

    Raises:
        IdempotencyConflict: Keys name other jobs than those asked for; its `errors` give the lines.
        Unavailable: A job that a key names is just being removed.
    """
    first: dict[str, Line] = {}
    for line in lines:
        if line.key is not None:
            first.setdefault(line.key, line)
    named = {key: (line.fingerprint, line.job.id) for key, line in first.items()}
    if first:
        earlier = set(first) - _claimed(tx, service_id, first.values())
        found = tx.execute(_NAMED, {"service_id": service_id, "keys": sorted(earlier)}) if earlier else ()
        looked_up = {row.key: (bytes(row.fingerprint), row.job_id) for row in found}
        if len(looked_up) < len(earlier):
            raise Unavailable("A job of one of these idempotency keys was just being removed.")
        named |= looked_up
    ids, new, wrong = [], [], []
    for line in lines:
        meant, job_id = named[line.key] if line.key is not None else (b"", line.job.id)
        if meant != line.fingerprint or job_id is None:  # None: it names a batch
            wrong.append(FieldError("idempotency_key", ANOTHER_BODY, line.number))
            continue
        ids.append(job_id)
        if job_id == line.job.id:
            new.append(line)
    if wrong:
        raise IdempotencyConflict("Keys of this batch stand for other jobs.", errors=wrong)
    stored: list[Stored] = []
    for start in range(0, len(new), AT_ONCE):
        jobs = [line.job for line in new[start : start + AT_ONCE]]
        stored += intake.add(tx, jobs, however_old=however_old)
    return Added(ids, new, stored)


def _claimed(tx: Connection, service_id: UUID, lines: Collection[Line]) -> set[str]:
    """Those of the keys that named nothing before, and name the jobs of these lines from now on."""
    said = [{"key": one.key, "fingerprint": one.fingerprint.hex(), "job_id": one.job.id.hex} for one in lines]
    parameters = {"service_id": service_id, "lines": json.dumps(said)}
    return set(tx.execute(_CLAIM_LINES, parameters).scalars())
