"""Calls of Celery tasks in other apps, over the broker that they share with us. Blocks for seconds at most."""

import contextlib
from collections.abc import Mapping
from typing import Any

from kombu.exceptions import OperationalError

from pipeline.broker import impatient, make_celery
from pipeline.errors import Unreachable

TIMEOUT_S = 2.0


class Messenger:
    """One connection, made when first needed, and again after it broke. For one thread."""

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url
        self._celery = make_celery(broker_url)
        self._producer: Any = None

    def call(self, task: str, queue: str, *, task_id: str, words: Mapping[str, Any]) -> None:
        """
        Put one call into *queue*, which is made when there is none, and wait until the broker has it.

        Raises:
            Unreachable: The broker is away, or does not take it.
        """
        try:
            try:
                self._send(task, queue, task_id, words)
            except self._declined():  # there is one of that name, made otherwise than Celery would: it will do
                self.close()
                self._send(task, queue, task_id, words, declare=[])
        except Exception as error:  # whatever a broker's library raises
            self.close()
            why = "is away" if isinstance(error, OperationalError | OSError) else "did not take it"
            raise Unreachable(f"The broker {why} ({type(error).__name__}).") from None

    def close(self) -> None:
        """Give the connection back."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(Exception):
                producer.connection.release()

    def _send(self, task: str, queue: str, task_id: str, words: Mapping[str, Any], **options: Any) -> None:
        if self._producer is None:
            connection = impatient(self._url, TIMEOUT_S, confirmed=True)
            self._producer = self._celery.amqp.Producer(connection, auto_declare=False)
        self._celery.send_task(
            task,
            kwargs=dict(words),
            task_id=task_id,
            queue=queue,
            producer=self._producer,
            retry=False,
            ignore_result=True,
            **options,
        )

    def _declined(self) -> tuple[type[BaseException], ...]:
        return tuple(self._producer.connection.channel_errors) if self._producer else ()
