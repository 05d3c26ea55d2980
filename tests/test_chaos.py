"""
The chaos suite's short form: the same stack, callers, troubles and judgement as `make chaos`, for a minute.

How soon it recovers is measured by `make chaos`, and printed; here only the promises are judged.
"""

from pathlib import Path

import pytest

from tests.chaos import table
from tests.chaos.run import Plan, run

pytestmark = pytest.mark.xdist_group("stack")

SHORT = Plan(
    seconds=60.0,
    jobs=500,
    seed="short",
    workers=2,
    env={"UNKNOWN_PATIENCE_S": "10", "POLL_AFTER_S": "4"},  # what is left is settled sooner
)


@pytest.mark.timeout(420)
def test_a_minute_of_every_trouble_at_once_breaks_no_promise(tmp_path: Path) -> None:
    """Nothing lost, nothing paid twice, nothing believed that was forged: whatever is killed, cut, flushed or held."""
    result = run(SHORT, tmp_path / "data", print)

    assert result.clean, table.markdown(result)
    assert len(result.evidence.jobs) > 450
    assert len(result.troubles) >= 6, result.troubles
    assert result.recovery.kills >= 2  # of workers
    assert "broker: SIGKILL" in [what for _, what in result.troubles], "it is to lose every message it has"
    assert {row["kind"] for row in result.evidence.deliveries} >= {"true", "duplicate", "forged"}
