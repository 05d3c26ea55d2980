"""Celery's consumer, made proof against messages that are no tasks: one of them must not end the worker."""

from typing import Any

from celery import signals
from celery.worker import consumer

_MISSHAPEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What Celery 5.7 stumbles over when a body or a header is not of the shape it expects."""


class Consumer(consumer.Consumer):  # type: ignore[misc]  # it has no types
    """
    Celery's, with two differences.

    A misshapen body, such as a bare text in JSON, is refused as other invalid messages are. Celery's own ends the
    worker, which meets the same message again when it is back. And what cannot be decoded is announced, too, by the
    signal `task_rejected`.
    """

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Give what is called with each message."""
        handle = super().create_task_handler(*args, **kwargs)

        def handler(message: Any) -> None:
            try:
                _look_at(message)
                handle(message)
            except _MISSHAPEN as error:
                if not message.acknowledged:
                    self.on_invalid_task(None, message, error)

        return handler

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Acknowledge what is not JSON."""
        super().on_decode_error(message, exc)
        signals.task_rejected.send(sender=self, message=message, exc=exc)


def _look_at(message: Any) -> None:
    """Raise one of the above unless it is what a call looks like: [arguments, keyword arguments, callbacks]."""
    try:
        payload = message.payload
    except Exception:  # it cannot be decoded: Celery says so itself
        return
    if isinstance(payload, dict) and "args" in payload:  # of Celery 3
        return
    args, kwargs, embedded = payload
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embedded, dict | None)):
        raise TypeError("no call")
