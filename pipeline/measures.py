"""
What is counted: the names of the measures in `stats` and `totals`, and what can be read off them.

A name that ends in a word after a dot is one of a family: `ended.completed`, `callbacks.late`. How long jobs took is
counted by intervals: `total_s.2.5` are those that took up to 2.5 s, and longer than the bound before it.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from pipeline.jobs import FINAL, Outcome, State, Via

ACCEPTED = "accepted"
ENDED = {state: f"ended.{state}" for state in sorted(FINAL | {State.EXPIRED})}
SETTLED = {via: f"settled.{via}" for via in Via}
ATTEMPTS = "attempts"
"""Paid POSTs begun, in the minute they began in. One that was lost and then found counts as both."""

OUTCOMES = {outcome: f"attempts.{outcome}" for outcome in Outcome}
CALLBACKS = "callbacks."
"""Begins the names of authentic callbacks; their verdict follows."""

FORGED = "forged"
POLLS = "polls"
CHARGED_TWICE = "charges.twice"
CHARGED_IN_VAIN = "charges.in_vain"
SPENT = "spent_usd"
"""For what completed; beside it there is what was spent on nothing: twice, in vain, or never heard of again."""

SPENT_BESIDE = "spent_beside_usd"
OUTPUTS_STORED = "outputs.stored"
OUTPUTS_LOST = "outputs.lost"
OUTPUTS_BYTES = "outputs.bytes"
NOTIFICATIONS_DELIVERED = "notifications.delivered"
NOTIFICATIONS_FAILED = "notifications.failed"
"""Tries that failed, whatever became of the next."""

NOTIFICATIONS_DEAD = "notifications.dead"


class Latency(StrEnum):
    """What took how long, of jobs the provider completed or failed; in seconds."""

    QUEUED = "queued_s"  # from when it might run to its newest POST
    PROVIDER = "provider_s"  # from there to the verdict
    TOTAL = "total_s"  # from when it might run to the verdict


BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""The upper bounds of the intervals; one more has none."""

BOUNDS = (*(f"{bound:g}" for bound in BOUNDS_S), "+Inf")
"""How they are written, in names of measures and to Prometheus."""


def intervals(latency: Latency) -> list[str]:
    """The names of a latency's intervals, the shortest first."""
    return [f"{latency}.{bound}" for bound in BOUNDS]


def sum_of(latency: Latency) -> str:
    """The name under which all its seconds are added up."""
    return f"{latency}.sum"


def counts(latency: Latency, sums: Mapping[str, float]) -> list[float]:
    """How many jobs there were in each interval, of sums by measure."""
    return [sums.get(name, 0.0) for name in intervals(latency)]


def quantile(q: float, counted: Sequence[float]) -> float | None:
    """
    The time within which the share *q* of the jobs came, in seconds, estimated from their *counted* intervals.

    Within an interval they are taken to be spread evenly, as Prometheus does it; what took longer than the last bound
    is said to have taken that. None: there were no jobs.
    """
    every = sum(counted)
    if every <= 0:
        return None
    before, lower = 0.0, 0.0
    for upper, count in zip(BOUNDS_S, counted, strict=False):
        if count > 0 and before + count >= q * every:
            return min(upper, lower + (upper - lower) * max(0.0, q * every - before) / count)  # which may round up
        before, lower = before + count, upper
    return BOUNDS_S[-1]
