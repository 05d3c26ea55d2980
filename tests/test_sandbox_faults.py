"""The fault dial: every fault does what its name says, to every task or to the one whose prompt asks for it."""

import http.client
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sandbox import BadFault, Faults, Sandbox, running
from tests.sandbox_fixtures import QUICK, SLOW, Caller, eventually, fetch

DALLE = "openai/dall-e-2"


@pytest.fixture(scope="module")
def process() -> Iterator[Sandbox]:
    """One sandbox for the page; each test resets it."""
    with running(faults=QUICK) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(process: Sandbox) -> Sandbox:
    process.reset()
    return process


@pytest.fixture
def api(sandbox: Sandbox) -> Caller:
    return Caller(sandbox)


@pytest.fixture(params=["dial", "prompt"])
def strike(request: pytest.FixtureRequest, sandbox: Sandbox) -> Any:
    """Arrange one certain fault, either way, and give the prompt to submit with."""

    def arrange(name: str) -> str:
        if request.param == "prompt":
            return f"a lighthouse [sandbox:{name}]"
        sandbox.faults(**{name: 1})
        return "a lighthouse"

    return arrange


# The answer to a submit


def test_a_lost_answer_leaves_a_paid_task(api: Caller, strike: Any) -> None:
    """The case that costs money when it is repeated blindly."""
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        api.submit(strike("lose_answer"))
    (charge,) = api.sandbox.ledger()
    assert api.ended(charge["prediction_id"])["status"] == "completed"


def test_a_gateway_timeout_leaves_a_running_task(api: Caller, strike: Any) -> None:
    """The gateway answers in HTML; the task does not care."""
    answer = api.submit(strike("gateway_504"))
    assert answer.status == 504
    assert answer.headers["Content-Type"].startswith("text/html")
    assert api.ended(api.sandbox.ledger()[0]["prediction_id"])["status"] == "completed"


def test_a_redirect_leads_to_itself_and_makes_nothing(api: Caller, strike: Any) -> None:
    """Who follows a 307 posts twice."""
    answer = api.submit(strike("redirect_307"), webhook="http://127.0.0.1:9/a%20b")
    assert answer.status == 307
    assert answer.headers["Location"] == f"/api/v3/{DALLE}?webhook=http%3A%2F%2F127.0.0.1%3A9%2Fa%2520b"
    assert api.sandbox.ledger() == []


def test_a_429_makes_nothing(api: Caller, strike: Any) -> None:
    """Refused before a task exists; the provider documents no Retry-After."""
    answer = api.submit(strike("status_429"))
    assert answer.status == 429
    assert "Retry-After" not in answer.headers
    assert api.sandbox.ledger() == []


@pytest.mark.parametrize(("seconds", "header"), [(3, "3"), (1.5, "1.5")])
def test_a_429_can_carry_retry_after(api: Caller, seconds: float, header: str) -> None:
    """A client has to honour it where it is sent, by the account's limits too."""
    api.sandbox.faults(retry_after_s=seconds, limits={"per_window": 0})
    assert api.submit().headers["Retry-After"] == header
    assert api.submit("[sandbox:status_429]").headers["Retry-After"] == header


def test_half_of_the_500s_leave_a_task(api: Caller) -> None:
    """Only the ledger knows which: a 500 says nothing."""
    api.sandbox.faults(status_500=1, seed=7)
    assert {api.submit(f"number {n}").status for n in range(40)} == {500}
    assert 8 <= len(api.sandbox.ledger()) <= 32


def test_latency_delays_the_answer_and_not_the_task(api: Caller) -> None:
    """The task is created first: a caller that loses patience has paid."""
    api.sandbox.faults(latency_s=600)
    connection = http.client.HTTPConnection(api.sandbox.url.removeprefix("http://"))
    connection.request("POST", f"/api/v3/{DALLE}", b'{"prompt":"x"}', {"Authorization": "Bearer key"})
    eventually(lambda: [row for row in api.sandbox.ledger() if row["status"] == "completed"])
    connection.close()


@pytest.mark.parametrize("status", ["created", "pending", "processing"])
def test_the_first_status_can_be_any_of_the_documented(api: Caller, status: str) -> None:
    """Three pages, three answers."""
    api.sandbox.faults(first_status=status)
    assert api.submit().data["status"] == status


