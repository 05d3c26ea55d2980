"""The cases, in the order they run: each page has a `CASE`."""

from importlib import import_module

from benchmarks.harness import Case

NAMES = ("receiver", "pipeline", "instead", "latency", "enqueue", "sizes", "memory")


def load(name: str) -> Case:
    """Import one case: some need libraries that only benchmarks do."""
    case: Case = import_module(f"benchmarks.cases.{name}").CASE
    return case
