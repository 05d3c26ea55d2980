"""
Celery's door: task names and the beat schedule.

A task names no row. It wakes this process's duties and returns, so it may run twice, or beside its twin, and
holds a pool slot for a moment only. Nothing here uses Celery's ETA, countdown, retry or results.
"""

import logging
import time
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import Reject

from pipeline import settings, telemetry, tracing
from pipeline.broker import make_celery
from pipeline.deployment import WORKER_POOL
from pipeline.errors import ConfigError, FieldError, PipelineError, Unavailable
from pipeline.hosting import Host

if TYPE_CHECKING:
    from pipeline.runtime import Runtime
    from pipeline.worker import Worker

log = telemetry.get(__name__)


try:
    _settings = settings.load()
except ConfigError as error:
    raise SystemExit(f"pipeline: {error.detail}") from None  # Celery would bury it under its own traceback
celery = make_celery(_settings.broker_url)
celery.conf.worker_consumer = "pipeline.consumer:Consumer"


def worker() -> "Worker":
    """Give the worker of this process."""
    return _host.worker()


def _worker() -> "Worker":
    from pipeline.worker import Worker  # noqa: PLC0415 - half of all that is loaded, and beat reads this page too

    return Worker(_runtime())


def _runtime() -> "Runtime":
    from pipeline.runtime import Runtime  # noqa: PLC0415 - beat never asks the database
    from pipeline.store.database import Database  # noqa: PLC0415

    if _settings.otel_exporter_otlp_endpoint:
        tracing.begin("worker")
    return Runtime(_settings, Database(_settings.database_url, name="worker", pool_size=WORKER_POOL))


_host = Host(_worker)
celery.steps["worker"].add(_host.take_sigterm())


@celery.task(name="pipeline.admit")
def admit() -> None:
    """Check and price what was queued without that."""
    worker().wake("admit")


@celery.task(name="pipeline.submit")
def submit() -> None:
    """Claim and POST what is due."""
    worker().wake("submit")


@celery.task(name="pipeline.poll")
def poll() -> None:
    """Ask about what is due."""
    worker().wake("poll")


@celery.task(name="pipeline.reconcile")
def reconcile() -> None:
    """Look for lost answers."""
    worker().wake("reconcile")


@celery.task(name="pipeline.archive")
def archive() -> None:
    """Copy outputs to our own storage; what was just made also left a place at the provider."""
    worker().wake("archive", "submit")


@celery.task(name="pipeline.notify")
def notify() -> None:
    """Tell what is due to be told."""
    worker().wake("notify")


@celery.task(name="pipeline.secrets")
def secrets() -> None:
    """Fetch the webhook secret again: a callback's signature matched none."""
    worker().wake("secrets")


@celery.task(name="pipeline.models")
def models() -> None:
    """Read the provider's catalogue of models, if it is time to."""
    worker().wake("models")


@celery.task(name="pipeline.sweep")
def sweep() -> None:
    """Run one sweep: beat says so."""
    worker().hear_beat()


@celery.task(name="pipeline.enqueue", bind=True, typing=False)
def enqueue(self: Any, /, *words: Any, **named: Any) -> None:  # whatever comes: what fits no signature would be lost
    """
    Accept a job from another app on the broker.

    `app.send_task("pipeline.enqueue", queue="pipeline", kwargs={"service": "shop", "input": {"prompt": "…"}})`.
    Beside service the keywords are those of `POST /v1/jobs`, and `idempotency_key`: without one the task's id is the
    key, so a message delivered twice is one job. What cannot become a job is recorded as a refusal, see `messages`.
    While the database is away the message goes back to the queue.
    """
    try:
        worker().take(self.request.id, words, named)
    except Unavailable:
        time.sleep(1.0)  # or the same message would come and go a thousand times a second
        raise Reject("the database is away", requeue=True) from None


@signals.task_failure.connect
def _never_begun(sender: Any, task_id: Any, args: Any, kwargs: Any, **_: Any) -> None:
    """A call that Python itself refuses: one with an argument named self."""
    if sender.name == enqueue.name:
        worker().take(task_id, args, kwargs)


@signals.task_unknown.connect
def _no_such_task(message: Any, name: Any, **_: Any) -> None:
    """A misspelt name, in our queue."""
    _drop("unknown_task", message, FieldError("task", f"There is no task of that name: {str(name)[:200]}."))


@signals.task_rejected.connect
def _no_task_at_all(message: Any, **_: Any) -> None:
    """Celery cannot use it: it names no task, or is not JSON."""
    _drop("malformed_request", message, FieldError("", "Is no call of a task in JSON."))


def _drop(code: str, message: Any, problem: FieldError) -> None:
    """Record what never reached a task. It is acknowledged by now: while the database is away, the log alone tells."""
    from pipeline.lifecycle import messages  # noqa: PLC0415 - for workers alone

    headers = message.headers if isinstance(message.headers, dict) else {}
    rt = _runtime()  # Celery says so in the process that hears the broker, which may have no worker of ours
    try:
        messages.drop(rt, headers.get("id"), code, problem, bytes(message.body or b""))
    except PipelineError:
        log.error("message.refused", code=code, recorded=False)
    finally:
        rt.db.close()


@signals.setup_logging.connect
def _log_our_way(**_: Any) -> None:
    telemetry.configure(_settings.log_level)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_contents)


def _without_contents(record: logging.LogRecord) -> bool:
    """Celery logs a message it cannot use in full, and an exception with its words: both may hold a prompt."""
    if "message body" in str(record.msg):
        record.msg, record.args = "A message that is no task of ours was refused and dropped.", ()
    elif isinstance(record.args, dict) and "exc" in record.args:
        error = str(record.args["exc"]).partition("(")[0]
        record.args = {**record.args, "exc": error, "traceback": ""}
    return True


@signals.worker_init.connect
def _ask_for_the_key(**_: Any) -> None:
    """Without one, do not begin; nor with a screen for prompts that is none."""
    import pipeline.worker  # noqa: F401, PLC0415 - before the children of a pool are forked, which share it then

    try:
        rt = _runtime()
        rt.provider()
        rt.hook  # noqa: B018 - loads it
    except ConfigError as error:
        raise SystemExit(f"pipeline: {error.detail}") from None