# The account


def test_a_revoked_key_is_401_everywhere(api: Caller) -> None:
    """Balance included: that is how a client tells it from one forbidden model."""
    api.sandbox.faults(revoked=True)
    assert api.submit().status == 401
    assert api.call("GET", "balance").status == 401
    api.sandbox.faults(revoked=False)
    assert api.submit().status == 200


@pytest.mark.parametrize("forbidden", [True, DALLE])
def test_forbidden_submits_while_the_balance_answers(api: Caller, forbidden: bool | str) -> None:
    """403 for the model, not for the account."""
    api.sandbox.faults(forbidden=forbidden)
    answer = api.submit()
    assert answer.status == 403
    assert answer.json == {"code": 403, "message": "account suspended", "error_code": "ACCOUNT_SUSPENDED"}
    assert api.call("GET", "balance").status == 200
    assert api.submit(model="openai/dall-e-3").status == (403 if forbidden is True else 200)


@pytest.mark.parametrize(("switch", "status"), [({}, 400), ({"credit_402": True}, 402)])
def test_no_credit_is_refused_as_documented(api: Caller, switch: dict[str, object], status: int) -> None:
    """A 400, surprisingly; and the balance shows why."""
    api.sandbox.faults(no_credit=True, **switch)
    answer = api.submit()
    assert (answer.status, answer.json["code"]) == (status, status)
    assert answer.json["message"] == "Insufficient credits. Please top up your account to continue."
    assert api.call("GET", "balance").data == {"balance": 0}
    api.sandbox.faults(no_credit=False)
    assert api.call("GET", "balance").data == {"balance": 1000}


# How tasks end


def test_moderation_fails_a_task_with_code_1200(api: Caller, strike: Any) -> None:
    """Accepted with 200, failed later: not an HTTP error."""
    failed = api.run(strike("fail"))
    assert (failed["status"], failed["code"], failed["outputs"], failed["has_nsfw_contents"]) == (
        "failed",
        1200,
        [],
        [],
    )
    assert failed["error"] == "The content contains sensitive information."


def test_flagged_outputs_are_delivered_nonetheless(api: Caller, strike: Any) -> None:
    """What to do with them is the caller's decision."""
    flagged = api.run(strike("nsfw"))
    assert (flagged["status"], flagged["has_nsfw_contents"]) == ("completed", [True])
    assert fetch("GET", flagged["outputs"][0]).status == 200


@pytest.mark.parametrize("status", ["failed", "cancelled", "timeout", "deleted"])
def test_tasks_can_end_in_every_documented_way(api: Caller, status: str) -> None:
    """All four are failures, and paid back."""
    ended = api.run(f"[sandbox:ends_as={status}]")
    assert (ended["status"], ended["outputs"]) == (status, [])
    assert ended["error"]
    assert api.call("GET", "balance").data == {"balance": 1000}


def test_a_missing_prompt_can_fail_later(api: Caller) -> None:
    """Whether it is a 400 or a failed task is not documented; both are here."""
    api.sandbox.faults(missing_prompt_fails=True)
    answer = api.call("POST", DALLE, {})
    failed = api.ended(answer.data["id"])
    assert (failed["status"], failed["code"]) == ("failed", 1400)


def test_generation_takes_its_time(api: Caller) -> None:
    """Until then the status is processing; an interval draws between its ends."""
    api.sandbox.faults(generation_s=[500, 600])
    slow = api.start()
    quick = api.run("[sandbox:generation_s=0]")
    assert quick["status"] == "completed"
    assert api.result(slow)["status"] == "processing"


# Reading


def test_reads_can_answer_500(api: Caller) -> None:
    """A poller has to try again."""
    task = api.start()
    api.sandbox.faults(read_500=1)
    assert api.call("GET", f"predictions/{task}/result").status == 500
    assert api.call("POST", "predictions", {}).status == 500


def test_a_task_can_enter_the_list_late(api: Caller) -> None:
    """Absence from the list proves nothing at first."""
    hidden = api.start("[sandbox:list_lag_s=600]")
    shown = api.start("[sandbox:list_lag_s=0]")
    late = api.start("[sandbox:list_lag_s=0.05]")
    assert eventually(lambda: [item["id"] for item in api.list() if item["id"] == late])
    assert [item["id"] for item in api.list()] == [late, shown]
    assert api.result(hidden)["id"] == hidden


