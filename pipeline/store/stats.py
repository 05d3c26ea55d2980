"""
What happened in each minute (`stats`), in each hour, and ever since (`totals`); see `measures` for the names.

The sweep counts a minute once it is over, off indexes alone, and again a little later: a POST's answer comes, and a
long transaction commits, after the minute they belong to. A count can only grow, and what it grew by is added to the
hour and the totals in the same statement: whoever counts a minute twice changes nothing, and pruned jobs stay counted.
What has no index by time, because it is rare, is added in the transaction of the event, as its last statement: nobody
waits in a circle.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import CheckConstraint, Connection, Double, Index, SmallInteger, text
from sqlalchemy.orm import Mapped, mapped_column

from pipeline import measures
from pipeline.jobs import FINAL
from pipeline.measures import BOUNDS, BOUNDS_S, Latency
from pipeline.store.plans import READ_BY_INDEX
from pipeline.store.tables import Base, id_from

NOBODY = UUID(int=0)
"""In the place of a service: what belongs to none."""

CLOSED_AFTER_S = 30
"""How long after its end a minute is counted first, in seconds."""

LOOKS = (0, 3, 30)
"""A minute is counted again when so many minutes more have gone: answers are in after 3, and late rows after 30."""

START = timedelta(minutes=30)
"""How far back the first count of all begins."""

POINTS = 2000
"""A series has no more points."""


class StatRow(Base):
    """What happened in one minute, by the database's clock: one measure of one service. Zeros have no row."""

    __tablename__ = "stats"
    __table_args__ = (Index("stats_measure_idx", "measure", "minute", postgresql_include=["service_id", "value"]),)

    minute: Mapped[datetime] = mapped_column(primary_key=True)
    service_id: Mapped[UUID] = mapped_column(primary_key=True)  # NOBODY: it belongs to none
    measure: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(Double)


class HourRow(Base):
    """The sum of a service's measure over the minutes of one hour, of UTC."""

    __tablename__ = "stats_hours"
    __table_args__ = (Index("stats_hours_measure_idx", "measure", "hour", postgresql_include=["service_id", "value"]),)

    hour: Mapped[datetime] = mapped_column(primary_key=True)
    service_id: Mapped[UUID] = mapped_column(primary_key=True)
    measure: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(Double)


class TotalRow(Base):
    """The sum of a service's measure over all minutes there ever were."""

    __tablename__ = "totals"

    service_id: Mapped[UUID] = mapped_column(primary_key=True)
    measure: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(Double)


class RollupRow(Base):
    """Up to when minutes have been counted. One row, whose lock is the right to count."""

    __tablename__ = "rollup"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    upto: Mapped[datetime]


def _interval(start: str, end: str) -> str:
    """The number of the interval a duration falls into, its upper bound included."""
    below = ", ".join(f"{-bound:g}" for bound in reversed(BOUNDS_S))
    return f"{len(BOUNDS_S)} - width_bucket(-{_seconds(start, end)}::float8, ARRAY[{below}]::float8[]) + 1"


def _seconds(start: str, end: str) -> str:
    return f"greatest(0, extract(epoch FROM x.{end} - x.{start}))"


_BETWEEN = {
    Latency.QUEUED: ("run_at", "submitted_at"),
    Latency.PROVIDER: ("submitted_at", "finished_at"),
    Latency.TOTAL: ("run_at", "finished_at"),
}
_NAMES = f"ARRAY[{', '.join(repr(bound) for bound in BOUNDS)}]"

_TIMED = ", ".join(
    f"('{name}.' || ({_NAMES})[j.{name}_n], CASE WHEN j.heard THEN j.n END),"
    f" ('{measures.sum_of(name)}', CASE WHEN j.heard THEN j.{name} END)"
    for name in _BETWEEN
)

