"""
Any interleaving of what can happen to jobs, on a real database: what must be true is, after every step.

`STATEFUL_EXAMPLES=2000 STATEFUL_STEPS=60` makes the search longer.
"""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pipeline.runtime import Runtime
from tests.conftest import Caller
from tests.stateful import provider as providers
from tests.stateful.machine import Equipment, Lifecycle
from tests.stateful.provider import Provider
from tests.stateful.sabotage import Sabotaged
from tests.stateful.workers import fleet

MakeRuntime = Callable[..., Runtime]

ANY = settings(
    max_examples=int(os.environ.get("STATEFUL_EXAMPLES", "20")),
    stateful_step_count=int(os.environ.get("STATEFUL_STEPS", "40")),
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

SAME_EVERY_TIME = settings(
    ANY, max_examples=400, derandomize=True, database=None, print_blob=False, phases=[Phase.generate]
)
"""Found in the same example on every run, and not made smaller: that it is found is all that is asked."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that the test decides for."""
    with providers.running() as running:
        yield running


@contextmanager
def equipped(rt: Runtime, caller: Caller, provider: Provider) -> Iterator[Any]:
    """Give what makes one machine after another, with processes and connections that they share."""
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with fleet(rt, provider.url, nowhere) as processes, ThreadPoolExecutor(4) as threads:
            equipment = Equipment(rt, caller.service, provider, processes, threads)
            yield lambda: Lifecycle(equipment)


@pytest.mark.timeout(0)  # as long as was asked for
def test_whatever_happens_in_whatever_order_every_promise_is_kept(
    make_rt: MakeRuntime, caller: Caller, provider: Provider
) -> None:
    """Each rule is something that really happens; nobody can think of all their orders."""
    rt = make_rt(wavespeed_base_url=f"{provider.url}/person", unknown_patience_s=20.0)
    with equipped(rt, caller, provider) as machine:
        run_state_machine_as_test(machine, settings=ANY)


LONG = pytest.mark.long


@pytest.mark.slow  # it is the search that is put to the test here, and not the product
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("cut", "instead", "promise"),
    [
        pytest.param(r"""\(l."from" \|\| '>' \|\| w."to"\) = ANY\(.*?\)s\)""", "true", "legal", id="legal moves"),
        pytest.param(r"\(k.state \|\| '>' \|\| \S+\) IN \([^)]*\)", "true", "legal", id="legal verdicts"),
        pytest.param(
            r"AND \(w.attempt_id IS NULL OR w.attempt_id = j.current_attempt\)",
            "",
            "current attempt",
            id="fence of a move",
            marks=LONG,
        ),
        pytest.param(
            r"AND \(k.current OR \S+ = 'completed' OR NOT k.state IN \([^)]*\)\)",
            "",
            "current attempt",
            id="fence of a verdict",
            marks=LONG,
        ),
        pytest.param(
            r"AND \(a.outcome IS NULL OR a.outcome IN \('lost', 'absent'\)\)",
            "",
            "an attempt is",
            id="what is known of an attempt",
            marks=LONG,
        ),
        pytest.param("reserved = p.reserved - f.freed", "reserved = p.reserved", "reserved", id="money given back"),
    ],
)
def test_the_machine_finds_what_is_wrong_where_a_guard_is_missing(
    make_rt: MakeRuntime, caller: Caller, provider: Provider, cut: str, instead: str, promise: str
) -> None:
    """A search that finds nothing has only shown something if it would have found it."""
    sound = make_rt(wavespeed_base_url=f"{provider.url}/person", unknown_patience_s=20.0)
    database = Sabotaged(sound.settings.database_url, cut, instead)
    with (
        equipped(Runtime(sound.settings, database), caller, provider) as machine,
        pytest.raises(AssertionError, match=promise),
    ):
        run_state_machine_as_test(machine, settings=SAME_EVERY_TIME)
    assert database.cut > 0
    database.close()
