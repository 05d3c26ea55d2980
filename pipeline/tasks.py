"""
Celery's door: task names and the beat schedule.

A task names no row. It wakes this process's duties and returns, so it may run twice, or beside its twin, and
holds a pool slot for a moment only. Nothing here uses Celery's ETA, countdown, retry or results.
"""

import os
import signal
import threading
from typing import Any

from celery import Celery, signals
from celery.exceptions import Reject

from pipeline import runtime, settings, telemetry
from pipeline.errors import PipelineError, Unavailable
from pipeline.lifecycle.accept import accept, check
from pipeline.nudges import QUEUE
from pipeline.store import services
from pipeline.store.database import Database
from pipeline.sweep import EVERY_S
from pipeline.worker import Worker

log = telemetry.get(__name__)


def make_celery(broker_url: str) -> Celery:
    """A Celery app for this broker: JSON only, no results, one queue."""
    app = Celery("pipeline", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_default_queue=QUEUE,
        task_acks_late=True,  # an enqueue is acknowledged once its row is committed
        worker_prefetch_multiplier=8,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,  # nothing of ours listens to it, and it costs a queue per worker
        broker_connection_timeout=2,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=2,
        broker_transport_options={"socket_connect_timeout": 2, "socket_keepalive": True, "health_check_interval": 10}
        if broker_url.startswith("redis")
        else {},
        beat_max_loop_interval=EVERY_S,
        beat_schedule={
            "sweep": {
                "task": "pipeline.sweep",
                "schedule": EVERY_S,
                "options": {"queue": QUEUE, "expires": EVERY_S, "ignore_result": True, "retry": False},
            }
        },
    )
    return app


_settings = settings.load()
celery = make_celery(_settings.broker_url)

_worker: Worker | None = None
_starting = threading.Lock()


def worker() -> Worker:
    """This process's worker, built on first use, so that each forked child has its own."""
    global _worker  # noqa: PLW0603 - one per process is the point
    with _starting:
        if _worker is None or _owner != os.getpid():
            _worker = _make_worker()
        return _worker


def _make_worker() -> Worker:
    global _owner  # noqa: PLW0603
    _owner = os.getpid()
    made = Worker(runtime.Runtime(_settings, Database(_settings.database_url, name="worker")))
    made.start()
    return made


_owner = os.getpid()


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


@celery.task(name="pipeline.secrets")
def secrets() -> None:
    """Fetch the webhook secret again: a callback's signature matched none."""
    worker().wake("secrets")


@celery.task(name="pipeline.sweep")
def sweep() -> None:
    """Run one sweep."""
    worker().sweep()


@celery.task(name="pipeline.enqueue", bind=True)
def enqueue(self: Any, /, service: str = "", idempotency_key: str | None = None, **request: Any) -> None:
    """
    Accept a job from another app on the broker.

    `app.send_task("pipeline.enqueue", queue="pipeline", kwargs={"service": "shop", "input": {"prompt": "…"}})`.
    Without an idempotency key the task's id is the key, so a message delivered twice is one job. While the
    database is away the message goes back to the queue.
    """
    rt = worker().rt
    try:
        with rt.db.transaction() as tx:
            caller = services.by_name(tx, service) if isinstance(service, str) else None
        if caller is None:
            log.error("enqueue.refused", task_id=self.request.id, code="unknown_service")
            return
        checked = check(request, default_model=rt.settings.default_model)
        accept(rt, caller, checked, key=idempotency_key or self.request.id)
    except Unavailable:
        raise Reject("the database is away", requeue=True) from None
    except PipelineError as error:
        fields = [problem.field for problem in error.errors]
        log.error("enqueue.refused", task_id=self.request.id, code=error.code, service=service, fields=fields)


@signals.setup_logging.connect
def _log_our_way(**_: Any) -> None:
    telemetry.configure(_settings.log_level)


@signals.celeryd_init.connect
def _check_before_start(**_: Any) -> None:
    runtime.Runtime(_settings, Database(_settings.database_url, name="worker")).provider()


@signals.worker_ready.connect
def _start_with_the_process(sender: Any, **_: Any) -> None:
    if "prefork" not in str(sender.pool_cls if hasattr(sender, "pool_cls") else type(sender.pool)):
        threading.Thread(target=worker, name="start", daemon=True).start()


@signals.worker_process_init.connect
def _start_in_the_child(**_: Any) -> None:
    def stop(*_: Any) -> None:
        _stop()
        os._exit(0)  # the pool's own loop must not begin another task

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=worker, name="start", daemon=True).start()


@signals.worker_shutting_down.connect
def _stop_beginning(**_: Any) -> None:
    threading.Thread(target=_stop, name="stop", daemon=True).start()


@signals.worker_shutdown.connect
@signals.worker_process_shutdown.connect
def _stop_for_good(**_: Any) -> None:
    _stop()


def _stop() -> None:
    if _worker is not None and _owner == os.getpid():
        _worker.stop()