# What a job cost is counted when it completes, but for one that was given up long after its deadline: its money counted
# as spent then, see `alarms.stop_asking`; so did that of one in doubt which a person gave up. Equal jobs are added up
# first: a minute may have tens of thousands.
_ENDED = f"""
    SELECT j.service_id, m.measure, m.value
    FROM (
        SELECT x.service_id, x.state, x.settled_by, h.heard, count(*) AS n,
               sum(x.price) FILTER (WHERE x.state = 'completed' AND x.finished_at < x.deadline_at + interval '1 day'
                                       OR x.state = 'failed' AND x.settled_by = 'operator') AS usd,
               {", ".join(f"{_interval(*ends)} AS {name}_n" for name, ends in _BETWEEN.items())},
               {", ".join(f"sum({_seconds(*ends)}) AS {name}" for name, ends in _BETWEEN.items())}
        FROM services s
        CROSS JOIN unnest(ARRAY[{", ".join(f"'{state}'" for state in sorted(FINAL))}]) final(state)
        JOIN jobs x ON x.service_id = s.id AND x.state = final.state AND x.due_at IS NULL
                   AND coalesce(x.finished_at, x.deadline_at) >= :minute
                   AND coalesce(x.finished_at, x.deadline_at) < :until
        CROSS JOIN LATERAL (
            SELECT x.submitted_at IS NOT NULL AND x.state IN ('completed', 'failed') AS heard
        ) h
        GROUP BY 1, 2, 3, 4, {", ".join(f"{name}_n" for name in _BETWEEN)}
    ) j
    CROSS JOIN LATERAL (VALUES
        ('ended.' || j.state, j.n),
        ('settled.' || j.settled_by, j.n),
        ('{measures.SPENT}', j.usd),
        {_TIMED}
    ) m(measure, value)
"""

# An expired job may complete after all, and its row says no more when it expired: what its caller was told does.
COUNTED: Mapping[str, str] = {
    "accepted": f"""
        SELECT service_id, '{measures.ACCEPTED}' AS measure, 1::numeric AS value
        FROM jobs WHERE id >= :first_id AND id < :last_id
    """,
    "ended": _ENDED,
    "expired": """
        SELECT j.service_id, m.measure, 1
        FROM notifications n JOIN jobs j ON j.id = n.job_id
        CROSS JOIN (VALUES ('ended.expired'), ('settled.deadline')) m(measure)
        WHERE n.id >= :first_id AND n.id < :last_id AND n.event = 'job.expired'
    """,
    "attempts": f"""
        SELECT a.service_id, m.measure, 1
        FROM attempts a
        CROSS JOIN LATERAL (VALUES ('{measures.ATTEMPTS}'), ('{measures.ATTEMPTS}.' || a.outcome)) m(measure)
        WHERE a.started_at >= :minute AND a.started_at < :until
    """,
    "callbacks": f"""
        SELECT coalesce(j.service_id, '{NOBODY}'), '{measures.CALLBACKS}' || c.verdict, 1
        FROM callbacks c LEFT JOIN jobs j ON j.id = c.job_id
        WHERE c.id >= :first_id AND c.id < :last_id
    """,
    "outputs": f"""
        SELECT a.service_id, m.measure, m.value
        FROM assets a
        CROSS JOIN LATERAL (VALUES
            ('{measures.OUTPUTS_STORED}', 1), ('{measures.OUTPUTS_BYTES}', a.bytes)) m(measure, value)
        WHERE a.stored_at >= :minute AND a.stored_at < :until
    """,
    "deliveries": f"""
        SELECT coalesce(j.service_id, '{NOBODY}'),
               CASE WHEN d.error IS NULL THEN '{measures.NOTIFICATIONS_DELIVERED}'
                    ELSE '{measures.NOTIFICATIONS_FAILED}' END, 1
        FROM deliveries d JOIN notifications n ON n.id = d.notification_id LEFT JOIN jobs j ON j.id = n.job_id
        WHERE d.at >= :minute AND d.at < :until
    """,
}
"""What is counted of one minute, each part off an index; `service_id`, `measure`, `value`."""

_COUNT = text(f"""
    WITH counted AS MATERIALIZED (
        SELECT service_id, measure, sum(value)::float8 AS value
        FROM ({" UNION ALL ".join(COUNTED.values())}) each
        WHERE measure IS NOT NULL AND value IS NOT NULL GROUP BY 1, 2
    ), grown AS MATERIALIZED (
        SELECT c.*, c.value - coalesce(f.value, 0) AS by
        FROM counted c
        LEFT JOIN stats f ON f.minute = :minute AND (f.service_id, f.measure) = (c.service_id, c.measure)
        WHERE c.value > coalesce(f.value, 0)
    ), kept AS (
        INSERT INTO stats (minute, service_id, measure, value)
        SELECT :minute, service_id, measure, value FROM grown ORDER BY 2, 3
        ON CONFLICT (minute, service_id, measure) DO UPDATE SET value = excluded.value
    ), hourly AS (
        INSERT INTO stats_hours AS h (hour, service_id, measure, value)
        SELECT date_trunc('hour', CAST(:minute AS timestamptz), 'UTC'), service_id, measure, by FROM grown ORDER BY 2, 3
        ON CONFLICT (hour, service_id, measure) DO UPDATE SET value = h.value + excluded.value
    )
    INSERT INTO totals AS t (service_id, measure, value)
    SELECT service_id, measure, by FROM grown ORDER BY 1, 2
    ON CONFLICT (service_id, measure) DO UPDATE SET value = t.value + excluded.value
""")

