"""The catalogue: a model and its input are checked before money is spent, by what the provider says it takes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import catalogue
from pipeline.catalogue import Offer
from pipeline.errors import InvalidInput
from pipeline.jobs import State
from pipeline.lifecycle import accept, again, batch
from pipeline.lifecycle.accept import check
from pipeline.models import UNREAD, Catalogue, Listing
from pipeline.runtime import Models, Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import alarms
from pipeline.store import catalogue as store
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import MODEL, execute, queued, row, scalar, state, swept, until
from tests.http import post
from tests.serving import serving
from tests.test_admission import written
from tests.test_cli import run_in, value

Run = Callable[..., subprocess.CompletedProcess[str]]

DALL_E_3 = "openai/dall-e-3"
SIZES = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}, "size": {"type": "string", "enum": ["1024*1024", "1792*1024"]}},
    "required": ["prompt"],
    "additionalProperties": False,
}


def read(rt: Runtime, *offers: Offer | str, believed: bool = False) -> store.Change:
    """Let the provider offer these and no others."""
    with rt.db.transaction() as tx:
        return store.keep(tx, [Offer(one) if isinstance(one, str) else one for one in offers], believed=believed)


def refused(known: Catalogue, model: str, **model_input: Any) -> dict[str, str]:
    """What the door says to a job: field and words."""
    value = {"model": model, "input": {"prompt": "a lighthouse", **model_input}}
    try:
        check(value, default_model=MODEL, catalogue=known)
    except InvalidInput as error:
        return {problem.field: problem.message for problem in error.errors}
    return {}


@pytest.fixture
def run(rt: Runtime, environ: dict[str, str]) -> Run:
    """Run a command on the tests' database."""
    return lambda *words: run_in(environ, *words)


# -- what the provider says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        None,
        "openai/dall-e-3",
        {},
        {"model_id": 7},
        {"model_id": "no maker"},
        {"model_id": "predictions/all"},
        {"model_id": "a/b\x00c"},
    ],
    ids=repr,
)
def test_one_odd_entry_does_not_lose_the_others(odd: object) -> None:
    """A catalogue of a thousand models has one of every kind in it."""
    entry = {
        "model_id": DALL_E_3,
        "type": "text-to-image",
        "description": 5,
        "api_schema": {"api_schemas": [None, odd]},
    }
    assert catalogue.read([odd, entry, odd]) == [Offer(DALL_E_3, "text-to-image")]


def test_the_schema_is_that_of_a_run() -> None:
    """A model may have other calls, with other fields."""
    calls = [{"type": "model_upload", "request_schema": {"x": 1}}, {"type": "model_run", "request_schema": SIZES}]
    (found,) = catalogue.read([{"model_id": DALL_E_3, "api_schema": {"api_schemas": calls}}])
    assert found.schema == SIZES


def test_a_worker_reads_the_catalogue_when_none_was_read(
    rt: Runtime, sandbox: Sandbox, start_worker: Callable[..., Worker]
) -> None:
    """So that the first jobs are checked as well; and then once a day, whoever sweeps."""
    execute(rt, "UPDATE account SET models_fetched_at = NULL")
    with rt.db.transaction() as tx:
        assert "models" in alarms.due(tx)
    worker = start_worker()
    until(lambda: scalar(rt, "SELECT count(*) FROM models WHERE listed_at IS NOT NULL") == 5)
    assert scalar(rt, "SELECT schema->'properties'->'size'->>'default' FROM models WHERE id = :id", id=DALL_E_3)
    with rt.db.transaction() as tx:
        assert "models" not in alarms.due(tx)
        assert not store.claim_reading(tx)
    execute(rt, "UPDATE models SET withdrawn_at = now()")
    execute(rt, "UPDATE account SET models_fetched_at = models_fetched_at - interval '25 h'")
    swept(worker, lambda: not scalar(rt, "SELECT count(*) FROM models WHERE withdrawn_at IS NOT NULL"))


def test_a_reading_that_failed_is_tried_again_in_minutes_and_by_one_process(rt: Runtime) -> None:
    """Not at every sweep, nor only tomorrow."""
    execute(rt, "UPDATE account SET models_fetched_at = NULL")
    with rt.db.transaction() as tx:
        assert store.claim_reading(tx)
        assert not store.claim_reading(tx)
        assert "models" not in alarms.due(tx)
    execute(rt, "UPDATE account SET models_fetched_at = models_fetched_at - interval '301 s'")
    with rt.db.transaction() as tx:
        assert "models" in alarms.due(tx)
        tx.exec_driver_sql("UPDATE account SET halted_reason = 'key_refused'")
        assert not store.claim_reading(tx), "a refused key is left alone"


