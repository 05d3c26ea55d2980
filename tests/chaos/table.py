"""The result as a table, in Markdown: for the terminal, for a file, for the documentation."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tests.chaos.recovery import P95_S, WORST_S
from tests.chaos.run import Result

SHOWN = 20
"""How many cases of one breach are listed."""


def markdown(result: Result) -> str:
    """Everything there is to say about a run."""
    return "\n".join([*_head(result), "", *_promises(result), "", *_facts(result), "", *_lists(result)]).rstrip() + "\n"


def _head(result: Result) -> Iterable[str]:
    plan = result.plan
    listed = "shows" if plan.list_input else "does not show"
    yield f"### {result.began:%Y-%m-%d %H:%M} UTC: {plan.jobs} jobs in {plan.seconds:g} s, the list {listed} inputs"
    yield ""
    yield f"{result.machine}. Seed `{plan.seed}`, {plan.workers} workers."


def _promises(result: Result) -> Iterable[str]:
    yield "| promise | breaches |"
    yield "|---|---|"
    for promise, breaches in result.breaches.items():
        yield f"| {promise} | {len(breaches)} |"
    measured = result.recovery
    if measured.seconds:
        yield (
            f"| after a worker's SIGKILL, its jobs are looked for within {P95_S:g} s (p95), {WORST_S:g} s (worst)"
            f" | {len(measured.breaches)} |"
        )


def _facts(result: Result) -> Iterable[str]:
    found, measured = result.evidence, result.recovery
    accepted = sum(order.accepted for order in found.orders)
    took = sorted(job["took_s"] for job in found.jobs if job["took_s"] is not None)
    yield "| what | figure |"
    yield "|---|---|"
    counts = _dots(len(found.orders), accepted, len(found.jobs), len(found.charges))
    yield f"| orders · accepted · jobs · charges | {counts} |"
    yield f"| answers to callers | {_counted({str(s or 'none'): n for s, n in result.answers.items()})} |"
    yield f"| jobs | {_counted(Counter(job['state'] for job in found.jobs))} |"
    yield f"| verdict brought by | {_counted(Counter(job['settled_by'] for job in found.jobs if job['settled_by']))} |"
    yield f"| attempts | {_counted(Counter(row['outcome'] or 'open' for row in found.attempts))} |"
    sent = Counter(f"{row['kind']} {row['state']}" for row in found.deliveries)
    yield f"| callbacks sent | {_counted(sent)} |"
    yield f"| callbacks heard | {_counted(Counter(row['verdict'] for row in found.callbacks))} |"
    yield f"| seconds until settled | {result.settled_s:.0f} |"
    if took:
        yield f"| a job took, p50 · p95 · worst | {_dots(*(f'{_quantile(took, q):.1f} s' for q in (0.5, 0.95, 1.0)))} |"
    if measured.kills:
        kills = _dots(measured.kills, len(measured.seconds), measured.jobs)
        yield f"| SIGKILLs of workers · with jobs · their jobs | {kills} |"
        times = _dots(*(f"{measured.quantile(q):.1f} s" for q in (0.5, 0.95, 1.0)))
        yield f"| from a kill to the first rung, p50 · p95 · worst | {times} |"
    for trouble, count in sorted(Counter(what for _, what in result.troubles).items()):
        yield f"| {trouble} | {count} |"


def _lists(result: Result) -> Iterable[str]:
    for promise, breaches in {**result.breaches, "recovery": result.recovery.breaches}.items():
        if breaches:
            yield from (f"**Broken: {promise}**", "", *_some(breaches), "")
    held = [f"`{job['id']}`: {job['held_reason']}" for job in result.evidence.jobs if job["held_reason"]]
    if held:
        yield from (f"{len(held)} held for a person:", "", *(f"- {line}" for line in held))


def _some(lines: Sequence[str]) -> Iterable[str]:
    yield from (f"- {line}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"- and {len(lines) - SHOWN} more"


def _dots(*values: object) -> str:
    return " · ".join(map(str, values))


def _counted(counts: "dict[str, int] | Counter[str]") -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