_BEGIN = text("""
    INSERT INTO rollup (id, upto)
    SELECT 1, date_trunc('minute', statement_timestamp()) - CAST(:start AS interval)
    WHERE NOT EXISTS (SELECT FROM rollup) ON CONFLICT DO NOTHING
""")

_NEXT = text("""
    SELECT upto FROM rollup
    WHERE id = 1 AND upto <= statement_timestamp() - make_interval(mins => 1, secs => :closed_after_s)
    FOR UPDATE SKIP LOCKED
""")


def count_next(tx: Connection) -> datetime | None:
    """
    Count the oldest minute that is over and was not counted yet, and once more those before that are due for it.

    Returns:
        The minute; None when all have been, or somebody else is counting.
    """
    tx.execute(_BEGIN, {"start": START})
    minute: datetime | None = tx.execute(_NEXT, {"closed_after_s": CLOSED_AFTER_S}).scalar()
    if minute is None:
        return None
    for back in LOOKS:
        count(tx, minute - timedelta(minutes=back))
    tx.execute(text("UPDATE rollup SET upto = :upto"), {"upto": minute + timedelta(minutes=1)})
    return minute


def count(tx: Connection, minute: datetime) -> None:
    """Count what is known to have happened in one minute; by who has the right to, see `count_next`."""
    tx.execute(READ_BY_INDEX)
    tx.execute(_COUNT, window(minute))


def window(minute: datetime) -> dict[str, object]:
    """A minute's bounds, for the parts of COUNTED. Ids are by the clocks of those who made them."""
    until = minute + timedelta(minutes=1)
    return {
        "minute": minute,
        "until": until,
        "first_id": id_from(minute.timestamp()),
        "last_id": id_from(until.timestamp()),
    }


_ADD = text("""
    WITH news AS MATERIALIZED (
        SELECT service_id, measure, sum(value) AS value
        FROM unnest(CAST(:service_ids AS uuid[]), CAST(:measures AS text[]), CAST(:values AS float8[]))
             AS n(service_id, measure, value)
        GROUP BY 1, 2
    ), kept AS (
        INSERT INTO stats AS s (minute, service_id, measure, value)
        SELECT date_trunc('minute', clock_timestamp()), service_id, measure, value FROM news ORDER BY 2, 3
        ON CONFLICT (minute, service_id, measure) DO UPDATE SET value = s.value + excluded.value
    ), hourly AS (
        INSERT INTO stats_hours AS h (hour, service_id, measure, value)
        SELECT date_trunc('hour', clock_timestamp(), 'UTC'), service_id, measure, value FROM news ORDER BY 2, 3
        ON CONFLICT (hour, service_id, measure) DO UPDATE SET value = h.value + excluded.value
    )
    INSERT INTO totals AS t (service_id, measure, value) SELECT service_id, measure, value FROM news ORDER BY 1, 2
    ON CONFLICT (service_id, measure) DO UPDATE SET value = t.value + excluded.value
""")


def add(tx: Connection, news: Iterable[tuple[UUID, str, float]]) -> None:
    """Add what just happened: the service (or NOBODY), the measure, how much. The last statement of its transaction."""
    if rows := [row for row in news if row[2]]:
        parameters = {
            "service_ids": [str(service_id) for service_id, _, _ in rows],
            "measures": [measure for _, measure, _ in rows],
            "values": [float(value) for _, _, value in rows],
        }
        tx.execute(_ADD, parameters)


# What was counted


@dataclass(frozen=True, slots=True)
class Total:
    """A measure's sum over all time. The service's name; None: it belongs to none."""

    service: str | None
    measure: str
    value: float


def totals(tx: Connection) -> list[Total]:
    """All there are."""
    statement = text("""
        SELECT s.name, t.measure, t.value FROM totals t LEFT JOIN services s ON s.id = t.service_id
        ORDER BY t.measure, s.name
    """)
    return [Total(*row) for row in tx.execute(statement)]


