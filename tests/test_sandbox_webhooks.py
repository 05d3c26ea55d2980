"""The sandbox's webhooks, checked by a receiver that knows the documentation and none of our code."""

import hashlib
import hmac
import json
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from pipeline.sandbox import Sandbox, running
from tests.sandbox_fixtures import QUICK, SLOW, Caller, Received, Receiver, eventually, fetch, receiving


def authentic(secret: str, message: Received, now: int | None = None) -> bool:
    """The provider's documented check, steps 1 to 6, with the age check when *now* is given."""
    headers = {name.lower(): value for name, value in message.headers.items()}
    version, given = headers["webhook-signature"].split(",")
    if version != "v3" or (now is not None and abs(now - int(headers["webhook-timestamp"])) > 300):
        return False
    key = secret.removeprefix("whsec_").encode()
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + message.body
    return hmac.compare_digest(hmac.new(key, content, hashlib.sha256).hexdigest(), given)


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


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def secret(api: Caller) -> str:
    return str(api.call("GET", "webhook/secret").data["secret"])


def ended(sandbox: Sandbox, count: int = 1) -> list[dict[str, Any]]:
    """The delivery log, once *count* deliveries are over."""

    def look() -> list[dict[str, Any]] | None:
        rows = sandbox.deliveries()
        return rows if len(rows) >= count and all(row["state"] != "pending" for row in rows) else None

    return eventually(look)


def test_the_end_of_a_task_is_told_in_a_signed_prediction(api: Caller, receiver: Receiver, secret: str) -> None:
    """The bare object, not the envelope, under the three documented headers."""
    task = api.start("a <lighthouse>", webhook=receiver.url)
    (message,) = receiver.wait(1)
    assert authentic(secret, message, now=int(time.time()))
    assert message.headers["Content-Type"] == "application/json"
    assert message.headers["webhook-id"] == task
    assert message.prediction == api.result(task)
    assert message.prediction["status"] == "completed"
    assert "input" not in message.prediction
    (row,) = ended(api.sandbox)
    assert (row["kind"], row["state"], [entry["status"] for entry in row["tries"]]) == ("true", "delivered", [204])


def test_a_changed_body_or_another_secret_does_not_verify(api: Caller, receiver: Receiver, secret: str) -> None:
    """The check of this page can say no."""
    api.start(webhook=receiver.url)
    (message,) = receiver.wait(1)
    assert not authentic(secret, Received(message.path, message.headers, message.body + b" "))
    assert not authentic("whsec_other", message)


def test_failures_are_told_with_their_code(api: Caller, receiver: Receiver, secret: str) -> None:
    """`completed` and `failed` are sent, nothing else."""
    api.start("[sandbox:fail]", webhook=receiver.url)
    (message,) = receiver.wait(1)
    assert authentic(secret, message)
    assert (message.prediction["status"], message.prediction["code"]) == ("failed", 1200)


def test_the_webhook_url_arrives_as_it_was_given(api: Caller, receiver: Receiver) -> None:
    """A token in the path, and a query, are how a lost submit is found again."""
    path = "/hook/a%2Fb%20c/tok-en_~?x=1&y=%C3%A9+z"
    api.start(webhook=receiver.url.removesuffix("/hook") + path)
    assert receiver.wait(1)[0].path == path


@pytest.mark.parametrize("refusal", [500, 404, 302])
def test_a_refused_delivery_is_tried_three_times_more(api: Caller, receiver: Receiver, refusal: int) -> None:
    """Anything but 2xx; redirects are not followed. Id, timestamp and signature stay."""
    receiver.answers = [refusal] * 4
    task = api.start(webhook=receiver.url)
    (row,) = ended(api.sandbox)
    assert row["state"] == "failed"
    assert [entry["status"] for entry in row["tries"]] == [refusal] * 4
    assert {message.path for message in receiver.received} == {"/hook"}
    assert len({(message.body, message.headers["webhook-signature"]) for message in receiver.received}) == 1
    assert api.result(task)["status"] == "completed"


def test_a_retry_that_is_heard_is_the_last(api: Caller, receiver: Receiver) -> None:
    """Heard once is enough."""
    receiver.answers = [503, 503]
    api.start(webhook=receiver.url)
    (row,) = ended(api.sandbox)
    assert (row["state"], [entry["status"] for entry in row["tries"]]) == ("delivered", [503, 503, 204])


def test_the_delays_between_tries_double(api: Caller, receiver: Receiver) -> None:
    """1, 2 and 4 times the base: by the log's own clock, never sooner."""
    receiver.answers = [500] * 4
    api.start("[sandbox:webhook_retry_s=0.05]", webhook=receiver.url)
    (row,) = ended(api.sandbox)
    at = [entry["at"] for entry in row["tries"]]
    waits = [later - earlier for earlier, later in pairwise(at)]
    assert all(wait > 0.95 * least for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True))


