"""The app inside a worker process of granian's, as the Procfile starts it."""

import gc
import signal
import threading
import time
from collections.abc import Callable

from flask import Flask

from pipeline.web import create_app
from pipeline.web.counts import Counts

_STOP = {signal.SIGTERM, signal.SIGINT}


def app() -> Flask:
    """
    Build the app, in a process that hears a signal to stop once.

    Platforms send SIGTERM to all processes at once, and granian's parent passes its own on: a worker gets two.
    Granian 2.8 hangs at the second one, and the requests under way are cut off. So the signal is blocked, here
    before there are other threads to inherit that, and a thread of ours takes it and calls granian's handler, once.
    Granian then waits for all answers: those who wait for a job get theirs at once.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    made = create_app()
    counts = Counts(made.extensions["runtime"].db)
    counts.start()
    stop = (made.extensions["watcher"].stop, counts.stop)
    threading.Thread(target=_pass_on_the_first, args=stop, name="signals", daemon=True).start()
    gc.collect()
    gc.freeze()  # what is there by now stays: to look for garbage in it takes 0.1 s, in which no request is answered
    return made


def _pass_on_the_first(*stop: Callable[[], None]) -> None:
    number = signal.sigwait(_STOP)
    for end in stop:
        end()
    while (handler := signal.getsignal(number)) in {signal.SIG_DFL, signal.default_int_handler}:
        time.sleep(0.05)  # granian is about to begin
    if callable(handler):
        handler(number, None)