def test_what_is_named_no_more_is_withdrawn_and_may_come_back(rt: Runtime) -> None:
    """The provider's upstreams end models; some return."""
    assert read(rt, "a/one", "a/two", "a/three") == store.Change(3, 3, 0, doubtful=False)
    assert read(rt, "a/one", "a/two") == store.Change(2, 0, 1, doubtful=False)
    assert refused(rt.catalogue(), "a/three") == {
        "model": "Was withdrawn by the provider; the nearest are a/two, a/one."
    }
    assert read(rt, "a/one", "a/two", "a/three") == store.Change(3, 1, 0, doubtful=False)


@pytest.mark.parametrize("few", [(), ("a/1",)], ids=["empty", "absurdly small"])
def test_an_answer_with_most_of_it_missing_withdraws_nothing(rt: Runtime, few: tuple[str, ...]) -> None:
    """A fault of the provider's must not stop every job; a person may say that it is none."""
    read(rt, *(f"a/{number}" for number in range(9)))
    assert read(rt, *few) == store.Change(len(few), 0, 0, doubtful=True)
    assert read(rt, *few, believed=True) == store.Change(len(few), 0, 9 - len(few), doubtful=False)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_an_input_is_checked_by_the_schema_of_its_model(rt: Runtime) -> None:
    """Before money is spent, and by the names that the model's documentation has."""
    read(rt, MODEL, Offer(DALL_E_3, schema=SIZES))
    known = rt.catalogue()
    assert refused(known, DALL_E_3, size="1024*1024") == {}
    assert refused(known, DALL_E_3, size="big") == {"input.size": "Must be one of 1024*1024, 1792*1024."}
    assert refused(known, DALL_E_3, seed=1) == {"input.seed": "Is not an option of this model; remove it."}


def test_a_model_that_is_not_listed_is_refused_with_the_nearest_names() -> None:
    """Most often it is mistyped."""
    known = Catalogue(map(Listing, ("openai/dall-e-3", "openai/gpt-image-1.5", "wavespeed-ai/flux-dev")))
    assert refused(known, "openai/dalle-3") == {
        "model": "Is not in the provider's catalogue; the nearest are openai/dall-e-3, openai/gpt-image-1.5."
    }
    assert refused(known, "zzz/qqq") == {"model": "Is not in the provider's catalogue."}
    assert "openai/dall-e-3" in refused(known, MODEL)["model"], "the default model is one like any other"


def test_a_setting_allows_unlisted_models(make_rt: Callable[..., Runtime]) -> None:
    """New ones can be tried on their first day, and DALL-E 2 where it is still served."""
    rt = make_rt(allow_unlisted_models=True)
    read(rt, DALL_E_3)
    known = rt.catalogue()
    assert refused(known, "a/b", anything=1) == {}
    assert refused(known, "a/b", prompt=" ") == {"input.prompt": "Must not be blank."}
    assert refused(known, MODEL, size="x") == {"input.size": "Is not an option of this model; remove it."}


def test_before_the_first_reading_nothing_is_known_and_nothing_refused_for_it() -> None:
    """A first start must not depend on the catalogue; whatever is admitted later is checked then."""
    assert refused(UNREAD, "some/model", anything=1) == {}
    assert refused(UNREAD, MODEL, prompt="") != {}


def test_our_promise_for_dall_e_2_stands_whatever_the_catalogue_says() -> None:
    """Its callers wrote their code by our documents."""
    loose = Listing(MODEL, json.dumps({"properties": {"prompt": {}, "size": {}}}))
    known = Catalogue([loose])
    assert refused(known, MODEL, prompt="a" * 1001) == {"input.prompt": "Must have at most 1000 characters."}
    assert refused(known, MODEL, size="x") == {"input.size": "Is not an option of this model; remove it."}


