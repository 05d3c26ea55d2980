"""Hear: what a signed callback says, and what may be believed of it."""

from collections.abc import Mapping

from pipeline import telemetry
from pipeline.errors import BadSignature, MalformedRequest
from pipeline.predictions import Prediction, Status, Unreadable, read, storable
from pipeline.runtime import Runtime
from pipeline.signatures import Freshness, verify
from pipeline.store import inbox
from pipeline.store.database import Transaction
from pipeline.store.inbox import Call, Delivery, Heard
from pipeline.store.tables import Verdict

REFUSED = telemetry.Tally("callback.refused")
"""Forgeries are counted, not stored: a stranger must not be able to fill the database, or the log."""

SHORT_BYTES = 64 * 1024
"""Longer bodies are not taken together with others: many of them would take much memory."""

HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature", "content-type", "user-agent")
"""Those of a callback that are looked at, and kept."""


def hear(rt: Runtime, token: str, headers: Mapping[str, str], body: bytes) -> Heard:
    """
    Take one callback: verify it, keep it, and move its job if it brings news. Mostly that is one statement, which it
    may share with others that come at the same time; where more has to be looked at, a short transaction.

    Raises:
        BadSignature: The provider did not sign it; nothing is stored.
        MalformedRequest: It is authentic but unreadable; it is kept, and its job is asked about.
        Unavailable: The database is away; the provider will try again.
    """
    try:
        freshness = verify(rt.secrets(), headers, body, now=rt.unix_time())
    except BadSignature as error:
        REFUSED.count(well_formed=error.well_formed)
        if error.well_formed and rt.secrets.may_be_rotated():
            rt.nudge("secrets")  # a worker fetches it, at most once a minute over all processes
        raise
    delivery = Delivery(token, _kept(headers), body)
    prediction, wrong = said(body)
    heard = None
    if prediction and freshness is Freshness.FRESH and len(body) <= SHORT_BYTES:
        heard = rt.callbacks.do(Call(delivery, prediction))
    if heard is None:
        with rt.db.transaction() as tx:
            heard = take(rt, tx, delivery, prediction, freshness)
    job = {"job_id": str(heard.job_id), "before": heard.before} if heard.job_id else {}
    telemetry.bind(verdict=heard.verdict, **job)  # for the request's own line: there is no other
    wake(rt, heard, prediction)
    if wrong:
        raise MalformedRequest(f"The callback is authentic but unreadable: {wrong}")
    return heard


def said(body: bytes) -> tuple[Prediction | None, str]:
    """What a callback says; or why it cannot be read."""
    try:
        return read(body), ""
    except Unreadable as error:
        return None, str(error)


def take(
    rt: Runtime, tx: Transaction, delivery: Delivery, prediction: Prediction | None, freshness: Freshness
) -> Heard:
    """Have an authentic callback do what it may, whether it comes just now or is replayed. `wake` after the commit."""
    if prediction is None:
        return inbox.file(tx, delivery, Verdict.UNREADABLE, prediction_id=None)
    if freshness is Freshness.STALE:
        return inbox.file(tx, delivery, Verdict.STALE, prediction_id=prediction.id)
    heard = inbox.hear(tx, delivery, prediction, poll_s=rt.settings.first_poll_s)
    if heard.verdict == Verdict.SUSPICIOUS and heard.attempt_id:
        inbox.look_now(tx, heard.attempt_id)
    return heard


def wake(rt: Runtime, heard: Heard, prediction: Prediction | None) -> None:
    """Wake whoever has to do with what became of a callback."""
    completed = prediction is not None and prediction.status is Status.COMPLETED
    if heard.verdict == Verdict.APPLIED:  # a place at the provider came free, too: whoever archives looks for that
        files = completed and rt.settings.archive_url != "off"
        rt.nudge("archive" if files else "submit", *(["notify"] if heard.tell else ()))
    elif heard.verdict in {Verdict.STALE, Verdict.SUSPICIOUS, Verdict.UNREADABLE}:
        rt.nudge("poll", "reconcile")


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    lowered = {name.lower(): value for name, value in headers.items()}
    return {name: storable(lowered[name])[:500] for name in HEADERS if name in lowered}
