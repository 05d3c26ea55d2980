"""Addresses of strangers from end to end: whom callers want to have told, and where outputs are said to lie."""

import gzip
from collections.abc import Callable
from contextlib import ExitStack

from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store.moves import Move, advance
from pipeline.store.outbox import Told
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import execute, placed, processing, scalar, swept, until
from tests.test_notify import notification, tries
from tests.test_outbound import INSIDE, OK
from tests.wire import Handler, begin_and_hang_up, floods, hang_up, raw, says, wire

HOSTILE: dict[str, tuple[Handler, str]] = {
    "1xx": (floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), "more than 65536 bytes ahead of its answer"),
    "headers": (floods(OK, b"X-Many: x\r\n" * 1000), "too many headers"),
    "ssh": (raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "broken HTTP"),
    "mute": (hang_up, "hung up"),
}
"""What servers do, and what is then written down."""

FORBIDDEN = {
    f"http://{INSIDE}:PORT/admin": f"must not lead to {INSIDE}, a loopback address",
    "http://2130706434:PORT/admin": "must write its IPv4 address as four decimal numbers",
    f"http://[::ffff:{INSIDE}]:PORT/admin": f"{INSIDE}, a loopback address",
    "http://169.254.169.254/latest/meta-data/": "a link-local address",
    "http://me:hunter2@127.0.0.1:PORT/": "must have no credentials",
}
"""Where nobody is called, and why, as it is written down."""


def test_what_is_refused_stands_in_the_delivery_record(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: Callable[..., Worker]
) -> None:
    """Its owner must see why he hears nothing. A redirect is not followed; who took the event has it, whatever else."""
    with ExitStack() as stack:
        inside = stack.enter_context(wire(says(200), host=INSIDE))
        targets = {url.replace("PORT", str(inside.port)): why for url, why in FORBIDDEN.items()}
        for handler, why in HOSTILE.values():
            targets[stack.enter_context(wire(handler)).url] = why
        leads = stack.enter_context(wire(says(307, Location=inside.url)))
        bomb = stack.enter_context(wire(says(200, gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")))
        torn = stack.enter_context(wire(begin_and_hang_up))
        jobs = {url: placed(rt, caller.service, State.QUEUED) for url in [*targets, leads.url, bomb.url, torn.url]}
        for url, job_id in jobs.items():
            execute(rt, "UPDATE jobs SET callback_url = :url WHERE id = :id", url=f"{url}?token=hunter2", id=job_id)
        with rt.db.transaction() as tx:
            advance(tx, [Move(job_id, State.CANCELLED) for job_id in jobs.values()])
        start_worker().wake("notify")

        for url, why in targets.items():
            (one,) = until(lambda: tries(rt, jobs[url]))  # noqa: B023
            assert why in one.error, url
            assert "hunter2" not in str(one)
        (one,) = until(lambda: tries(rt, jobs[leads.url]))
        assert (one.status, notification(rt, jobs[leads.url]).state) == (307, Told.PENDING)
        for url in (bomb.url, torn.url):
            until(lambda: notification(rt, jobs[url]).state == Told.DELIVERED)  # noqa: B023
        assert inside.untouched


def test_what_is_refused_stands_in_the_outputs_record(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: Callable[..., Worker]
) -> None:
    """Nothing of this network ends up in a file that callers can read."""
    worker = start_worker()
    swept(worker, lambda: scalar(rt, "SELECT archiving FROM account"))
    with (
        wire(says(200, b"secret"), host=INSIDE) as inside,
        wire(says(302, Location=f"{inside.url}/a?sig=hunter2")) as leads,
        wire(raw(OK + b"Content-Length: 99999999999\r\n\r\n")) as huge,
        wire(begin_and_hang_up) as torn,
    ):
        reasons = {
            f"{inside.url}/a.png": f"must not lead to {INSIDE}",
            f"{leads.url}/a.png": f"redirects to {inside.url}/a: ",
            f"{huge.url}/a.png": "larger than",
            f"{torn.url}/a.png": "broke off",
        }
        job = processing(rt, caller.service)
        outputs = [{"url": f"{url}?sig=hunter2", "nsfw": False} for url in reasons]
        with rt.db.transaction() as tx:
            assert advance(tx, [Move(job.job_id, State.COMPLETED, outputs=outputs)])
        worker.wake("archive")
        for index, (url, why) in enumerate(reasons.items()):
            found = until(lambda: scalar(rt, "SELECT error FROM assets WHERE index = :n", n=index))  # noqa: B023
            assert why in found, (url, found)
            assert "hunter2" not in found
        assert inside.untouched
        assert scalar(rt, "SELECT count(*) FROM assets WHERE state = 'stored'") == 0
