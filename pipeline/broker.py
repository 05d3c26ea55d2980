"""The Celery app: JSON only, no results, one queue of our own."""

from celery import Celery
from kombu.connection import Connection

QUEUE = "pipeline"
SWEEP_S = 5.0
"""How often beat has some worker sweep."""


def make_celery(broker_url: str) -> Celery:
    """A Celery app for this broker. It has no ETA, countdown, retry or result in use: those wait in Postgres."""
    app = Celery("pipeline", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_default_queue=QUEUE,
        task_acks_late=True,  # an enqueue is acknowledged once its row is committed
        task_reject_on_worker_lost=True,  # a process that is killed takes no message with it
        worker_prefetch_multiplier=8,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,  # nothing of ours listens to it, and it costs a queue per worker
        broker_connection_timeout=2,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=2,
        broker_transport_options=(
            {
                "visibility_timeout": 60,  # a message that a killed worker had is delivered again; each may come twice
                "socket_connect_timeout": 2,
                "socket_keepalive": True,
                "health_check_interval": 10,
            }
            if broker_url.startswith("redis")
            else {}
        ),
        beat_max_loop_interval=SWEEP_S,
        beat_schedule={
            "sweep": {
                "task": "pipeline.sweep",
                "schedule": SWEEP_S,
                "options": {"queue": QUEUE, "expires": SWEEP_S, "ignore_result": True, "retry": False},
            }
        },
    )
    return app


def impatient(broker_url: str, timeout_s: float, *, confirmed: bool = False) -> Connection:
    """A connection that fails after *timeout_s* seconds; *confirmed*: RabbitMQ is to say that it has each message."""
    timeouts: dict[str, object] = (
        {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
        if broker_url.startswith("redis")
        else {"read_timeout": timeout_s, "write_timeout": timeout_s, "confirm_publish": confirmed}
    )
    return Connection(  # type: ignore[no-untyped-call]
        broker_url, connect_timeout=timeout_s, transport_options=timeouts
    )
