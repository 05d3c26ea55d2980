"""A service may ask so often, over all web processes together: it is told where it stands, and others feel nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from pipeline.runtime import Runtime
from pipeline.store import paces
from pipeline.web import create_app
from tests.conftest import Caller
from tests.factories import at_once, execute, scalar

OWES = "SELECT extract(epoch FROM spent_until - clock_timestamp()) FROM paces"


@pytest.fixture
def door(rt: Runtime) -> FlaskClient:
    """Give a client of a web app on the tests' database."""
    return create_app(rt).test_client()


def limit(rt: Runtime, caller: Caller, per_minute: int) -> None:
    """Let a service make so many requests a minute."""
    sql = "UPDATE services SET requests_per_minute = :per_minute WHERE id = :id"
    execute(rt, sql, id=caller.service.id, per_minute=per_minute)


def as_caller(caller: Caller) -> dict[str, str]:
    return {"Authorization": f"Bearer {caller.key}"}


def test_a_service_that_passes_its_limit_is_told_when_to_come_again(
    rt: Runtime, door: FlaskClient, caller: Caller
) -> None:
    """A minute's worth may come at once; then the headers, the problem and Retry-After say the same."""
    limit(rt, caller, 3)

    answers = [door.get("/v1/jobs/x", headers=as_caller(caller)) for _ in range(5)]

    assert [answer.status_code for answer in answers] == [404, 404, 404, 429, 429]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"service";q=3;w=60'}
    assert [answer.headers["RateLimit"] for answer in answers] == [
        '"service";r=2;t=40',
        '"service";r=1;t=20',
        '"service";r=0;t=20',
        '"service";r=0;t=20',
        '"service";r=0;t=20',
    ]
    refused = answers[3]
    assert refused.headers["Retry-After"] == "20"
    assert refused.content_type == "application/problem+json"
    problem: Any = refused.get_json(force=True)
    assert (problem["code"], problem["status"]) == ("rate_limited", 429)
    assert "Retry-After" not in answers[2].headers


def test_a_refused_request_costs_nothing(rt: Runtime, door: FlaskClient, caller: Caller) -> None:
    """Else a caller that comes too early again and again would never be heard."""
    limit(rt, caller, 1)
    assert door.get("/v1/jobs/x", headers=as_caller(caller)).status_code == 404
    spent = scalar(rt, "SELECT spent_until FROM paces")

    for _ in range(3):
        assert door.get("/v1/jobs/x", headers=as_caller(caller)).status_code == 429

    assert scalar(rt, "SELECT spent_until FROM paces") == spent
    execute(rt, "UPDATE paces SET spent_until = spent_until - interval '60 s'")
    assert door.get("/v1/jobs/x", headers=as_caller(caller)).status_code == 404
    assert 59 < scalar(rt, OWES) <= 60


def test_a_long_rest_earns_a_minute_and_no_more(rt: Runtime, caller: Caller) -> None:
    """A service that slept for a day may not make a day's requests at once."""
    limit(rt, caller, 3)
    execute(rt, "INSERT INTO paces VALUES (:id, clock_timestamp() - interval '1 day')", id=caller.service.id)

    assert [passed(rt, caller.key) for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("per_minute", [1, 7, 60, 900, 2**31 - 1])
def test_what_is_said_to_remain_can_be_had(per_minute: int, rt: Runtime, caller: Caller) -> None:
    """Whatever sixty seconds divided by it is rounded to."""
    limit(rt, caller, per_minute)
    with rt.db.transaction() as tx:
        remaining = []
        for _ in range(min(per_minute, 70)):
            admitted = paces.admit(tx, caller.key)
            assert admitted
            assert admitted[1]
            assert not admitted[1].passed
            remaining.append(admitted[1].remaining)

    assert all(per_minute - asked <= left <= per_minute for asked, left in enumerate(remaining, 1))
    if per_minute < 60:
        assert remaining == list(range(per_minute))[::-1]
        assert passed(rt, caller.key)


def passed(rt: Runtime, key: str) -> bool:
    with rt.db.transaction() as tx:
        admitted = paces.admit(tx, key)
    assert admitted
    assert admitted[1]
    return admitted[1].passed


def test_a_limit_holds_over_all_processes(rt: Runtime, caller: Caller) -> None:
    """Twenty ask in the same moment, each by a connection of its own."""
    limit(rt, caller, 5)

    assert sorted(at_once(lambda _: passed(rt, caller.key), 20)) == [False] * 5 + [True] * 15


def test_others_feel_nothing_of_a_limit(
    rt: Runtime, door: FlaskClient, caller: Caller, make_caller: Callable[..., Caller]
) -> None:
    """A service without one writes nothing when it asks, and is told of none; nor is a stranger."""
    limit(rt, caller, 1)
    other = make_caller("blog")

    answers = [door.get("/v1/jobs/x", headers=as_caller(other)) for _ in range(3)]
    answers.append(door.get("/v1/jobs/x", headers={"Authorization": "Bearer pk_nobody"}))

    assert [answer.status_code for answer in answers] == [404, 404, 404, 401]
    assert not [name for answer in answers for name, _ in answer.headers if name.startswith("RateLimit")]
    assert scalar(rt, "SELECT count(*) FROM paces") == 0


def test_a_limit_may_be_changed_at_any_time(rt: Runtime, caller: Caller) -> None:
    """Nobody waits longer than the new limit asks for: what was spent under the old one is at most a minute."""
    limit(rt, caller, 600)
    execute(rt, "INSERT INTO paces VALUES (:id, clock_timestamp() + interval '29 s')", id=caller.service.id)
    limit(rt, caller, 2)
    assert [passed(rt, caller.key) for _ in range(2)] == [False, True]

    execute(rt, "UPDATE services SET requests_per_minute = NULL")
    with rt.db.transaction() as tx:
        admitted = paces.admit(tx, caller.key)
    assert admitted
    assert admitted[1] is None
