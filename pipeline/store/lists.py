"""
Lists of jobs, newest first: whatever the filter, each page is read off an index, and nothing is counted.

What leads is one index whose order is the list's: the jobs of one service in one state (and of one model), or the
labels of one value. Where there are several services or states, each is probed by itself and the probes are merged.
Further filters are asked of the rows; so a page may end before it is full, with a place to go on from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.jobs import State
from pipeline.store import assets
from pipeline.store.plans import READ_IN_ORDER

AT_MOST = 5000
"""How many entries of the leading index one page looks at."""

_NO_LIMIT = 2**31 - 1
_OLDEST, _NEWEST = UUID(int=0), UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs: of these services (None: of all), in this state, of this model, with this metadata."""

    service_ids: Sequence[UUID] | None = None
    state: State | None = None
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    held: bool = False  # only those that wait for a person


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs as `views.job` reads them, and the id that the next page begins after; None: there is no more."""

    rows: Sequence[Any]
    next: UUID | None


@dataclass(frozen=True, slots=True)
class _Lead:
    """One index to lead the list: the ids of service `s` in order, and which of the filters it answers."""

    sql: str
    answers: frozenset[str]


# Bounds of a whole row of an index, and its order, where equalities would do: so no other index can serve, whatever the
# planner expects. (It would read all jobs in a state to find those of a model that it takes for a common one.) Only
# sorting what another index had, or half in order, could: so that is forbidden.
_PROBE = """
    SELECT {id} AS id FROM {table}
    WHERE ({columns}, {id}) < ({values}, :after) AND ({columns}, {id}) >= ({values}, :oldest)
    ORDER BY {order}, {id} DESC LIMIT :depth
"""


def _probe(table: str, id_column: str, **equal: str) -> str:
    """The newest ids of service `s` by the index whose columns these are: what each must equal, as SQL."""
    return _PROBE.format(
        table=table,
        id=id_column,
        columns=", ".join(["service_id", *equal]),
        values=", ".join(["s.id", *equal.values()]),
        order=", ".join(f"{name} DESC" for name in ["service_id", *equal]),
    )


_ALL = _Lead("SELECT id FROM jobs WHERE id < :after ORDER BY id DESC LIMIT :depth", frozenset())

_COLUMNS = f"""
    j.id, j.state, coalesce(nullif(j.model, ''), (SELECT default_model FROM account)) AS model,
    j.input, j.options, j.metadata AS caller_data, j.outputs, j.error,
    (SELECT name FROM services WHERE id = j.service_id) AS service, j.priority, j.run_at, j.due_at, j.deadline_at,
    j.attempts, j.prediction_id, j.settled_by, j.inference_ms, j.price, j.retry_of, j.held_at, j.held_reason,
    j.created_at, j.submitted_at, j.finished_at, {assets.SHOWN.format(job_id="j.id")} AS assets
