"""Who is signed in at the dashboard, and from where too many tried."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.store.people import Role
from pipeline.store.tables import new_id

LASTS_S = 12 * 3600
"""How long somebody stays signed in, in seconds."""

TRIES = 10
"""So many wrong passwords may come from one address in WINDOW_S seconds, before none is looked at any more."""

TRIES_OF_ALL = 200
"""And so many from all addresses together: whoever has many is no faster."""

WINDOW_S = 600

_ALL = "all"


@dataclass(frozen=True, slots=True)
class Person:
    """Who is signed in. The name is their own word."""

    session_id: UUID
    name: str
    role: Role

    @property
    def may_act(self) -> bool:
        """Whether they may change anything."""
        return self.role == Role.OPERATOR


_OPEN = text(f"""
    WITH old AS (DELETE FROM sessions WHERE expires_at < clock_timestamp())
    INSERT INTO sessions (id, name, role, password_print, expires_at)
    VALUES (:id, :name, :role, :print, clock_timestamp() + interval '{LASTS_S} seconds')
""")


def begin(tx: Connection, name: str, role: Role, password_print: bytes) -> Person:
    """Sign somebody in."""
    session_id = new_id()
    tx.execute(_OPEN, {"id": session_id, "name": name, "role": role, "print": password_print})
    return Person(session_id, name, role)


def find(tx: Connection, session_id: UUID) -> tuple[Person, bytes] | None:
    """Who that session is, with the print of the password they gave; None when it is over."""
    statement = text(
        "SELECT name, role, password_print FROM sessions WHERE id = :id AND expires_at > clock_timestamp()"
    )
    row = tx.execute(statement, {"id": session_id}).first()
    return (Person(session_id, row.name, Role(row.role)), row.password_print) if row else None


def end(tx: Connection, session_id: UUID) -> None:
    """Sign somebody out."""
    tx.execute(text("DELETE FROM sessions WHERE id = :id"), {"id": session_id})


# Counted before the password is looked at, so that many tries at once are no way around it.
_TRY = text(f"""
    WITH old AS (
        DELETE FROM sign_ins
        WHERE since < clock_timestamp() - interval '{WINDOW_S} seconds' AND address <> ALL(:names)
    ), tried AS (
        INSERT INTO sign_ins AS s (address, failures)
        SELECT name, 1 FROM unnest(CAST(:names AS text[])) name ORDER BY name
        ON CONFLICT (address) DO UPDATE SET
            failures = CASE WHEN s.since < clock_timestamp() - interval '{WINDOW_S} seconds' THEN 1
                            ELSE least(s.failures + 1, 1000000) END,
            since = CASE WHEN s.since < clock_timestamp() - interval '{WINDOW_S} seconds' THEN clock_timestamp()
                         ELSE s.since END
        RETURNING address, failures, since
    )
    SELECT ceil(extract(epoch FROM since - clock_timestamp()) + {WINDOW_S})::int FROM tried
    WHERE failures > CASE WHEN address = '{_ALL}' THEN {TRIES_OF_ALL} ELSE {TRIES} END
    ORDER BY 1 DESC LIMIT 1
""")


def try_from(tx: Connection, address: str) -> int | None:
    """Count one try to sign in from *address*. None: go on; else for how many seconds no password is looked at."""
    found: int | None = tx.execute(_TRY, {"names": [_ALL, address]}).scalar()
    return found if found is None else max(1, found)


def forgive(tx: Connection, address: str) -> None:
    """The password was right: neither it nor the wrong ones before it count any more."""
    tx.execute(text("DELETE FROM sign_ins WHERE address = :address"), {"address": address})
    tx.execute(text(f"UPDATE sign_ins SET failures = greatest(failures - 1, 0) WHERE address = '{_ALL}'"))
