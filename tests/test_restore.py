"""A backup is worth what its restore is: the drill of pipeline/docs/backup.md."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.embedded.environment import users_own

DRILL = Path(__file__).parents[1] / "benchmarks" / "studies" / "restore_drill.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["dump", "basebackup"])
def test_a_restored_backup_loses_no_job_and_pays_twice_only_for_what_the_bill_had_named(how: str) -> None:
    """Whoever restores one at night types what the page says, and can rely on what it promises."""
    done = subprocess.run(
        [sys.executable, DRILL, "--how", how], capture_output=True, text=True, check=False, env=users_own()
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "It came out as" in done.stdout
