"""Nudges: few messages for many calls, and a broker that is away, or silent, delays nobody."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis

from pipeline.broker import QUEUE, make_celery
from pipeline.embedded.processes import Server
from pipeline.jobs import State
from pipeline.nudges import COALESCE_S, CROWDED_S, Crowd, Nudger
from pipeline.runtime import Runtime
from tests.conftest import Caller
from tests.factories import queued, state, until
from tests.http import get, post
from tests.serving import Served, serving
from tests.test_wavespeed import closed_port


@pytest.fixture
def broker(valkey: Server) -> Iterator[Any]:
    """Give a client of the Valkey server, emptied."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        yield client


def nudger(url: str, **options: float) -> Nudger:
    return Nudger(make_celery(url), url, **options)


def messages(broker: Any) -> list[dict[str, Any]]:
    return [json.loads(message) for message in broker.lrange(QUEUE, 0, -1)]


def test_a_nudge_is_a_small_json_message_that_names_no_job(valkey: Server, broker: Any) -> None:
    """It says: look. Whatever it is lost, doubled or late for, the rows know better."""
    nudger(valkey.url)("submit")

    (message,) = until(lambda: messages(broker))

    headers, body = message["headers"], message["body"]
    assert headers["task"] == "pipeline.submit"
    assert message["content-type"] == "application/json"
    assert (headers["eta"], headers["retries"], headers["ignore_result"]) == (None, 0, True)
    assert headers["expires"]  # an old nudge has nothing to say
    assert headers["argsrepr"] == "()"
    assert body


@pytest.mark.parametrize("kinds", [("submit",), ("submit", "poll", "reconcile")])
def test_many_nudges_are_few_messages(valkey: Server, broker: Any, kinds: tuple[str, ...]) -> None:
    """A batch of ten thousand jobs, or a thousand callbacks a second, must not be as many messages."""
    nudge = nudger(valkey.url)
    begun = time.monotonic()

    def insist() -> None:
        for _ in range(500):
            nudge(*kinds)

    threads = [threading.Thread(target=insist) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.monotonic() - begun

    wanted = {f"pipeline.{kind}" for kind in kinds}
    nudge.flush(60.0)
    assert {message["headers"]["task"] for message in messages(broker)} == wanted
    assert len(messages(broker)) <= len(kinds) * (took_s / COALESCE_S + 2)


def test_the_first_nudge_waits_for_nobody_and_the_next_ones_longer_the_more_there_are() -> None:
    """A job on a quiet night is sent at once; under load a message is for many."""
    quiet, crowd = Crowd(), Crowd()
    waits = [crowd.pause_s(calls=1 + number, now=number * 0.05) for number in range(20)]

    assert [quiet.pause_s(calls=1, now=second) for second in range(5)] == [COALESCE_S] * 5
    assert waits[0] == COALESCE_S
    assert waits == sorted(waits)
    assert waits[-1] == CROWDED_S
    assert crowd.pause_s(calls=1, now=60.0) == COALESCE_S  # it is quiet again


def test_a_nudge_during_the_sending_of_another_is_sent_too(valkey: Server, broker: Any) -> None:
    """Else a job accepted in that moment would wait for the sweep."""
    nudge = nudger(valkey.url)
    for number in range(1, 21):
        nudge("submit")
        until(lambda: len(messages(broker)) == number)  # noqa: B023


def test_without_a_broker_a_job_is_accepted_all_the_same(rt: Runtime, caller: Caller) -> None:
    """The row is the job; the next sweep finds it."""
    with closed_port() as port:
        nudge = nudger(f"redis://127.0.0.1:{port}/0")
        job_id = queued(replace(rt, nudge=nudge), caller.service)
        assert state(rt, job_id) == State.QUEUED
        until(lambda: nudge.failing)
        nudge("submit")


def test_a_broker_that_accepts_and_never_answers_holds_up_no_request(rt: Runtime, caller: Caller) -> None:
    """Tried without a thread of its own: 6 to 40 seconds for each request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nudge = nudger(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", timeout_s=120.0)
        nudge("submit")
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1)  # from now on, the sender waits for an answer

            job_id = queued(replace(rt, nudge=nudge), caller.service)
            for _ in range(1000):
                nudge("submit", "poll")

            assert state(rt, job_id) == State.QUEUED
            assert not nudge.failing  # it still waits


def hand_in(served: Served, caller: Caller) -> UUID:
    """Hand in a job over HTTP; it must be accepted."""
    answer = post(f"{served.url}/v1/jobs", {"input": {"prompt": "a lighthouse"}}, key=caller.key)
    assert answer.status == 201, answer
    return UUID(answer.json["id"])


def test_a_web_server_without_a_broker_accepts_jobs(
    rt: Runtime, environ: dict[str, str], caller: Caller, tmp_path: Path
) -> None:
    """Before it has noticed, and after; `/readyz` says what limps."""
    with closed_port() as port, serving(environ | {"BROKER_URL": f"redis://127.0.0.1:{port}/0"}, tmp_path) as served:
        jobs = [hand_in(served, caller)]
        until(lambda: "broker" in [one["what"] for one in get(f"{served.url}/readyz").json["degraded"]])
        jobs.append(hand_in(served, caller))

    assert [state(rt, job_id) for job_id in jobs] == [State.QUEUED] * 2


def test_a_web_server_accepts_a_job_while_its_broker_keeps_silent(
    rt: Runtime, environ: dict[str, str], caller: Caller, tmp_path: Path
) -> None:
    """A whole request goes by while the nudge of an earlier one still waits for the broker's first word."""

    def accepted_in_the_silence() -> bool:
        hand_in(served, caller)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1)  # from now on, the sender waits for an answer
            job_id = hand_in(served, caller)
            connection.setblocking(False)
            try:
                while connection.recv(4096):
                    pass
            except BlockingIOError:  # it still waits
                return state(rt, job_id) == State.QUEUED
            return False  # it gave up before: this machine is slow today, and nothing is shown

    with socket.create_server(("127.0.0.1", 0)) as listener:
        broker_url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        with serving(environ | {"BROKER_URL": broker_url}, tmp_path) as served:
            until(accepted_in_the_silence)


