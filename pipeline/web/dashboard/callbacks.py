"""Callbacks: the inbox, each as it came and what became of it; replayed, or only foretold what that would do."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, request, url_for
from flask.typing import ResponseReturnValue

from pipeline.errors import FieldError, InvalidInput, UnknownPath
from pipeline.lifecycle import replay as again
from pipeline.lifecycle.hear import said
from pipeline.lifecycle.replay import Judgements
from pipeline.signatures import TOLERANCE_S
from pipeline.store import callbacks, reading
from pipeline.store.callbacks import Wanted
from pipeline.store.tables import Verdict
from pipeline.web.dashboard import outputs, page

bp = Blueprint("callbacks", __name__)

LIMIT = 50
SHOWN_BYTES = 64 * 1024
"""So much of a body stands on its page; the rest is in the download."""

MEANINGS: Mapping[str, str] = {
    Verdict.APPLIED: "It brought news, and moved its job.",
    Verdict.DUPLICATE: "It said what an earlier one had said: nothing moved.",
    Verdict.LATE: "Its job had gone another way, or on: nothing moved.",
    Verdict.STALE: f"More than {TOLERANCE_S} s lay between signature and receipt: not believed, but asked about.",
    Verdict.ORPHAN: "The token of its address is no attempt's of ours.",
    Verdict.SUSPICIOUS: "It is signed, but for another task than its address says: not believed, but asked about.",
    Verdict.UNREADABLE: "It is signed, but cannot be read as a prediction: its job was asked about.",
}
"""What each verdict says, in a line."""


@bp.get("/callbacks")
def show() -> ResponseReturnValue:
    """Show the newest that fit the filters."""
    wanted, filters = _wanted()
    before = request.args.get("before")
    with page.runtime().db.transaction() as tx:
        rows = callbacks.newest(tx, wanted, before=page.id_of(before) if before else None, at_most=LIMIT + 1)
    return page.show(
        "callbacks.html",
        rows=[(row, _status(row)) for row in rows[:LIMIT]],
        filters=filters,
        verdicts=Verdict.ALL,
        meanings=MEANINGS,
        before=before,
        more=url_for(".show", **filters, before=rows[LIMIT - 1].id) if len(rows) > LIMIT else None,
        first=url_for(".show", **filters) if before else None,
    )


@bp.get("/callbacks/<callback_id>")
def one(callback_id: str) -> ResponseReturnValue:
    """Show one, with all it brought."""
    row, withheld = _one(callback_id)
    prediction, wrong = said(row.body)
    stamp = row.headers.get("webhook-timestamp", "")
    stamped = int(stamp) if stamp.isascii() and stamp.isdigit() and len(stamp) <= 11 else None
    text, as_text = (outputs.WITHHELD, True) if withheld else shown(row.body)
    return page.show(
        "callback.html",
        row=row,
        prediction=prediction,
        wrong=wrong,
        meaning=MEANINGS[row.verdict],
        stamped=stamped is not None and datetime.fromtimestamp(stamped, UTC),
        lag_s=None if stamped is None else row.received_at.timestamp() - stamped,
        text=text,
        as_text=as_text,
        cut=len(row.body) > SHOWN_BYTES,
        withheld=withheld,
    )


@bp.get("/callbacks/<callback_id>/body")
def body(callback_id: str) -> ResponseReturnValue:
    """Give the body of one as a file, byte for byte."""
    row, withheld = _one(callback_id)
    if withheld:
        raise UnknownPath(outputs.WITHHELD)
    named = {"Content-Disposition": f'attachment; filename="callback-{row.id}"'}
    return Response(row.body, mimetype="application/octet-stream", headers=named)


@bp.post("/callbacks/<callback_id>/replay")
def replay(callback_id: str) -> ResponseReturnValue:
    """Have one judged again."""
    row, _ = _one(callback_id)
    with page.act("callback.replay", row.id):
        judged = again.replay(page.runtime(), Wanted(ids=[row.id]))
    return page.done(f"Replayed. {_told(judged)}")


@bp.get("/callbacks/dry-run")
def dry_run() -> ResponseReturnValue:
    """Say what today's code makes of a window; nothing changes."""
    rt = page.runtime()
    wanted, filters = _wanted(unapplied=True, since="1h" if not request.args else None)
    after = request.args.get("after")
    now = datetime.fromtimestamp(rt.unix_time(), UTC)
    judged = again.foretell(rt, wanted, after=page.id_of(after) if after else None)
    exact: dict[str, Any] = {
        **filters,
        "since": wanted.since and wanted.since.isoformat(),
        "until": (wanted.until or now).isoformat(),  # what comes meanwhile was not looked at
        "after": after,
    }
    return page.show(
        "callbacks_dry_run.html",
        judged=judged,
        filters=filters,
        verdicts=Verdict.ALL,
        meanings=MEANINGS,
        at_most=again.AT_MOST,
        asks={name: value for name, value in exact.items() if value},
        more=judged.next and url_for(".dry_run", **exact | {"after": judged.next}),
    )