# Files


@pytest.mark.parametrize(("switch", "status"), [({}, 403), ({"file_expired_404": True}, 404)])
def test_an_expired_file_is_denied(api: Caller, strike: Any, switch: dict[str, object], status: int) -> None:
    """Which of the two is not documented."""
    prompt = strike("file_expired")
    api.sandbox.faults(**switch)
    assert fetch("GET", api.run(prompt)["outputs"][0]).status == status


def test_a_cut_file_ends_before_its_length(api: Caller, strike: Any) -> None:
    """Half a picture must not be archived as a whole one."""
    url = api.run(strike("file_cut"))["outputs"][0]
    with pytest.raises(http.client.IncompleteRead) as caught:
        fetch("GET", url)
    assert len(caught.value.partial) > 0
    assert fetch("HEAD", url).status == 200


def test_a_cut_file_can_be_had_whole_at_another_try(api: Caller) -> None:
    """A share is drawn for each download, so that retries on the same URL make sense."""
    url = api.run()["outputs"][0]
    api.sandbox.faults(file_cut=0.5, seed=3)

    def tries() -> bool:
        try:
            return fetch("GET", url).body.endswith(b"IEND\xaeB`\x82")
        except http.client.IncompleteRead:
            return False

    outcomes = {tries() for _ in range(20)}
    assert outcomes == {True, False}


# The dial itself


def test_the_dial_shows_what_can_be_sent_back(api: Caller) -> None:
    """GET, change, POST."""
    api.sandbox.faults(generation_s=[0, 1], limits={"per_window": 3}, fail=0.5, level="gold")
    shown = api.sandbox.faults()
    assert shown["generation_s"] == [0, 1]
    assert shown["limits"] == {"per_window": 3, "concurrent": None}
    assert shown["webhook_retry_s"] == 0.01
    assert api.sandbox.faults(**shown) == shown


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("fial", 1, "there is no such fault"),
        ("fail", 1.5, "a share from 0 to 1"),
        ("fail", "often", "a share from 0 to 1"),
        ("fail", None, "a share from 0 to 1"),
        ("generation_s", -1, "seconds, or [min, max]"),
        ("generation_s", [2, 1], "seconds, or [min, max]"),
        ("generation_s", [1, 2, 3], "seconds, or [min, max]"),
        ("revoked", 1, "true or false"),
        ("forbidden", 1, "true, false or a model id"),
        ("level", "iron", '"bronze", "silver", "gold", "ultra"'),
        ("limits", {"per_minute": 1}, '{"per_window": n, "concurrent": n}'),
        ("limits", {"per_window": -1}, '{"per_window": n, "concurrent": n}'),
        ("file_kb", 0.5, "a whole number"),
        ("file_kb", 200_000, "up to 102400"),
        ("first_status", "done", '"created"'),
        ("seed", "x", "a whole number"),
        ("retry_after_s", True, "a number from 0"),
    ],
)
def test_a_bad_fault_names_its_field_and_changes_nothing(api: Caller, name: str, value: object, reason: str) -> None:
    """A typo in a test must not pass for a calm sea."""
    before = api.sandbox.faults()
    with pytest.raises(ValueError, match=f"^{name}: ") as caught:
        api.sandbox.faults(nsfw=1, **{name: value})
    assert reason in str(caught.value)
    assert api.sandbox.faults() == before


def test_a_dial_that_is_no_object_is_refused(api: Caller) -> None:
    """Control routes answer as clearly as the API's."""
    answer = fetch("POST", f"{api.sandbox.url}/_sandbox/faults", [1])
    assert answer.status == 400
    assert "JSON object" in answer.json["message"]


@pytest.mark.parametrize("card", ["fial", "revoked", "generation_s", "generation_s=soon", "fail=2", "level=gold"])
def test_a_bad_test_card_is_400_and_names_itself(api: Caller, card: str) -> None:
    """Faults of the whole account, and misspelt ones, cannot be had by prompt."""
    answer = api.submit(f"a lighthouse [sandbox:{card}]")
    assert answer.status == 400
    assert answer.json["message"].startswith(f"sandbox: {card.partition('=')[0]}: ")