def test_a_silent_broker_is_given_up_and_tried_anew_with_the_next_nudge() -> None:
    """A connection that went dead must not be waited on for good."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nudge = nudger(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", timeout_s=0.2)
        nudge("submit")
        first, _ = listener.accept()
        until(lambda: nudge.failing)

        nudge("submit")
        second, _ = listener.accept()
        assert second.recv(1)
        first.close()
        second.close()


@pytest.mark.parametrize("schema", ["redis", "amqp"])
def test_a_broker_that_nothing_can_be_said_to_is_only_a_nudge_dropped(schema: str) -> None:
    """Whatever the library raises: garbage for an answer here."""

    def babble(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.sendall(b"\x00garbage\r\n" * 20)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=babble, args=(listener,))
        thread.start()
        nudge: Callable[..., None] = nudger(f"{schema}://127.0.0.1:{listener.getsockname()[1]}//", timeout_s=1.0)
        nudge("submit")
        thread.join()
        until(lambda: nudge.failing)  # type: ignore[attr-defined]


def test_nudges_go_out_again_once_the_broker_is_back(valkey: Server, broker: Any) -> None:
    """It keeps its address over a restart; nobody has to restart us."""
    nudge = nudger(valkey.url)
    nudge("submit")
    until(lambda: messages(broker))

    valkey.stop()
    until(lambda: nudge("poll") or nudge.failing)  # type: ignore[func-returns-value]
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        until(lambda: nudge("poll") or messages(client))  # type: ignore[func-returns-value]

    until(lambda: not nudge.failing)