def counted_upto(tx: Connection) -> datetime | None:
    """Up to when minutes have been counted: what came after is not in them yet. None: nobody ever counted."""
    upto: datetime | None = tx.execute(text("SELECT upto FROM rollup WHERE id = 1")).scalar()
    return upto


@dataclass(frozen=True, slots=True)
class Series:
    """Evenly spaced sums: point *n* is of the *step_s* seconds from `since + n * step_s`; of what was not, zero."""

    since: datetime
    step_s: int
    points: Mapping[str, Sequence[float]]  # by measure

    @property
    def times(self) -> list[datetime]:
        """When each point's time begins."""
        count = len(next(iter(self.points.values()), ()))
        return [self.since + timedelta(seconds=n * self.step_s) for n in range(count)]


HOUR_S = 3600

_BY_MINUTE = """
    SELECT measure, floor(extract(epoch FROM minute - :since) / :step_s)::int AS n, sum(value) AS value
    FROM stats
    WHERE measure = ANY(CAST(:measures AS text[])) AND minute >= :since AND minute < :until
      AND (CAST(:service_id AS uuid) IS NULL OR service_id = CAST(:service_id AS uuid))
    GROUP BY 1, 2
"""
_SERIES = text(_BY_MINUTE)
_HOURLY = text(_BY_MINUTE.replace("minute", "hour").replace("FROM stats", "FROM stats_hours"))


def series(
    tx: Connection,
    wanted: Collection[str],
    since: datetime,
    until: datetime,
    step_s: int,
    *,
    service_id: UUID | None = None,
) -> Series:
    """
    How much there was of each measure, step by step, of one service or of all.

    The first step begins at the last whole *step_s* (of UTC) before *since*; the last may be in progress at *until*.
    Steps of whole hours are read off the hours, and the one *until* is in as far as it was counted.

    Raises:
        ValueError: A step is not of whole minutes, or there would be more than POINTS of them.
    """
    if step_s < 60 or step_s % 60:
        raise ValueError(f"step_s: {step_s} is not a number of whole minutes, in seconds")
    first = datetime.fromtimestamp(since.timestamp() // step_s * step_s, UTC)
    count = max(0, -int(-(until - first).total_seconds() // step_s))
    if count > POINTS:
        raise ValueError(f"step_s: {step_s} makes {count} points, {POINTS} is the most")
    points = {measure: [0.0] * count for measure in wanted}
    parameters = {
        "measures": sorted(points),
        "since": first,
        "until": until,
        "step_s": step_s,
        "service_id": service_id and str(service_id),
    }
    for row in tx.execute(_SERIES if step_s % HOUR_S else _HOURLY, parameters):
        points[row.measure][row.n] = row.value
    return Series(first, step_s, points)


_SUMS = text("""
    SELECT measure, sum(value) AS value FROM stats
    WHERE minute >= :since AND minute < :until
      AND measure = ANY(CAST(:measures AS text[]))
      AND (CAST(:service_id AS uuid) IS NULL OR service_id = CAST(:service_id AS uuid))
    GROUP BY 1
""")


def sums(
    tx: Connection,
    wanted: Collection[str],
    since: datetime,
    until: datetime,
    *,
    service_id: UUID | None = None,
) -> dict[str, float]:
    """How much there was of each measure between two moments, of one service or of all."""
    parameters = {
        "measures": sorted(wanted),
        "since": since,
        "until": until,
        "service_id": service_id and str(service_id),
    }
    found = {row.measure: row.value for row in tx.execute(_SUMS, parameters)}
    return {measure: found.get(measure, 0.0) for measure in wanted}


def quantiles(
    tx: Connection,
    latency: Latency,
    since: datetime,
    until: datetime,
    step_s: int,
    *,
    of: Sequence[float] = (0.5, 0.95),
    service_id: UUID | None = None,
) -> dict[float, list[float | None]]:
    """How long jobs took, step by step as `series` has them: p50 and p95, estimated; None where none ended."""
    found = series(tx, measures.intervals(latency), since, until, step_s, service_id=service_id)
    return {q: quantiles_of(found, latency, q) for q in of}


def quantiles_of(found: Series, latency: Latency, q: float) -> list[float | None]:
    """The same of a series that has the latency's intervals."""
    steps = zip(*(found.points[name] for name in measures.intervals(latency)), strict=True)
    return [measures.quantile(q, step) for step in steps]
