"""The provider's own SDK, unchanged, against the sandbox: what it accepts is what clients in the field accept."""

import base64
from collections.abc import Iterator

import pytest
from wavespeed.api.client import Client

from pipeline.sandbox import Sandbox, running
from tests.sandbox_fixtures import QUICK, fetch

MODEL = "openai/dall-e-2"


@pytest.fixture(scope="module")
def process() -> Iterator[Sandbox]:
    """One sandbox for the page; each test resets it."""
    with running(faults=QUICK, api_key="the-key") as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(process: Sandbox) -> Sandbox:
    process.reset()
    return process


@pytest.fixture
def sdk(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return Client(api_key="the-key", base_url=sandbox.url, retry_interval=0.01)


def test_a_prompt_becomes_a_picture(sdk: Client) -> None:
    """Submit, poll, download: the path of everybody."""
    (url,) = sdk.run(MODEL, {"prompt": "a lighthouse"}, poll_interval=0.02)["outputs"]
    assert fetch("GET", url).body.startswith(b"\x89PNG")


def test_a_failed_task_is_an_error_with_its_reason(sdk: Client) -> None:
    """A failure is HTTP 200; only status and error tell."""
    with pytest.raises(RuntimeError, match=r"Prediction failed .*sensitive information"):
        sdk.run(MODEL, {"prompt": "[sandbox:fail]"}, poll_interval=0.02)


@pytest.mark.parametrize("status", ["cancelled", "timeout", "deleted"])
def test_the_rarer_ends_are_terminal_too(sdk: Client, status: str) -> None:
    """All official clients stop polling on them."""
    with pytest.raises(RuntimeError, match=f"Prediction {status}"):
        sdk.run(MODEL, {"prompt": f"[sandbox:ends_as={status}]"}, poll_interval=0.02)


def test_an_unknown_model_is_refused(sdk: Client, sandbox: Sandbox) -> None:
    """What a withdrawn model answered."""
    with pytest.raises(RuntimeError, match=r"HTTP 400: .*model not found"):
        sdk.run("openai/dall-e-1", {"prompt": "x"})
    assert sandbox.ledger() == []


def test_another_key_is_refused(sandbox: Sandbox, sdk: Client) -> None:
    """With --api-key only that one is good."""
    with pytest.raises(RuntimeError, match=r"HTTP 401: .*invalid authentication"):
        Client(api_key="another", base_url=sandbox.url).run(MODEL, {"prompt": "x"})
    assert sandbox.arrivals()["refused"] == {"submit": 1}


def test_a_429_on_submit_is_raised_at_once(sdk: Client, sandbox: Sandbox) -> None:
    """The SDK sends a paid POST once."""
    sandbox.faults(status_429=1)
    with pytest.raises(RuntimeError, match=r"HTTP 429: .*concurrency limit"):
        sdk.run(MODEL, {"prompt": "x"})
    assert sandbox.arrivals()["count"] == 1


def test_a_lost_answer_left_a_task_behind(sdk: Client, sandbox: Sandbox) -> None:
    """The SDK says so itself, and does not repeat the POST."""
    sandbox.faults(lose_answer=1)
    with pytest.raises(RuntimeError, match=r"may already have been created"):
        sdk.run(MODEL, {"prompt": "x"})
    assert len(sandbox.ledger()) == sandbox.arrivals()["count"] == 1


def test_polls_survive_server_errors(sdk: Client, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading is safe to repeat; the SDK does it five times."""
    sandbox.faults(read_500=0.3, seed=1)
    assert sdk.run(MODEL, {"prompt": "x"}, poll_interval=0.02)["outputs"]
    capsys.readouterr()  # the SDK prints its retries


def test_base64_output_is_the_file(sdk: Client) -> None:
    """Without a `data:` prefix."""
    (text,) = sdk.run(MODEL, {"prompt": "x", "enable_base64_output": True}, poll_interval=0.02)["outputs"]
    assert base64.b64decode(text, validate=True).startswith(b"\x89PNG")


def test_sync_mode_needs_one_request(sdk: Client, sandbox: Sandbox) -> None:
    """The result is in the answer to the submit."""
    assert sdk.run(MODEL, {"prompt": "x"}, enable_sync_mode=True)["outputs"]
    assert sandbox.arrivals()["calls"] == {"submit": 1}


def test_a_sync_timeout_can_be_polled(sdk: Client, sandbox: Sandbox) -> None:
    """The SDK recognises code 5004, and where to ask later."""
    sandbox.faults(sync_window_s=0, generation_s=600)
    outcome = sdk.run_no_throw(MODEL, {"prompt": "x"}, enable_sync_mode=True)
    assert outcome["status"] == "processing"
    assert sdk.get_result(outcome["task_id"])["data"]["status"] == "processing"
