"""Custody: whoever operates this sees, and is told, what callers may lose, while there is time."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from pipeline import views
from pipeline.lifecycle.examine import Level, examine
from pipeline.runtime import Runtime
from pipeline.store import custody
from pipeline.sweep import sweep
from pipeline.web import create_app
from tests.conftest import Caller
from tests.factories import at_once, execute, scalar

TOKEN = "a-token-for-prometheus"

PLACED = """
    INSERT INTO assets (id, job_id, index, service_id, state, source_url, review, created_at)
    SELECT gen_random_uuid(), gen_random_uuid(), 0, :service_id, :state, :url, :review,
           now() - make_interval(secs => :hours * 3600.0)
    FROM generate_series(1, :many)
"""


@pytest.fixture
def client(make_rt: Callable[..., Runtime], rt: Runtime) -> Iterator[FlaskClient]:
    """Give a web process whose operator has set a token."""
    with create_app(make_rt(metrics_token=SecretStr(TOKEN))).test_client() as client:
        yield client


def placed(
    rt: Runtime,
    caller: Caller,
    hours: float = 0.0,
    state: str = "pending",
    many: int = 1,
    *,
    url: str | None = "https://cdn.example.com/1.png",
    review: str | None = None,
) -> None:
    """Outputs of so many hours ago."""
    parameters = {"hours": hours, "state": state, "many": many, "url": url, "review": review}
    execute(rt, PLACED, service_id=caller.service.id, **parameters)


def scraped(client: FlaskClient) -> dict[Any, float]:
    """What Prometheus reads: the figures by name, or by name and label."""
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {
        (sample.name, *sample.labels.values()) if sample.labels else sample.name: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_prometheus_reads_what_callers_may_lose(rt: Runtime, caller: Caller, client: FlaskClient) -> None:
    """By days left, so that an alarm can say how many there are; outputs that are no files are in our rows already."""
    execute(rt, "UPDATE account SET archiving = true")
    placed(rt, caller, hours=0.5, many=3)
    placed(rt, caller, hours=25)
    placed(rt, caller, hours=6.5 * 24, many=2)
    placed(rt, caller, hours=9 * 24)
    placed(rt, caller, hours=24, url=None)
    placed(rt, caller, state="lost", many=2)
    placed(rt, caller, state="lost", review="purged")
    placed(rt, caller, hours=31 * 24, state="lost")
    placed(rt, caller, state="lost", review="quarantined")
    execute(
        rt,
        "INSERT INTO notifications (id, event, audience, state) VALUES (gen_random_uuid(), 'x', 'operator', 'dead')",
    )
    found = scraped(client)
    days = {int(key[1]): value for key, value in found.items() if key[0] == "pipeline_outputs_unarchived"}
    assert days == {0: 3, 1: 0, 2: 0, 3: 0, 4: 0, 5: 1, 6: 3}
    oldest_s = found.pop("pipeline_outputs_unarchived_oldest_seconds")
    assert 0 <= oldest_s - 9 * 86_400 < 60
    told = {
        "pipeline_outputs_lost": 3,
        "pipeline_outputs_quarantined": 1,
        "pipeline_notifications_dead": 1,
        "pipeline_archiving": 1,
    }
    assert {name: found[name] for name in told} == told


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff\xfe", TOKEN],
)
def test_metrics_are_for_who_has_the_token(client: FlaskClient, caller: Caller, header: str | None) -> None:
    """How much work there is, and how well it goes, is the operator's business; a service's key does not open it."""
    headers = {} if header is None else {"Authorization": header}
    answer = client.get("/metrics", headers=headers)
    assert (answer.status_code, answer.get_json()["code"]) == (401, "unauthorized")
    assert client.get("/metrics", headers={"Authorization": f"Bearer {caller.key}"}).status_code == 401


def test_without_a_token_there_are_no_metrics(rt: Runtime) -> None:
    """Nobody meant to show them; an empty token opens nothing."""
    client = create_app(rt).test_client()
    for header in ("Bearer ", "Bearer None"):
        assert client.get("/metrics", headers={"Authorization": header}).status_code == 404


def notices(rt: Runtime) -> int:
    return int(scalar(rt, "SELECT count(*) FROM notifications WHERE event = 'outputs.at_risk'"))


def test_the_operator_is_told_of_outputs_at_risk_before_the_third_day_and_once_a_day(
    rt: Runtime, make_rt: Callable[..., Runtime], caller: Caller
) -> None:
    """There is time to mend the archive, and a reminder; but not one with every sweep of every worker."""
    placed(rt, caller, hours=59)
    sweep(rt, lambda *_: None)
    assert notices(rt) == 0
    placed(rt, caller, hours=61, many=3)
    sweep(make_rt(archive_url="off"), lambda *_: None)
    assert notices(rt) == 0, "who chose not to keep them knows"

    def tell(_number: int) -> int | None:
        with rt.db.transaction() as tx:
            return custody.tell_of_risk(tx)

    assert sorted(at_once(tell, 4), key=str) == [3, None, None, None]
    sweep(rt, lambda *_: None)
    assert notices(rt) == 1
    data = scalar(rt, "SELECT data FROM notifications WHERE event = 'outputs.at_risk'")
    assert (data["count"], data["oldest_at"] < data["deleted_from"]) == (3, True)
    with rt.db.transaction() as tx:
        oldest = tx.exec_driver_sql("SELECT min(created_at) FROM assets WHERE state = 'pending'").scalar_one()
    assert data["oldest_at"] == views.time(oldest), "spelled as everywhere else"
    execute(rt, "UPDATE account SET at_risk_at = at_risk_at - interval '25 h'")
    sweep(rt, lambda *_: None)
    assert notices(rt) == 2
    execute(rt, "UPDATE account SET at_risk_at = NULL")
    execute(rt, "UPDATE assets SET state = 'lost'")
    sweep(rt, lambda *_: None)
    assert notices(rt) == 2


@pytest.mark.parametrize(("hours", "level"), [(1, Level.OK), (61, Level.WARN), (145, Level.FAIL)])
def test_the_doctor_says_how_long_there_is_to_mend_the_archive(
    make_rt: Callable[..., Runtime], rt: Runtime, caller: Caller, hours: int, level: Level
) -> None:
    """A day before something is lost it is no mere warning."""
    placed(rt, caller, hours=hours)
    placed(rt, caller, state="lost")
    offline = make_rt(public_url=None, wavespeed_api_key=None)
    found = {finding.what: finding for finding in examine(offline)}
    assert found["outputs"].level is level
    assert f"in {168 - hours} h" in found["outputs"].words
    assert (found["lost"].level, found["lost"].words) == (Level.WARN, "lost in the last 30 days: 1")


def test_ready_names_outputs_at_risk_and_receivers_that_are_switched_off(
    make_rt: Callable[..., Runtime], rt: Runtime, caller: Caller
) -> None:
    """A platform's dashboard shows that page; who chose not to keep outputs knows. Nobody's address is told."""

    def degraded(one: Runtime = rt) -> dict[str, str]:
        found = create_app(one).test_client().get("/readyz").get_json()["degraded"]
        return {each["what"]: each["why"] for each in found}

    placed(rt, caller, hours=59)
    placed(rt, caller, hours=99, url=None)
    failing = "INSERT INTO endpoints (name, failing_since) VALUES ('shop https://shop.example', clock_timestamp())"
    execute(rt, failing)
    assert not {"outputs", "receivers"} & degraded().keys()
    placed(rt, caller, hours=61)
    execute(rt, "UPDATE endpoints SET off_at = clock_timestamp(), probe_at = clock_timestamp()")
    assert "in 107 h" in degraded()["outputs"]
    assert "pipeline notifications endpoints" in degraded()["receivers"]
    assert "shop" not in degraded()["receivers"]
    assert "outputs" not in degraded(make_rt(archive_url="off"))
