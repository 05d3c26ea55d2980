"""The settings among themselves, and the Procfile with them: what each allows, and together cannot be meant."""

import signal
from collections.abc import Iterator
from urllib.parse import urlsplit

from pipeline import addresses
from pipeline.broker import QUEUE
from pipeline.deployment import Deployment
from pipeline.lifecycle.examine.findings import Finding, fail, ok, warn
from pipeline.runtime import Runtime
from pipeline.store.account import WINDOW_S

DYNO_THREADS = 256
"""Of one small dyno, processes included. Source: https://devcenter.heroku.com/articles/limits"""

OTHER_THREADS = 16
"""Of one web process, beside those that serve requests."""

PATIENT_S = 60.0
"""A task shows in the provider's list after a moment; submitted again before, it is paid for twice."""


def settings(rt: Runtime) -> Iterator[Finding]:
    """What was read, and what of it cannot be meant."""
    now, limits = rt.settings, rt.settings.limits
    is_imitation = addresses.is_loopback(urlsplit(now.wavespeed_base_url).hostname or "")
    odd = []
    if not is_imitation and now.submit_window_s < WINDOW_S:
        words = f"SUBMIT_WINDOW_S is {now.submit_window_s:g}: the provider counts {WINDOW_S:g} s, and refuses the rest"
        odd.append(warn("settings", "window_short", words, "unset SUBMIT_WINDOW_S"))
    if not is_imitation and now.unknown_patience_s < PATIENT_S:
        words = f"UNKNOWN_PATIENCE_S is {now.unknown_patience_s:g}: a task that is listed late is paid for twice"
        odd.append(warn("settings", "patience_short", words, "unset UNKNOWN_PATIENCE_S"))
    each = f"{limits.submits_per_minute} starts a minute, {limits.max_in_flight} tasks at a time"
    yield from odd or [ok("settings", f"level {now.wavespeed_level}, {each}")]


def procfile(rt: Runtime, deployment: Deployment) -> Iterator[Finding]:
    """Whether what runs can do what is to be done."""
    if not deployment.lines:
        return
    kinds = deployment.kinds()
    odd = [*_working(deployment), *_remapped(rt, deployment)]
    if rt.settings.dyno:
        odd += [finding for name, kind in kinds.items() if kind == "web" for finding in _threads(deployment, name)]
    yield from odd
    if not odd:
        running = (f"{deployment.count(name)} {name}" for name, kind in kinds.items() if kind != "release")
        yield ok("procfile", ", ".join(running))


def _working(deployment: Deployment) -> Iterator[Finding]:
    kinds = deployment.kinds()
    workers = [name for name, kind in kinds.items() if kind in {"worker", "sweep"}]
    if not any(deployment.count(name) for name in workers):
        yield fail("procfile", "no_workers", "no worker is to run: jobs are taken, and none is done", "run one or more")
    if "release" not in kinds.values():
        words = "nothing migrates the database when a new release comes"
        yield warn("procfile", "no_release", words, "add the line `release: python -m pipeline migrate`")
    for name in workers:
        queues = deployment.option(name, "-Q", "--queues") if kinds[name] == "worker" else None
        if queues and QUEUE not in queues.split(","):
            words = f"`{name}` takes from {queues}, and what wakes it comes by `{QUEUE}`"
            yield fail("procfile", "wrong_queue", words, f"give it -Q {QUEUE}")


def _threads(deployment: Deployment, name: str) -> Iterator[Finding]:
    each = deployment.number(name, "--blocking-threads", default=1)
    processes = deployment.processes(name)
    total = processes * (each + OTHER_THREADS)
    if total > DYNO_THREADS:
        words = f"web takes some {total} threads ({processes} x {each} and its own); a small dyno allows {DYNO_THREADS}"
        fit = DYNO_THREADS // processes - OTHER_THREADS
        todo = f"heroku config:set WEB_THREADS={fit}, or take a larger dyno" if fit >= 10 else "lower WEB_CONCURRENCY"
        yield warn("procfile", "too_many_threads", words, todo)


def _remapped(rt: Runtime, deployment: Deployment) -> Iterator[Finding]:
    name = deployment.environ.get("REMAP_SIGTERM")
    if name and not (name.startswith("SIG") and name in signal.Signals.__members__):
        words = f"REMAP_SIGTERM is {name[:40]}, which is no signal: Celery does not start"
        yield fail("procfile", "no_such_signal", words, "set REMAP_SIGTERM=SIGQUIT, or unset it")
    elif rt.settings.dyno and name != "SIGQUIT":
        words = "REMAP_SIGTERM is not SIGQUIT: these workers stop in order all the same, any other of Celery's does not"
        yield warn("procfile", "sigterm_not_remapped", words, "heroku config:set REMAP_SIGTERM=SIGQUIT")