def test_a_receiver_that_is_away_is_logged_as_an_error(api: Caller) -> None:
    """No answer is a failure as well."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        api.start(webhook=f"http://127.0.0.1:{unused.getsockname()[1]}/hook")
        (row,) = ended(api.sandbox)
    assert row["state"] == "failed"
    assert [(entry["status"], entry["error"]) for entry in row["tries"]] == [(None, "ClientConnectorError")] * 4


def test_a_receiver_that_never_answers_holds_up_nobody(api: Caller, receiver: Receiver) -> None:
    """Each try has a timeout, and the others are sent meanwhile."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/hook"
        hung = api.start("[sandbox:webhook_timeout_s=0.2]", webhook=url)
        api.start(webhook=receiver.url)
        receiver.wait(1)
        ended(api.sandbox, 2)
    (row,) = api.sandbox.deliveries(hung)
    assert [entry["error"] for entry in row["tries"]] == ["TimeoutError"] * 4


def test_a_timestamp_can_be_renewed_on_each_try(api: Caller, receiver: Receiver, secret: str) -> None:
    """Whether it is, is not documented: receivers are tested with both."""
    api.sandbox.faults(webhook_renew_timestamp=True, webhook_stale=1)
    receiver.answers = [500]
    api.start(webhook=receiver.url)
    first, second = receiver.wait(2)
    now = int(time.time())
    assert [authentic(secret, message) for message in (first, second)] == [True, True]
    assert [authentic(secret, message, now) for message in (first, second)] == [False, True]


def test_a_dropped_webhook_is_never_sent_until_it_is_resent(api: Caller, receiver: Receiver, secret: str) -> None:
    """The case the poller exists for; resending is what a support engineer would do."""
    task = api.start("[sandbox:webhook_drop]", webhook=receiver.url)
    (row,) = ended(api.sandbox)
    assert (row["state"], row["tries"], receiver.received) == ("dropped", [], [])
    sent = api.sandbox.resend(row["id"])
    assert (sent["kind"], sent["state"], sent["prediction_id"]) == ("resent", "delivered", task)
    assert authentic(secret, receiver.wait(1)[0], now=int(time.time()))


def test_a_delivered_webhook_can_be_resent(api: Caller, receiver: Receiver) -> None:
    """The same event once more: same id, same body. One try, whatever it is answered."""
    api.start(webhook=receiver.url)
    (row,) = ended(api.sandbox)
    receiver.answers = [500]
    assert api.sandbox.resend(row["id"])["state"] == "failed"
    assert api.sandbox.resend(row["id"])["state"] == "delivered"
    first, *others = receiver.wait(3)
    assert {message.body for message in others} == {first.body}
    assert {message.headers["webhook-id"] for message in others} == {first.headers["webhook-id"]}
    with pytest.raises(ValueError, match="Delivery not found"):
        api.sandbox.resend("none")


def test_duplicates_are_two_to_four_equal_messages(api: Caller, receiver: Receiver) -> None:
    """They must be expected, and change nothing."""
    counts = set()
    for number in range(12):
        task = api.start(f"[sandbox:webhook_duplicate] {number}", webhook=receiver.url)
        eventually(lambda task=task: api.sandbox.deliveries(task))  # type: ignore[misc]
        kinds = [row["kind"] for row in api.sandbox.deliveries(task)]
        assert kinds == ["true"] + ["duplicate"] * (len(kinds) - 1)
        counts.add(len(kinds))
    assert counts <= {2, 3, 4}
    assert len(counts) > 1
    total = len(api.sandbox.deliveries())
    messages = receiver.wait(total)
    assert len({(message.body, message.headers["webhook-signature"]) for message in messages}) == 12


def test_the_copies_of_a_webhook_may_come_one_by_one(api: Caller, receiver: Receiver) -> None:
    """A copy that comes when the first is long forgotten is a copy still."""
    task = api.start("[sandbox:webhook_duplicate] [sandbox:webhook_spread_s=[0.2, 0.6]]", webhook=receiver.url)
    rows = eventually(lambda: api.sandbox.deliveries(task))
    messages = receiver.wait(len(rows))
    assert len(rows) > 1
    assert len({message.body for message in messages}) == 1
    first, *copies = sorted(entry["at"] for row in api.sandbox.deliveries(task) for entry in row["tries"])
    assert all(at >= first + 0.2 for at in copies)


def test_a_stale_webhook_is_authentic_and_too_old(api: Caller, receiver: Receiver, secret: str) -> None:
    """Signed right, out of the window: a hint, not a fact."""
    api.start("[sandbox:webhook_stale]", webhook=receiver.url)
    (message,) = receiver.wait(1)
    assert authentic(secret, message)
    assert not authentic(secret, message, now=int(time.time()))


