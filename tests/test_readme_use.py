"""What the README shows under "Use it" runs as it stands there."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.runtime import Runtime
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import scalar, swept
from tests.test_client_notifications import AT, BODY, HEADERS, SECRET

README = (Path(__file__).parents[1] / "README.md").read_text()
USE = README.partition("## Use it\n")[2].partition("\n## ")[0]
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```", USE, re.MULTILINE | re.DOTALL)
TIMEOUT_S = 60.0

Shown = Callable[[str, str], str]


@pytest.fixture
def shown(rt: Runtime, web: str, caller: Caller, start_worker: Callable[..., Worker], tmp_path: Path) -> Shown:
    """Run a block as a program of its language, while a worker sweeps, and give what it printed."""
    worker = start_worker()
    programs = {"sh": ["sh", "-e"], "python": [sys.executable], "js": ["node", "--input-type=module"]}
    env = {"PATH": os.environ.get("PATH", os.defpath), "PIPELINE_URL": web, "PIPELINE_KEY": caller.key}

    def run(language: str, program: str) -> str:
        def call() -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                programs[language],
                input=program,
                env=env,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
            )

        with ThreadPoolExecutor(1) as pool:
            called = pool.submit(call)
            swept(worker, called.done, TIMEOUT_S)
            done = called.result()
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_section_is_as_these_tests_know_it() -> None:
    """A block that is added is run, too."""
    assert [language for language, _ in BLOCKS] == ["sh", "python", "js", "sh", "python", "python"]


@pytest.mark.parametrize("number", [0, 1, pytest.param(2, marks=pytest.mark.node)])
def test_a_job_is_handed_in_and_waited_for(number: int, shown: Shown, rt: Runtime) -> None:
    """The same from each language."""
    language, program = BLOCKS[number]
    said = shown(language, program)
    assert "completed" in said
    assert "/files/" in said
    assert scalar(rt, "SELECT count(*) FROM jobs") == scalar(rt, "SELECT count(*) FROM idempotency_keys") == 1


@pytest.mark.parametrize("number", [3, 4])
def test_many_are_handed_in_and_one_is_followed(number: int, shown: Shown, rt: Runtime, tmp_path: Path) -> None:
    """To its last event."""
    language, program = BLOCKS[number]
    said = shown(language, program)
    assert said.index("job.queued") < said.index("job.completed")
    assert scalar(rt, "SELECT count(*) FROM jobs") == 2
    if language == "python":
        (picture,) = tmp_path.glob("*.png")
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_receiver_believes_what_is_signed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there; the clock is that of the specification's example."""
    monkeypatch.setattr("time.time", lambda: AT)
    known: dict[str, Callable[..., int]] = {}
    exec(BLOCKS[5][1].replace('event["type"]', 'event["test"]'), known)
    assert known["receive"](HEADERS, BODY, SECRET) == 204
    assert known["receive"](HEADERS, BODY + b" ", SECRET) == 401