"""


def page(tx: Connection, wanted: Wanted, *, after: UUID | None = None, limit: int = 20, at_most: int = AT_MOST) -> Page:
    """The newest jobs that are *wanted*, older than *after*: at most *limit*, and fewer where few of *at_most* fit."""
    tx.execute(READ_IN_ORDER)
    service_ids = wanted.service_ids
    leads = _leads(wanted)
    if service_ids is None and leads[0] is not _ALL:
        service_ids = tx.execute(text("SELECT id FROM services")).scalars().all()
    filters = _filters(wanted)
    values = {
        "services": [str(one) for one in service_ids or ()],
        "after": after or _NEWEST,
        "oldest": _OLDEST,
        "state": wanted.state,
        "model": wanted.model,
        **{f"name_{n}": name for n, name in enumerate(wanted.metadata)},
        **{f"value_{n}": value for n, value in enumerate(wanted.metadata.values())},
    }
    depth = limit + 1
    lead, reach = leads[0], None
    if filters.keys() - lead.answers:
        depth = max(depth, at_most // max(1, len(service_ids or ())))
        reaches = [_reach(tx, one, values, depth) for one in leads]
        reach, lead = min(zip(reaches, leads, strict=True), key=lambda both: both[0] or _OLDEST)
        # What has come since then is newer: it may not push off, onto no page, what was counted as this one's.
        values |= {"oldest": reach or _OLDEST}
        depth = _NO_LIMIT
    left = " AND ".join(sql for name, sql in filters.items() if name not in lead.answers)
    rows = tx.execute(_statement(lead, left), {**values, "depth": depth, "limit": limit + 1, "reach": reach}).all()
    if len(rows) > limit:
        return Page(rows[:limit], rows[limit - 1].id)
    return Page(rows, reach)


def _leads(wanted: Wanted) -> list[_Lead]:
    """The indexes that can lead this list; at least one."""
    found = []
    if wanted.state or wanted.model or not wanted.metadata:
        if wanted.service_ids is None and not (wanted.state or wanted.model or wanted.metadata):
            return [_ALL]
        states = [wanted.state] if wanted.state else list(State)
        of_model = {"model": ":model"} if wanted.model else {}
        probes = [f"({_probe('jobs', 'id', **of_model, state=repr(str(state)))})" for state in states]
        merged = f"SELECT id FROM ({' UNION ALL '.join(probes)}) u ORDER BY id DESC LIMIT :depth"
        found.append(_Lead(merged, frozenset({"state", "model"})))
    for n in range(len(wanted.metadata)):
        probe = _probe("labels", "job_id", name=f":name_{n}", value=f":value_{n}")
        found.append(_Lead(probe, frozenset({f"label {n}"})))
    return found


def _filters(wanted: Wanted) -> dict[str, str]:
    """What is asked of a row, by the name under which an index may answer it."""
    found = {"state": "j.state = :state"} if wanted.state else {}
    if wanted.model:
        found["model"] = "j.model = :model"
    if wanted.held:
        found["held"] = "j.held_at IS NOT NULL"
    return found | {f"label {n}": f"j.metadata ->> :name_{n} = :value_{n}" for n in range(len(wanted.metadata))}


def _found(lead: _Lead) -> str:
    """The first ids of each service, by an index."""
    if lead is _ALL:
        return f"SELECT id, NULL::uuid AS service_id FROM ({lead.sql}) a"
    services = "unnest(CAST(:services AS uuid[])) AS s(id)"
    return f"SELECT p.id, s.id AS service_id FROM {services} CROSS JOIN LATERAL ({lead.sql}) p"


def _reach(tx: Connection, lead: _Lead, values: Mapping[str, Any], depth: int) -> UUID | None:
    """
    How far down the list so many entries lead; None: to its end.

    Beyond it some service's entries were cut off, so nothing that is older may be shown.
    """
    statement = text(f"""
        WITH found AS MATERIALIZED ({_found(lead)})
        SELECT (array_agg(id ORDER BY id))[1] AS last FROM found  -- min() of ids is younger than some Postgres
        GROUP BY service_id HAVING count(*) = :depth
        ORDER BY last DESC LIMIT 1
    """)
    found: UUID | None = tx.execute(statement, {**values, "depth": depth}).scalar()
    return found


def _statement(lead: _Lead, left: str) -> Any:
    """One page. Each row is fetched by its id, so that no guess of the planner's about a filter reads a table."""
    asked = f" AND {left}" if left else ""
    first = "" if left else "ORDER BY id DESC LIMIT :limit"
    return text(f"""
        WITH found AS MATERIALIZED (
            SELECT id FROM ({_found(lead)}) f WHERE id >= coalesce(CAST(:reach AS uuid), id) {first}
        )
        SELECT r.* FROM (SELECT id FROM found ORDER BY id DESC) f CROSS JOIN LATERAL (
            SELECT {_COLUMNS} FROM jobs j WHERE j.id = f.id{asked} LIMIT 1
        ) r
        ORDER BY f.id DESC LIMIT :limit
    """)