@pytest.mark.parametrize(("card", "claim"), [("nsfw", "failed"), ("fail", "completed")])
def test_a_forgery_comes_beside_the_true_one(
    api: Caller, receiver: Receiver, secret: str, card: str, claim: str
) -> None:
    """It claims the contrary under a wrong key, so that a receiver that believes it is found out."""
    task = api.start(f"[sandbox:webhook_forge] [sandbox:{card}]", webhook=receiver.url)
    messages = receiver.wait(2)
    (true,) = (message for message in messages if authentic(secret, message))
    (forged,) = (message for message in messages if not authentic(secret, message))
    assert true.prediction == api.result(task)
    assert (forged.prediction["id"], forged.prediction["status"]) == (task, claim)


def test_an_early_webhook_comes_before_the_answer(api: Caller, receiver: Receiver) -> None:
    """The caller hears of the end of a task whose id it does not know yet."""
    answer = api.submit("[sandbox:webhook_early]", webhook=receiver.url)
    (message,) = receiver.received
    assert message.prediction["status"] == "completed"
    assert message.prediction["id"] == answer.data["id"]
    assert answer.data["status"] == "created"


@pytest.mark.parametrize("hindrance", ["", "[sandbox:webhook_drop]", "[sandbox:ends_as=timeout]"])
def test_an_early_webhook_that_is_not_to_come_delays_no_answer(api: Caller, hindrance: str) -> None:
    """Waiting for it would be waiting forever."""
    url = "http://127.0.0.1:9/hook" if hindrance else None
    assert api.submit(f"[sandbox:webhook_early] {hindrance}", webhook=url).status == 200


def test_a_webhook_can_be_late(api: Caller, receiver: Receiver, secret: str) -> None:
    """By then a poll has seen the end; the stamp is that of the event, which is why it can come too late."""
    task = api.start("[sandbox:webhook_delay_s=1.05]", webhook=receiver.url)
    done = api.ended(task)
    (message,) = receiver.wait(1)
    assert authentic(secret, message, now=int(time.time()))
    assert message.prediction == done
    (row,) = ended(api.sandbox)
    assert row["tries"][0]["at"] - int(message.headers["webhook-timestamp"]) > 1


@pytest.mark.parametrize("status", ["cancelled", "timeout", "deleted"])
def test_rarer_ends_are_told_only_with_the_switch(api: Caller, receiver: Receiver, status: str) -> None:
    """Not documented either way."""
    api.run(f"[sandbox:ends_as={status}]", webhook=receiver.url)
    assert api.sandbox.deliveries() == []
    api.run(f"[sandbox:ends_as={status}] [sandbox:webhook_cancelled]", webhook=receiver.url)
    (message,) = receiver.wait(1)
    assert message.prediction["status"] == status


def test_the_input_is_echoed_with_the_switch(api: Caller, receiver: Receiver, secret: str) -> None:
    """One example of the documentation has it; the signature covers it, escapes and all."""
    api.sandbox.faults(webhook_input=True)
    api.start("<café>", webhook=receiver.url)
    (message,) = receiver.wait(1)
    assert message.prediction["input"] == {"prompt": "<café>"}
    assert "\\u003ccafé\\u003e".encode() in message.body
    assert authentic(secret, message)


def test_a_rotated_secret_signs_from_then_on(api: Caller, receiver: Receiver, secret: str) -> None:
    """There is no overlap: receivers have to fetch the new one."""
    new = api.sandbox.rotate_secret()
    assert new.startswith("whsec_")
    assert new != secret
    assert len(new) == len("whsec_") + 44
    assert api.call("GET", "webhook/secret").data == {"secret": new}
    api.start(webhook=receiver.url)
    (message,) = receiver.wait(1)
    assert authentic(new, message)
    assert not authentic(secret, message)
    api.sandbox.reset()
    assert api.call("GET", "webhook/secret").data == {"secret": secret}


def test_the_log_shows_what_was_sent(api: Caller, receiver: Receiver) -> None:
    """For the eyes of whoever debugs a receiver."""
    task = api.start(webhook=receiver.url)
    (message,) = receiver.wait(1)
    (row,) = ended(api.sandbox)
    shown = api.sandbox.delivery(row["id"])
    assert shown["body"].encode() == message.body
    assert shown["signature"] == message.headers["webhook-signature"]
    assert (shown["url"], shown["webhook_id"], shown["prediction_id"]) == (receiver.url, task, task)
    answer = fetch("GET", f"{api.sandbox.url}/_sandbox/deliveries?prediction_id={task}").json
    assert answer["count"] == 1
    assert json.dumps(shown["tries"]) == json.dumps(answer["deliveries"][0]["tries"])


def test_reset_stops_what_is_under_way(api: Caller, receiver: Receiver) -> None:
    """The webhooks of one test do not arrive in the next."""
    api.sandbox.faults(webhook_retry_s=600)
    receiver.answers = [500]
    api.start(webhook=receiver.url)
    receiver.wait(1)
    api.sandbox.faults(**SLOW)
    api.start(webhook=receiver.url)
    api.sandbox.reset()
    api.start(webhook=receiver.url)
    ended(api.sandbox)
    assert len(receiver.received) == 2
