"""The gallery: the newest pictures, each leading to its job."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from flask import Blueprint, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import Connection

from pipeline.jobs import State
from pipeline.store import lists, services
from pipeline.store.lists import Wanted
from pipeline.web.dashboard import outputs, page, words
from pipeline.web.dashboard.outputs import Output

bp = Blueprint("gallery", __name__)

JOBS = 40
"""Jobs of one look."""

LOOKS = 3
"""How often one page looks for jobs, where few of them have anything to show."""

SHOWN = frozenset({"image", "video", "audio", "text", "file"})
OF_A_JOB = 8
"""Outputs of one job that are shown; the job has them all."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One output in the grid; `more` of its job are left out."""

    job: Any
    output: Output
    caption: str
    more: int = 0


@bp.get("/gallery")
def show() -> ResponseReturnValue:
    """Show the newest outputs that we have, of all services or of one."""
    before, name = request.args.get("before"), request.args.get("service", "")
    errors = {}
    tiles: list[Tile] = []
    after = page.id_of(before) if before else None
    with page.runtime().db.transaction() as tx:
        known = {one.name: one.id for one in services.everyone(tx)}
        if name and name not in known:
            errors["service"] = "There is no service of this name."
            after = None
        else:
            tiles, after = _tiles(tx, [known[name]] if name else None, after)
    return page.answer(
        "gallery.html",
        422 if errors else 200,
        tiles=tiles,
        services=list(known),
        service=name,
        errors=errors,
        more=url_for(".show", service=name or None, before=after) if after else None,
        first=url_for(".show", service=name or None) if before else None,
    )


def _tiles(tx: Connection, service_ids: list[UUID] | None, after: UUID | None) -> tuple[list[Tile], UUID | None]:
    """What completed jobs have to show, the newest jobs first, and where to go on: read off the index of the lists."""
    found: list[Tile] = []
    for _ in range(LOOKS):
        chosen = lists.page(tx, Wanted(service_ids, State.COMPLETED), after=after, limit=JOBS)
        for row in chosen.rows:
            found += _of_job(row)
        after = chosen.next
        if after is None or len(found) >= JOBS // 2:
            break
    return found, after


def _of_job(row: Any) -> list[Tile]:
    fit = [one for one in outputs.of(row) if one.kind in SHOWN]
    caption = words.beginning(row.input.get("prompt")) or row.model
    tiles = [Tile(row, one, caption) for one in fit[:OF_A_JOB]]
    if len(fit) > OF_A_JOB:
        tiles[-1] = Tile(row, fit[OF_A_JOB - 1], caption, more=len(fit) - OF_A_JOB)
    return tiles
