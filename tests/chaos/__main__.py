"""
Run the chaos suite; exit status 1 when a promise was broken.

    python -m tests.chaos --seconds 600 --jobs 10000 --list-input off
    python -m tests.chaos --lost      # no trouble of ours; a provider that loses a third of its answers
"""

import argparse
import secrets
import sys
from pathlib import Path

from tests.chaos import table
from tests.chaos.evidence import as_json
from tests.chaos.run import Plan, Result, run

HERE = Path(".chaos")
LOST_WITHIN_S = 240.0
LOST = {
    "generation_s": [0.2, 3.0],
    "lose_answer": 0.20,
    "gateway_504": 0.05,
    "redirect_307": 0.05,
    "webhook_drop": 0.30,
}
"""A provider on its worst day: of 200 jobs, 60 answers are lost."""


def main() -> int:
    """Run, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the trouble lasts")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--list-input", choices=("on", "off"), default="on", help="what the provider's list shows")
    parser.add_argument("--seed", default="", help="a number or word; by default a new one, which is printed")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE / "data", help="the stack's database and logs; emptied first")
    parser.add_argument("--report", type=Path, help="where the table is saved; by default in .chaos")
    parser.add_argument("--lost", action="store_true", help="200 jobs, 30 %% of the answers lost, no other trouble")
    chosen = parser.parse_args()
    plan = Plan(
        seconds=chosen.seconds,
        jobs=chosen.jobs,
        list_input=chosen.list_input == "on",
        seed=chosen.seed or secrets.token_hex(3),
        workers=chosen.workers,
        settle_s=300.0 + 2 * chosen.seconds,
    )
    if chosen.lost:
        plan = Plan(seconds=5.0, jobs=200, seed=plan.seed, workers=1, settle_s=600.0, faults=LOST, trouble=False)
    print(f"seed {plan.seed}", flush=True)
    result = run(plan, chosen.data, lambda line: print(line, flush=True))
    broken = not result.clean or bool(result.recovery.breaches) or (chosen.lost and _slow(result))
    text = table.markdown(result)
    report = chosen.report or HERE / f"{result.began:%Y%m%d-%H%M%S}-{plan.seed}.md"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(text)
    print(f"\n{text}\nsaved in {report}")
    if broken:
        file = report.with_suffix(".json")
        file.write_text(as_json(result.evidence, kills=result.kills, troubles=sorted(result.troubles)))
        print(f"BROKEN. The evidence is in {file}, the database and the logs are in {chosen.data}", file=sys.stderr)
    return int(broken)


def _slow(result: Result) -> bool:
    if slow := result.settled_s > LOST_WITHIN_S:
        print(f"it took {result.settled_s:.0f} s, not {LOST_WITHIN_S:g} s", file=sys.stderr)
    return slow


if __name__ == "__main__":
    sys.exit(main())