def test_a_prompt_may_carry_several_cards(api: Caller) -> None:
    """Numbers, intervals and words too, and they outlive a change of the dial."""
    prompt = "[sandbox:nsfw] [sandbox:generation_s=[0,0.01]] [sandbox:file_kb=64] [sandbox:first_status=pending]"
    answer = api.submit(prompt)
    assert answer.data["status"] == "pending"
    done = api.ended(answer.data["id"])
    api.sandbox.faults(file_kb=1)
    assert done["has_nsfw_contents"] == [True]
    assert len(fetch("GET", done["outputs"][0]).body) == 64 * 1024


def test_a_card_hits_its_own_task_only(api: Caller) -> None:
    """Otherwise it would be a dial."""
    assert [api.run(prompt)["status"] for prompt in ("[sandbox:fail]", "calm")] == ["failed", "completed"]


def test_a_seed_makes_the_faults_repeatable(api: Caller) -> None:
    """A failed chaos run can be run again; another seed gives another run."""

    def run(seed: int) -> list[Any]:
        api.sandbox.reset()
        api.sandbox.faults(seed=seed, status_429=0.3, gateway_504=0.3, fail=0.4, generation_s=[0, 0.01])
        answers = [api.submit(f"number {n % 10}").status for n in range(30)]
        eventually(lambda: all(row["status"] != "processing" for row in api.sandbox.ledger()))
        return [answers, [row["status"] for row in api.sandbox.ledger()]]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert {200, 429, 504} == set(run(1)[0])


def test_a_fate_belongs_to_the_prompt_not_to_the_order(api: Caller) -> None:
    """Workers submit concurrently: with a seed, the same prompts still meet the same faults. A repeat is drawn anew."""

    def run(prompts: list[str]) -> dict[str, int]:
        api.sandbox.faults(seed=5, status_429=0.5)
        return {prompt: api.submit(prompt).status for prompt in prompts}

    prompts = [f"number {n}" for n in range(20)]
    assert run(prompts) == run(prompts[::-1])
    again = {prompt: api.submit(prompt).status for prompt in prompts}
    assert again != run(prompts)


def test_reset_returns_to_the_start(api: Caller) -> None:
    """Tests share a process and nothing else."""
    api.sandbox.faults(fail=1, **SLOW)
    api.start()
    api.sandbox.set_balance(3)
    api.sandbox.reset()
    assert api.sandbox.ledger() == api.sandbox.deliveries() == api.list() == []
    assert api.call("GET", "balance").data == {"balance": 1000}
    faults = api.sandbox.faults()
    assert (faults["fail"], faults["generation_s"]) == (0, 0.02)
    assert api.sandbox.arrivals()["running"] == 0


def test_reset_lets_go_of_those_who_wait(api: Caller) -> None:
    """A sync submit that hangs is answered, not forgotten."""
    api.sandbox.faults(**SLOW)
    connection = http.client.HTTPConnection(api.sandbox.url.removeprefix("http://"), timeout=30)
    body = b'{"prompt":"x","enable_sync_mode":true}'
    connection.request("POST", f"/api/v3/{DALLE}", body, {"Authorization": "Bearer key"})
    eventually(api.sandbox.ledger)
    api.sandbox.reset()
    assert connection.getresponse().status == 200
    connection.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from([*Faults().as_json(), "x"]), st.none() | st.booleans() | st.floats() | st.text())
)
def test_whatever_is_sent_the_dial_takes_it_or_names_it(changes: dict[str, object]) -> None:
    """No other exception, and what was taken can be shown and taken again."""
    try:
        faults = Faults().merged(changes)
    except BadFault as refusal:
        named = str(refusal).partition(":")[0]
    else:
        named = ""
        assert Faults().merged(faults.as_json()) == faults
    assert named == "" or named in changes


def test_arrivals_are_stamped_by_the_wall_clock(api: Caller) -> None:
    """Limiter tests compare them with each other and with their own clock."""
    before = time.time()
    api.submit()
    (at,) = api.sandbox.arrivals()["at"]
    assert before <= at <= time.time()