@bp.post("/callbacks/replay")
def replay_all() -> ResponseReturnValue:
    """Have all of a window judged again, as many as are replayed at a time."""
    wanted, filters = _wanted(unapplied=True)
    if not filters:
        raise InvalidInput("Say which callbacks: by a verdict, a job, a task or a time.")
    after = request.form.get("after")
    with page.act("callback.replay", None, **filters) as entry:
        judged = again.replay(page.runtime(), wanted, after=page.id_of(after) if after else None)
        entry.target = f"{len(judged.all)} callbacks"
    more = " There are more: look at the next." if judged.next else ""
    return page.done(f"{len(judged.all):,} replayed. {_told(judged)}{more}")


def _wanted(*, unapplied: bool = False, since: str | None = None) -> tuple[Wanted, dict[str, Any]]:
    """What the filters say, and the filters themselves."""
    names = ("verdict", "job", "prediction", "since", "until")
    filters = {name: said for name in names if (said := page.words(name) or (since if name == "since" else None))}
    if filters.get("verdict", Verdict.APPLIED) not in Verdict.ALL:
        raise InvalidInput(errors=[FieldError("verdict", f"Must be one of {', '.join(Verdict.ALL)}.")])
    return (
        Wanted(
            verdict=filters.get("verdict"),
            job_id=page.id_in("job", filters.get("job")),
            prediction_id=filters.get("prediction"),
            since=page.time_in("since", filters.get("since")),
            until=page.time_in("until", filters.get("until")),
            unapplied=unapplied,
        ),
        filters,
    )


def _one(callback_id: str) -> tuple[Any, bool]:
    """One callback, and whether its body is kept from who asks."""
    with page.runtime().db.transaction() as tx:
        row = callbacks.one(tx, page.id_of(callback_id))
        job = reading.job(tx, row.job_id) if row is not None and row.job_id else None
    if row is None:
        raise UnknownPath("There is no such callback; what is old may have been pruned.")
    return row, outputs.withheld(job)


def _status(row: Any) -> str | None:
    """What a callback in a list says of its task; None when that cannot be read, or is too long to look."""
    prediction, _ = said(row.body) if row.body is not None else (None, "")
    return prediction.said if prediction else None


def _told(judged: Judgements) -> str:
    counts = judged.counts()
    if len(judged.all) == 1:
        (verdict,) = counts
        return f"Today it is {verdict}."
    return f"Today: {', '.join(f'{count:,} {verdict}' for verdict, count in counts.items())}." if counts else ""


def shown(body: bytes) -> tuple[str, bool]:
    """The beginning of a body as it stands on a page, and whether that is its text; else it is in hexadecimal."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return _hex(body[:SHOWN_BYTES]), False
    if all(char.isprintable() or char in "\n\t" for char in text):
        return text[:SHOWN_BYTES], True
    return _hex(body[:SHOWN_BYTES]), False


def _hex(body: bytes) -> str:
    """Sixteen bytes a line: where it begins, the bytes, and those that are printable ASCII."""
    lines = []
    for at in range(0, len(body), 16):
        some = body[at : at + 16]
        ascii_ = "".join(chr(one) if 0x20 <= one < 0x7F else "." for one in some)
        lines.append(f"{at:06x}  {some.hex(' '):<47}  {ascii_}")
    return "\n".join(lines)
