"""
One Celery task a job. The pool is the command line's:

    celery -A benchmarks.instead.celery_app worker --pool prefork|threads|gevent --concurrency N
"""

import os
from typing import Any

from celery import Celery

from benchmarks.instead import generation

app = Celery("instead", broker=os.environ["BROKER_URL"], set_as_current=False)
app.conf.update(
    task_ignore_result=True,  # the results stand in Postgres
    task_acks_late=True,  # a killed worker loses no job
    worker_prefetch_multiplier=1,  # as Celery's manual has it for long tasks: nobody holds what others could do
    broker_transport_options={
        "max_connections": 2000
    },  # by default 10, which a full pool has in use when it acknowledges
)


@app.task(name="generate")
def generate(job: str, model: str, input: dict[str, Any]) -> None:
    """Do one job."""
    generation.generate(job, model, input)
