"""One job: its whole story, and what can be done with it."""

import json
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request, url_for
from flask.typing import ResponseReturnValue

from pipeline import standing
from pipeline.addresses import shown
from pipeline.errors import FieldError, InvalidInput, UnknownJob
from pipeline.jobs import FINAL, IN_FLIGHT, State, may_be_retried
from pipeline.lifecycle import again, decide, evidence, redeliver
from pipeline.store import audit, deliveries, ledger, reading, reviews, services
from pipeline.store.database import Transaction
from pipeline.store.deliveries import Wanted
from pipeline.store.outbox import Audience, Told
from pipeline.store.services import Service
from pipeline.web.dashboard import access, outputs, page, timeline
from pipeline.web.dashboard.timeline import Story

bp = Blueprint("job", __name__, url_prefix="/jobs/<job_id>")

LETTERS = 50
BODY_BYTES = 16 * 1024
ACTS = 100
LONGEST_TASK = 200


@bp.get("")
def show(job_id: str) -> ResponseReturnValue:
    """Show one job."""
    with page.runtime().db.transaction() as tx:
        row = _row(tx, job_id)
        around = reading.around(tx, row.service_id)
        kept = reviews.outputs(tx, row.id)
        key = reading.key(tx, row.id)
        charges = ledger.of_job(tx, row.id)
        story = _story(tx, row)
        owner = services.by_id(tx, row.service_id)
    found = outputs.of(row, kept)
    return page.show(
        "job.html",
        job=row,
        standing=standing.of(row, around),
        in_flight=row.state in IN_FLIGHT,
        may_cancel=row.state == State.QUEUED,
        may_retry=may_be_retried(row.state, looked_after=row.due_at is not None),
        replayable=_replayable(
            story, addressed=bool(row.callback_url or row.callback_task or (owner and owner.callback_url))
        ),
        candidates=_candidates(story) if row.state == State.UNKNOWN else (),
        refresh_s=_refresh_s(row, found, story),
        outputs=found,
        key=key,
        callback_url=row.callback_url and shown(row.callback_url),
        paid=sum(one.prediction_id is not None for one in charges),
        doubtful=0 if row.state == State.SUBMITTING else sum(one.prediction_id is None for one in charges),
        retries=[event.data.get("retry") for event in story.events if event.kind == "job.retried"],
        prompt=row.input.get("prompt"),
        options={name: value for name, value in {**row.input, **row.options}.items() if name != "prompt"},
        timings=_timings(row),
        timeline=timeline.tell(story),
        more_letters=len(story.letters) == LETTERS,
    )


@bp.get("/evidence.json")
def download_evidence(job_id: str) -> Response:
    """Everything that is known of the job, as a file; for viewers what its caller would get."""
    rt = page.runtime()
    with rt.db.transaction() as tx:
        row = _row(tx, job_id)
        whose = services.operators_own(tx) if access.person().may_act else Service(row.service_id, row.service, False)
    found = evidence.of_job(rt, whose, row.id)
    answer = Response(json.dumps(found, indent=2), content_type="application/json")
    answer.headers["Content-Disposition"] = f'attachment; filename="job-{row.id}.json"'
    return answer


@bp.post("/cancel")
def cancel(job_id: str) -> ResponseReturnValue:
    """Take a queued job back."""
    known, operator = _known(job_id)
    with page.act("job.cancel", known):
        moved = again.cancel(page.runtime(), operator, known)
    return page.done("The job is cancelled." if moved else "The job was cancelled before.", to=_here(known))


@bp.post("/retry")
def retry(job_id: str) -> ResponseReturnValue:
    """Hand in a job like it. A form that is sent twice makes one: its key names how the job stood when it was shown."""
    known, operator = _known(job_id)
    seen = page.number("seen", 0, 10**9 - 1, 0)
    with page.act("job.retry", known):
        new_id, made = again.retry(page.runtime(), operator, known, key=f"dashboard-{known}-{seen}")
    said = "Handed in again: this is the new job." if made else "It was handed in again before: this is that job."
    return page.done(said, to=_here(new_id))


