"""
Custody: what callers may lose. Outputs that only the provider has, and deletes; what waits for a person.

All is read off indexes, and nothing is counted beyond AT_MOST: whoever has more of it has one trouble many times.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipeline.outputs import SOURCE_DAYS
from pipeline.store.tables import new_id, spelled

AT_MOST = 10_000
"""So many of a kind are counted, of unarchived outputs so many for each day that is left."""

AT_RISK_S = 60 * 3600.0
"""What the provider alone has had for so long is at risk: half a day before the third of its seven days ends."""

TOLD_EVERY = "1 day"
LOST_SINCE_DAYS = 30


@dataclass(frozen=True, slots=True)
class Custody:
    """How things stand. `unarchived` is a count by days left until the provider deletes; ages in seconds."""

    unarchived: Mapping[int, int]
    oldest_s: float | None  # of the unarchived ones; None: there are none
    lost: int  # in the last LOST_SINCE_DAYS days
    quarantined: int
    dead: int  # notifications nobody could be told
    archiving: bool

    @property
    def at_risk(self) -> bool:
        """Whether an output should have been archived long ago."""
        return self.oldest_s is not None and self.oldest_s > AT_RISK_S


_OLDEST_S = """
    SELECT extract(epoch FROM statement_timestamp() - created_at)::float8 FROM assets
    WHERE state = 'pending' AND source_url IS NOT NULL ORDER BY created_at LIMIT 1
"""

_CUSTODY = text(f"""
    SELECT (
        SELECT jsonb_object_agg(d.days, (
            SELECT count(*) FROM (
                SELECT FROM assets WHERE state = 'pending' AND source_url IS NOT NULL
                  AND created_at > d.after AND created_at <= d.until LIMIT {AT_MOST}) x
        ))
        FROM (
            SELECT days, statement_timestamp() - make_interval(days => {SOURCE_DAYS} - 1 - days) AS until,
                   CASE WHEN days > 0 THEN statement_timestamp() - make_interval(days => {SOURCE_DAYS} - days)
                        ELSE '-infinity' END AS after
            FROM generate_series(0, {SOURCE_DAYS - 1}) days
        ) d
    ) AS unarchived, ({_OLDEST_S}) AS oldest_s, (
        SELECT count(*) FROM (
            SELECT FROM assets WHERE state = 'lost' AND review IS DISTINCT FROM 'purged'
              AND created_at > statement_timestamp() - interval '{LOST_SINCE_DAYS} days' LIMIT {AT_MOST}) x
    ) AS lost, (
        SELECT count(*) FROM (SELECT FROM assets WHERE review = 'quarantined' LIMIT {AT_MOST}) x
    ) AS quarantined, (
        SELECT count(*) FROM (SELECT FROM notifications WHERE state = 'dead' LIMIT {AT_MOST}) x
    ) AS dead, archiving
    FROM account WHERE id = 1
""")


def custody(tx: Connection) -> Custody:
    """How things stand now."""
    row = tx.execute(_CUSTODY).one()
    counts = {int(days): count for days, count in row.unarchived.items()}
    return Custody(dict(sorted(counts.items())), row.oldest_s, row.lost, row.quarantined, row.dead, row.archiving)


def at_risk_s(tx: Connection) -> float | None:
    """How old the oldest output is that only the provider has, in seconds; None while none is at risk."""
    oldest_s: float | None = tx.execute(text(_OLDEST_S)).scalar()
    return oldest_s if oldest_s is not None and oldest_s > AT_RISK_S else None


# Nothing is counted while the operator knows: `late` is then not even begun.
_TELL = text(f"""
    WITH late AS MATERIALIZED (
        SELECT created_at FROM assets
        WHERE state = 'pending' AND source_url IS NOT NULL
          AND created_at < statement_timestamp() - make_interval(secs => :at_risk_s)
          AND (SELECT at_risk_at IS NULL OR at_risk_at <= statement_timestamp() - interval '{TOLD_EVERY}'
               FROM account WHERE id = 1)
        ORDER BY created_at LIMIT {AT_MOST}
    ), told AS (
        UPDATE account SET at_risk_at = clock_timestamp()
        WHERE id = 1 AND EXISTS (SELECT FROM late)
          AND (at_risk_at IS NULL OR at_risk_at <= clock_timestamp() - interval '{TOLD_EVERY}')
        RETURNING id
    )
    INSERT INTO notifications (id, event, audience, data, due_at)
    SELECT :notice_id, 'outputs.at_risk', 'operator', jsonb_build_object(
        'count', (SELECT count(*) FROM late), 'oldest_at', {spelled("(SELECT min(created_at) FROM late)")},
        'deleted_from', {spelled(f"((SELECT min(created_at) FROM late) + interval '{SOURCE_DAYS} days')")}),
        clock_timestamp()
    FROM told
    RETURNING (data ->> 'count')::int
""")


def tell_of_risk(tx: Connection) -> int | None:
    """
    Plan that the operator is told of outputs at risk, once a day while there are any.

    Returns:
        How many there are, to the one call that planned it; else None.
    """
    found: int | None = tx.execute(_TELL, {"at_risk_s": AT_RISK_S, "notice_id": new_id()}).scalar()
    return found
