"""The sandbox as a process: how it starts, says where it is, and ends."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import pytest

from pipeline.sandbox import running
from tests.sandbox_fixtures import Caller, eventually

COMMAND = [sys.executable, "-m", "pipeline.sandbox"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_one_line_and_ends_cleanly(number: signal.Signals) -> None:
    """Whoever starts it reads the port from the line; whoever stops it sees no traceback."""
    command = [*COMMAND, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
    assert line.startswith("sandbox listening on http://127.0.0.1:")
    assert (rest, errors, process.returncode) == ("", "", 0)


def test_it_ends_while_a_submit_still_waits() -> None:
    """Nobody waits for an imitation to finish its work; the one who did is let go."""
    with ThreadPoolExecutor(1) as pool:
        with running(faults={"generation_s": 600}) as sandbox:
            waiting = pool.submit(Caller(sandbox).submit, enable_sync_mode=True)
            eventually(sandbox.ledger)
        assert isinstance(waiting.exception(20), OSError | HTTPException | None)


def test_it_ends_with_the_process_that_started_it() -> None:
    """A killed test run leaves nothing behind: the pipe closes whatever happened to its other end."""
    with subprocess.Popen(
        [*COMMAND, "--port", "0", "--until-stdin-ends"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(20) == 0


def test_bad_faults_stop_the_start_and_name_the_field() -> None:
    """One sentence, no traceback."""
    done = subprocess.run(
        [*COMMAND, "--port", "0", "--faults", '{"fial": 1}'], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "fial: there is no such fault" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failed_start_is_an_error_at_once() -> None:
    """Not a test that waits until it times out."""
    with pytest.raises(RuntimeError, match="exit code 2"), running(faults={"fial": 1}):
        pass


def test_the_options_of_the_start_are_in_force() -> None:
    """And a reset returns to them."""
    options = {"api_key": "k", "webhook_secret": "whsec_x", "public_url": "https://sandbox.test/", "balance": 0.2}
    with running(faults={"fail": 0.25}, seed=3, **options) as sandbox:  # type: ignore[arg-type]
        sandbox.faults(fail=0)
        sandbox.set_balance(7)
        sandbox.reset()
        api = Caller(sandbox)
        assert api.call("GET", "webhook/secret", key="k").data == {"secret": "whsec_x"}
        assert api.call("GET", "balance", key="other").status == 401
        assert api.call("GET", "balance", key="k").data == {"balance": 0.2}
        answer = api.call("POST", "openai/dall-e-2", {"prompt": "x"}, key="k")
        assert answer.data["urls"]["get"].startswith("https://sandbox.test/api/v3/predictions/")
        faults = sandbox.faults()
        assert (faults["fail"], faults["seed"]) == (0.25, 3)


def test_thousands_of_tasks_are_no_burden() -> None:
    """Every one is listed, charged once, and done."""
    with running(faults={"generation_s": 0.01}, balance=10_000) as sandbox:
        api = Caller(sandbox)
        with ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(lambda number: api.start(f"number {number}"), range(1500)))
        assert len(ids) == len(sandbox.ledger()) == 1500
        eventually(lambda: {row["status"] for row in sandbox.ledger()} == {"completed"})
        pages = [api.list(page=page) for page in range(1, 17)]
        assert {item["id"] for page in pages for item in page} == ids
        assert api.call("GET", "balance").data == {"balance": 10_000 - 180}