@pytest.mark.parametrize("option", ["enable_base64_output", "enable_sync_mode"])
@pytest.mark.parametrize("model", [MODEL, DALL_E_3, "a/mute"])
def test_our_own_options_are_every_models(model: str, option: str) -> None:
    """We honour them ourselves, whether or not a schema names or even requires them."""
    strict = json.dumps({**SIZES, "required": ["prompt", "enable_sync_mode"]})
    known = Catalogue([Listing(MODEL), Listing(DALL_E_3, strict), Listing("a/mute")])
    assert refused(known, model, **{option: True}) == {}
    assert refused(known, model, **{option: "yes"}) == {f"input.{option}": "Must be of type boolean."}


def test_a_model_of_whose_input_nothing_is_known_needs_no_prompt() -> None:
    """An upscaler takes a picture and no words."""
    known = Catalogue([Listing("a/mute"), Listing("a/broken", '{"properties": 5}')])
    for model in ("a/mute", "a/broken"):
        check({"model": model, "input": {"image": "https://x"}}, default_model=MODEL, catalogue=known)


def test_a_process_takes_a_new_catalogue_over_within_seconds(rt: Runtime) -> None:
    """Web servers run for weeks."""
    hasty = Models(rt.settings, rt.db, reread_s=0.0)
    assert not rt.catalogue().known
    assert not hasty().known
    read(rt, DALL_E_3)
    assert not rt.catalogue().known, "not looked after for every request"
    first = hasty()
    assert first.lists(DALL_E_3)
    assert hasty() is first, "and not read again unless it changed"


# -- the doors --------------------------------------------------------------------------------------------------------


def test_each_door_refuses_what_the_catalogue_does_not_have(
    rt: Runtime, run: Run, environ: dict[str, str], caller: Caller, tmp_path: Path, start_worker: Callable[..., Worker]
) -> None:
    """HTTP, the command line, and what was queued by SQL."""
    read(rt, MODEL, Offer(DALL_E_3, schema=SIZES))
    message = "Is not in the provider's catalogue; the nearest are openai/dall-e-3, openai/dall-e-2."
    with serving(environ, tmp_path) as web:
        body = {"model": "openai/dalle-3", "input": {"prompt": "a"}}
        answer = post(f"{web.url}/v1/jobs", body, key=caller.key)
        assert (answer.status, answer.json["errors"]) == (422, [{"field": "model", "message": message}])
        wrong = post(f"{web.url}/v1/jobs", {"model": DALL_E_3, "input": {"prompt": "a", "size": 1}}, key=caller.key)
        assert [error["field"] for error in wrong.json["errors"]] == ["input.size", "input.size"]
    done = run("enqueue", "a lighthouse", "--model", "openai/dalle-3")
    assert done.returncode == 1
    assert message in done.stderr
    job_id = written(rt, caller.service, model="openai/dalle-3")
    swept(start_worker(), lambda: state(rt, job_id) == State.FAILED)
    assert row(rt, job_id).error["message"] == f"model: {message}"


def test_what_was_accepted_under_a_key_stays_so_when_its_model_is_withdrawn(
    make_rt: Callable[..., Runtime], caller: Caller
) -> None:
    """Told that it is refused, a caller who asks again would believe that nothing is generated, or paid."""
    rt = make_rt()
    read(rt, MODEL, DALL_E_3)
    body = {"model": DALL_E_3, "input": {"prompt": "a lighthouse"}}
    job_id, made = accept.take(rt, caller.service, body, key="order-1")
    assert made

    read(rt, MODEL, believed=True)
    rt = make_rt()  # a process that knows the catalogue as it is now
    assert accept.take(rt, caller.service, body, key="order-1") == (job_id, False)
    for other, key in ((body, "order-2"), (body, None), ({**body, "priority": 1}, "order-1")):
        with pytest.raises(InvalidInput):
            accept.take(rt, caller.service, other, key=key)


def lines(*jobs: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in jobs)


