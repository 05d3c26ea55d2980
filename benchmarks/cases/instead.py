"""
What one could use instead: Celery and the provider's own SDK, or procrastinate and the SDK, at the same worker memory.

    pipeline bench instead --set generation=5             one generation time (or several: 0.5,20), in seconds
    pipeline bench instead --set sides=ours,threads       some of ours, prefork, threads, gevent, procrastinate
    pipeline bench instead --set tls=no                   the provider without TLS, as no provider is
    pipeline bench instead --set sync=yes                 the SDK's sync mode: one long call instead of polls

All of them have one worker, and share the Postgres, the Valkey and the provider of one stack. The others have a task
for each job, which calls the SDK's `run()` and stores what came of it with one INSERT; the SDK asks every second. They
do as many at a time as is best within the memory that this product's worker takes (PSS of all its processes) under the
same load: some minutes go by to try that out. This product keeps all its promises meanwhile; the others make none.

The provider is behind TLS. That is most of what the SDK works at: it connects anew for each call, and reads all the
authorities again. What the provider itself works is nobody's cost here.

This product's work is that of several processes, the others' mostly that of one. So other work on the machine holds up
the others more; what it cannot blur is how the CPU times compare.

How jobs are counted: `benchmarks/instead/pace.py`. Ours are handed in over HTTP meanwhile, and that is in its CPU;
what it takes to hand in to the others is not counted.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from benchmarks import stacks
from benchmarks.harness import Case, Figures, Plan, Side
from benchmarks.instead import provider
from benchmarks.instead.contenders import POOLS, CelerySdk, Contender, Ours, Place, Procrastinate
from benchmarks.instead.pace import Pace, measure
from benchmarks.instead.sizing import Size, fitting
from pipeline.embedded import scratch, stack
from pipeline.errors import InvalidInput

OURS, PROCRASTINATE = "ours", "procrastinate"
KINDS = (OURS, *POOLS, PROCRASTINATE)
WINDOWS_S = {0.5: 6.0, 5.0: 8.0, 20.0: 20.0}
"""How long jobs are counted, at least, by how long a generation takes."""

TRIED_S = 5.0
AT_MOST = 400  # at a time


class Bench:
    """Where all sides run, and how many each of the others does at a time."""

    def __init__(self, plan: Plan, calls: provider.Provider, place: Place) -> None:
        self._plan = plan
        self._provider = calls
        self._place = place
        self._sizes: dict[str, Size] = {}

    def size(self, kind: str, most_mb: float) -> None:
        """Try out how many at a time are best."""
        if self._plan.smoke:
            self._sizes[kind] = Size(2, 0.0, full=True)
        else:
            probe = partial(self.pace, kind, TRIED_S)
            first = 1 if kind == "prefork" else 25
            self._sizes[kind] = fitting(probe, first=first, at_most=AT_MOST, most_mb=most_mb)

    def worth(self, kind: str, generation_s: float) -> bool:
        """Where a run takes a minute, those of Celery's pools that were slower anyway are not run again and again."""
        pools = [pool for pool in self._sizes if pool in POOLS]
        return generation_s <= TRIED_S or kind not in pools or kind == max(pools, key=lambda it: self._sizes[it].rate)

    def figures(self, kind: str, generation_s: float) -> Figures:
        """One run of one side."""
        size = self._sizes.get(kind)
        concurrency = size.at(generation_s, tried_s=TRIED_S, at_most=AT_MOST) if size else 0
        pace = self.pace(kind, generation_s, concurrency)
        return {
            "jobs/s": pace.rate,
            "CPU ms/job, worker": 1000 * pace.worker_cpu_s / pace.jobs,
            "CPU ms/job, all but the provider": 1000 * pace.all_cpu_s / pace.jobs,
            "PSS MB, worker": pace.pss_mb,
            **({"concurrency": concurrency} if size else {}),
        }

    def pace(self, kind: str, generation_s: float, concurrency: int = 0) -> Pace:
        """Measure one of them, from its start to its end."""
        self._provider.begin(generation_s)
        window_s = float(self._plan.options.get("window", WINDOWS_S.get(generation_s, 10.0)))
        with closing(self._start(kind, concurrency)) as who:
            return measure(who, generation_s=generation_s, window_s=self._plan.pick(window_s, 0.2))

    def _start(self, kind: str, concurrency: int) -> Contender:
        if kind == OURS:
            return Ours(self._place.running, reserve=self._plan.pick(1000, 12))
        if kind == PROCRASTINATE:
            return Procrastinate(self._place, concurrency)
        return CelerySdk(self._place, kind, concurrency)


@contextmanager
def sides(plan: Plan) -> Iterator[Mapping[str, Side]]:
    """Ours and the others, for each generation time."""
    kinds = plan.options.get("sides", ",".join(KINDS)).split(",")
    if odd := set(kinds) - {*KINDS}:
        raise InvalidInput(f"--set sides: there is no {', '.join(odd)}; there are {', '.join(KINDS)}.")
    times_s = map(float, plan.options.get("generation", plan.pick("0.5,5,20", "0.1")).split(","))
    with ExitStack() as cleanup:
        room = cleanup.enter_context(scratch.directory("instead"))
        calls = cleanup.enter_context(provider.running(room, tls=plan.options.get("tls") != "no"))
        env = {**stacks.LIMITS, "ARCHIVE_URL": "off", **calls.env}
        running = cleanup.enter_context(stack.running(data=plan.pick(room / "stack", None), env=env))
        place = Place(running, room, {**calls.env, "SYNC_MODE": plan.options.get("sync", "no")})
        bench = Bench(plan, calls, place)
        others = [kind for kind in kinds if kind != OURS]
        most_mb = bench.pace(OURS, TRIED_S).pss_mb if others and not plan.smoke else 0.0
        for kind in others:
            bench.size(kind, most_mb)
        yield {
            f"{title(kind)}, {generation_s:g} s": partial(bench.figures, kind, generation_s)
            for generation_s in times_s
            for kind in kinds
            if "sides" in plan.options or bench.worth(kind, generation_s)
        }


def title(kind: str) -> str:
    """What a side is called."""
    return f"Celery + SDK, {kind}" if kind in POOLS else kind


CASE = Case(
    "instead",
    "Jobs a second of one worker, against what one could use instead at the same worker memory.",
    sides,
    needs=("wavespeed", "procrastinate", "psycopg_pool", "gevent", "requests", "cryptography"),
    options=("generation", "sides", "sync", "tls", "window"),
)
