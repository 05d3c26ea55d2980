"""
How much of the account's quota a backlog uses, and whether it is ever exceeded: by the sandbox's clock and count.

    python -m benchmarks.studies.limiter --workers 3 --jobs 1000 --level silver
"""

import argparse
import time

from pipeline.embedded import stack
from pipeline.embedded.api import call
from pipeline.sandbox import Sandbox
from pipeline.settings import LEVELS

WINDOW_S = 60.0


def main() -> None:
    """Run a backlog through a real stack and print what the provider saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--level", choices=LEVELS, default="silver")
    parser.add_argument("--generation-s", type=float, default=5.0)
    arguments = parser.parse_args()
    limits = LEVELS[arguments.level]
    with stack.running(workers=arguments.workers, env={"WAVESPEED_LEVEL": arguments.level}) as running:
        provider = Sandbox(running.sandbox_url)
        provider.faults(generation_s=arguments.generation_s, level=arguments.level)
        for number in range(arguments.jobs):
            body = {"input": {"prompt": f"a lighthouse {number}"}}
            status, _ = call("POST", f"{running.url}/v1/jobs", body, key=running.api_key)
            assert status == 201, status
        while (seen := provider.arrivals())["count"] < arguments.jobs:
            time.sleep(0.5)

    at = sorted(seen["at"])
    fullest, first = 0, 0
    for last, moment in enumerate(at):
        while at[first] <= moment - WINDOW_S:
            first += 1
        fullest = max(fullest, last - first + 1)
    # Under backlog, a start may follow the one a whole quota before it as soon as a window has passed.
    quota = limits.submits_per_minute
    gaps = [later - earlier for earlier, later in zip(at, at[quota:], strict=False)]
    print(f"workers {arguments.workers}, jobs {len(at)}, took {at[-1] - at[0]:.1f} s")
    print(f"fullest 60 s window: {fullest} of {quota}")
    print(f"most running: {seen['max_running']} of {limits.max_in_flight}")
    print(f"refused by the provider: {seen['refused']}")
    if gaps:
        print(f"quota used: {100 * WINDOW_S * len(gaps) / sum(gaps):.1f} %")


if __name__ == "__main__":
    main()