def test_lines_and_retries_accepted_under_a_key_stay_so_too(make_rt: Callable[..., Runtime], caller: Caller) -> None:
    """As do single jobs; beside them in the same batch, what is new is checked as ever."""
    rt = make_rt()
    read(rt, MODEL, DALL_E_3)
    one = {"model": DALL_E_3, "input": {"prompt": "one"}, "idempotency_key": "line-1"}
    two = {"input": {"prompt": "two"}}
    first, _ = batch.accept_lines(rt, caller.service, lines(one, two))
    again.cancel(rt, caller.service, first[0])
    retried = again.retry(rt, caller.service, first[0], key="retry-1")

    read(rt, MODEL, believed=True)
    rt = make_rt()
    second, _ = batch.accept_lines(rt, caller.service, lines(one, two))
    assert second[0] == first[0]
    assert second[1] != first[1]
    assert again.retry(rt, caller.service, first[0], key="retry-1") == (retried[0], False)
    with pytest.raises(InvalidInput):
        again.retry(rt, caller.service, first[0], key="retry-2")
    new = {**one, "idempotency_key": "line-2"}
    with pytest.raises(InvalidInput) as refusal:
        batch.accept_lines(rt, caller.service, lines(two, one, new))
    assert [(error.field, error.line) for error in refusal.value.errors] == [("model", 3)]


def test_an_operator_reads_the_catalogue_and_what_is_in_it(run: Run, sandbox: Sandbox) -> None:
    """Which models there are is the first question; what one takes, the second."""
    assert value(run("models", "sync", "--json")) == {"listed": 5, "added": 5, "withdrawn": 0, "doubtful": False}
    listed = {one["model"]: one for one in value(run("models", "list", "--json"))}
    assert len(listed) == 5
    assert listed[MODEL]["prices"][0]["usd"] == 0.12
    assert [one["model"] for one in value(run("models", "list", "dall-e-3", "--json"))] == [DALL_E_3]
    shown = run("models", "show", DALL_E_3)
    assert "size" in json.loads(shown.stdout)["properties"]
    assert "text-to-image" in shown.stderr
    assert "maxLength" in run("models", "show", MODEL).stdout, "what we check it by"
    assert "openai/dall-e-3" in run("models", "show", "openai/dalle-3").stderr
    sandbox.faults(revoked=True)
    broken = run("models", "sync")
    assert (broken.returncode, "cannot be read" in broken.stderr) == (1, True)
    assert len(value(run("models", "list", "--json"))) == 5


# -- what was queued unchecked ----------------------------------------------------------------------------------------


def test_a_job_by_sql_that_names_no_model_gets_the_default_one(
    rt: Runtime, caller: Caller, start_worker: Callable[..., Worker]
) -> None:
    """DEFAULT_MODEL is said in one place."""
    job_id = written(rt, caller.service, model="")
    execute(rt, "UPDATE account SET halted_reason = 'key_refused', probe_at = 'infinity'")
    swept(start_worker(), lambda: scalar(rt, "SELECT admitted FROM jobs"))
    assert row(rt, job_id).model == MODEL


def test_what_waited_long_to_be_admitted_is_due_from_then_on(
    rt: Runtime, caller: Caller, start_worker: Callable[..., Worker]
) -> None:
    """A claim does not look into the past before the last sweep."""
    jobs = [written(rt, caller.service) for _ in range(3)]
    execute(rt, "UPDATE account SET halted_reason = 'key_refused', probe_at = 'infinity'")
    for age, job_id in zip((60, 30, 0), jobs, strict=True):
        execute(rt, "UPDATE jobs SET due_at = now() - make_interval(secs => :s) WHERE id = :id", s=age, id=job_id)
    before = [row(rt, job_id).due_at for job_id in jobs]
    start_worker()
    until(lambda: scalar(rt, "SELECT bool_and(admitted) FROM jobs"))
    after = [row(rt, job_id).due_at for job_id in jobs]
    assert after[2] == before[2], "what is found anyway stays where it is"
    assert before[2] < after[0] < after[1]


def test_a_sweep_tells_the_database_what_jobs_by_sql_get(make_rt: Callable[..., Runtime], caller: Caller) -> None:
    """The function that makes them knows no settings."""
    rt = make_rt(default_model=DALL_E_3, deadline_s=77.0)
    from pipeline.sweep import sweep

    sweep(rt, lambda *_: None)
    assert scalar(rt, "SELECT ROW(default_model, deadline_s)::text FROM account") == f"({DALL_E_3},77)"


def test_queued_jobs_are_not_touched_by_a_withdrawal(rt: Runtime, caller: Caller) -> None:
    """They were accepted: the provider has the last word, and refuses for nothing."""
    job_id = queued(rt, caller.service)
    read(rt, DALL_E_3)
    assert state(rt, job_id) == State.QUEUED
