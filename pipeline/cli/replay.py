"""Callbacks that were kept, judged again: after a restore, or once the code that could not read them is mended."""

import json
from typing import Annotated, Any
from uuid import UUID

import typer

from pipeline import views
from pipeline.cli.common import AsJson, acting, err, folding_table, id_of, out, plain, runtime, time_of
from pipeline.errors import InvalidInput
from pipeline.lifecycle.replay import Judged, Judgements
from pipeline.store.callbacks import Wanted
from pipeline.store.tables import Verdict


def replay(
    callback: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Which; none: all that the options choose.")
    ] = None,
    *,
    verdict: Annotated[
        str | None,
        typer.Option(
            help=f"Those that got this verdict when they came: {', '.join(Verdict.ALL)}.",
            autocompletion=lambda: list(Verdict.ALL),
        ),
    ] = None,
    job: Annotated[str | None, typer.Option(help="Only those for this job.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME|AGE", help="Came then or later: 2026-01-31T12:00Z, or 6h.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME|AGE", help="Came before: a time, or an age.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what today's code makes of each; nothing changes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    Have callbacks that were kept judged again, by today's code: each moves its job if it brings news.

    It is as safe as the provider sending them again, and as fresh as they were then; twice is as good as once. Those
    that a replay has applied are chosen by their ids alone.
    """
    from pipeline.lifecycle import replay as judge  # noqa: PLC0415 - spares the other commands its imports

    rt = runtime()
    ids = [id_of(one, "callback") for one in callback or ()] or None
    if not (ids or verdict or job or since or until):
        raise InvalidInput("Say which callbacks: by their ids, --verdict, --job, --since or --until.")
    if verdict not in {None, *Verdict.ALL}:
        raise InvalidInput(f"--verdict: must be one of {', '.join(Verdict.ALL)}.")
    wanted = Wanted(
        ids=ids,
        verdict=verdict,
        job_id=id_of(job, "job") if job else None,
        since=time_of(rt, "--since", since),
        until=time_of(rt, "--until", until),
        unapplied=ids is None,
    )
    found: list[Judged] = []
    after: UUID | None = None

    def all_of_them(do: Any) -> None:
        nonlocal after
        while True:
            some: Judgements = do(rt, wanted, after=after)
            found.extend(some.all)
            if (after := some.next) is None:
                return
            if not as_json:
                err.print(f"{len(found):,} so far")

    if dry_run:
        all_of_them(judge.foretell)
    else:
        asked: dict[str, Any] = {
            "verdict": wanted.verdict,
            "job": job,
            "since": since,
            "until": until,
            "ids": len(ids) if ids else None,
        }
        with acting(rt, "callback.replay", ids[0] if ids and len(ids) == 1 else None, **asked):
            all_of_them(judge.replay)
    _print(Judgements(found, None), dry_run=dry_run, as_json=as_json)


def _print(judged: Judgements, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_view(one) for one in judged.all]))
        return
    if judged.different:
        table = folding_table("taken otherwise than when they came", "callback", "came", "then", "now", "job")
        for one in judged.different:
            then = f"{one.then}, replayed: {one.replayed}" if one.replayed else one.then
            cells = (then, one.now, one.job_id)
            table.add_row(str(one.id), f"{one.received_at:%Y-%m-%d %H:%M:%S}", *map(plain, cells))
        out.print(table)
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in judged.counts().items())
    err.print(f"{len(judged.all):,} {'would be replayed' if dry_run else 'replayed'}{f': {counts}' if counts else ''}")


def _view(one: Judged) -> dict[str, Any]:
    return {
        "id": str(one.id),
        "received_at": views.time(one.received_at),
        "job": one.job_id and str(one.job_id),
        "then": one.then,
        "replayed_before": one.replayed,
        "now": one.now,
        "differs": one.differs,
    }