@bp.post("/decide")
def say_what_became_of_it(job_id: str) -> ResponseReturnValue:
    """Decide about a job that nothing could prove: `adopt` with its `task`, `resubmit`, or `give_up`."""
    rt, (known, _) = page.runtime(), _known(job_id)
    decision, task = request.form.get("decision", ""), request.form.get("task", "").strip()
    if decision == "adopt":
        if not task or len(task) > LONGEST_TASK or not task.isprintable():
            raise InvalidInput("Name the task that is this job's.", errors=[FieldError("task", "Must be a task's id.")])
        with page.act("job.decide", known, decision=decision, task=task):
            decide.adopt(rt, known, task)
        return page.done("The task is this job's now.", to=_here(known))
    if decision == "resubmit":
        with page.act("job.decide", known, decision=decision):
            decide.resubmit(rt, known)
        return page.done("The job is in the queue again.", to=_here(known))
    if decision == "give_up":
        with page.act("job.decide", known, decision=decision):
            decide.give_up(rt, known)
        return page.done("The job was given up: it has failed.", to=_here(known))
    raise InvalidInput("Nothing was decided.", errors=[FieldError("decision", "Choose one of the three.")])


@bp.post("/replay")
def replay(job_id: str) -> ResponseReturnValue:
    """Tell its caller once more whatever was told, or given up."""
    rt, (known, _) = page.runtime(), _known(job_id)
    with page.act("notification.replay", known):
        sent = redeliver.redeliver(rt, Wanted(job_id=known, audience=Audience.SERVICE)).count
    what = "1 notification is" if sent == 1 else f"{sent} notifications are"
    return page.done(f"{what} sent again, each under its own id.", to=_here(known))


def _row(tx: Transaction, job_id: str) -> Any:
    row = reading.job(tx, page.id_of(job_id, UnknownJob))
    if row is None:
        raise UnknownJob
    return row


def _known(job_id: str) -> tuple[UUID, Service]:
    """The job that is meant, and in whose name something is done with it."""
    with page.runtime().db.transaction() as tx:
        return _row(tx, job_id).id, services.operators_own(tx)


def _here(job_id: UUID) -> str:
    return url_for("dashboard.job.show", job_id=job_id)


def _story(tx: Transaction, row: Any) -> Story:
    planned = reading.notifications(tx, row.id)
    return Story(
        events=reading.events(tx, row.id),
        attempts=reading.attempts(tx, row.id),
        letters=reading.letters(tx, row.id, at_most=LETTERS, body_bytes=BODY_BYTES),
        notifications=planned,
        deliveries=deliveries.of(tx, [one.id for one in planned]),
        acts=audit.newest(tx, target=str(row.id), at_most=ACTS),
        withheld=outputs.withheld(row),
    )


def _candidates(story: Story) -> list[str]:
    """The tasks that the last look at the provider's list could not tell from this job's."""
    looks = [event.data for event in story.events if event.kind == "attempt.looked_for"]
    return [str(one) for one in looks[-1].get("candidates", ())] if looks else []


def _replayable(story: Story, *, addressed: bool) -> bool:
    """Whether its caller was told of anything, or given up, or has an address only now."""
    ended = [one for one in story.notifications if one.audience == Audience.SERVICE and one.due_at is None]
    return any(addressed or one.state != Told.UNADDRESSED for one in ended)


def _refresh_s(row: Any, found: list[outputs.Output], story: Story) -> int | None:
    """How often the page is asked for again; None: nothing more is to come."""
    if row.state not in FINAL and row.due_at is not None:
        return 2
    if any(one.due_at for one in found):
        return 2
    return 5 if any(one.state == Told.PENDING for one in story.notifications) else None


def _timings(row: Any) -> list[tuple[str, float | None]]:
    """How long it took, in seconds."""

    def between(start: Any, end: Any) -> float | None:
        return max(0.0, (end - start).total_seconds()) if start and end else None

    return [
        ("In the queue", between(row.run_at, row.submitted_at)),
        ("At the provider", between(row.submitted_at, row.finished_at)),
        ("Of that, the model", None if row.inference_ms is None else row.inference_ms / 1000),
        ("In all", between(row.created_at, row.finished_at)),
    ]
