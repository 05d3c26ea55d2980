"""The README is true: what it lists is what the code has."""

import re
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.jobs import FINAL, TRANSITIONS
from pipeline.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_diagram_shows_the_table_of_states() -> None:
    """A reader learns the legal moves from the picture."""
    moves = [f"    {source} --> {target}" for source in TRANSITIONS for target in sorted(TRANSITIONS[source])]
    ends = [f"    {state} --> [*]" for state in sorted(FINAL)]
    (shown,) = re.findall(r"stateDiagram-v2\n(.*?)```", README, re.DOTALL)
    assert shown.splitlines() == ["    [*] --> queued", *moves, *ends]


def test_every_setting_stands_in_the_table() -> None:
    """A variable nobody can read about does not exist."""
    listed = set(re.findall(r"`([A-Z_]+)`", README))
    assert {name.upper() for name in Settings.model_fields} <= listed


def test_every_error_a_caller_may_meet_is_listed_with_its_status() -> None:
    """Callers test for codes: they are documented, and stay."""
    rows = dict(re.findall(r"^\| (\d{3}) \| (.*?) \|$", README, re.MULTILINE))

    def descendants(kind: type[PipelineError]) -> set[type[PipelineError]]:
        below = [child for child in kind.__subclasses__() if child.__module__ == PipelineError.__module__]
        return {kind}.union(*map(descendants, below))

    for error in descendants(PipelineError):
        if error.status not in {500, 502}:
            assert f"`{error.code}`" in rows[str(error.status)], error
