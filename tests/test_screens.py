"""The screen at every door: what is refused is never paid, and stands nowhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipeline.errors import ConfigError, NotAllowedNow, NotScreened, PromptRefused
from pipeline.hook import MAX_STUCK, Hook
from pipeline.jobs import State
from pipeline.lifecycle import accept, again, batch, messages
from pipeline.runtime import Lists, Runtime
from pipeline.sandbox import Sandbox
from pipeline.screening import EVERYONE, normal
from pipeline.store import refusals
from pipeline.store import screens as store
from pipeline.store.services import Service
from pipeline.worker import Worker
from tests import hooks
from tests.conftest import Caller
from tests.factories import execute, placed, row, scalar, state, swept, until
from tests.http import post
from tests.serving import serving
from tests.test_cli import run_in

BAD = "a quokka beheaded by Globex"
"""What is refused here: by a list for one word, by a function for another."""


def listed(rt: Runtime, *terms: str, category: str = "violence", service: Service | None = None) -> None:
    """Put terms on a list."""
    with rt.db.transaction() as tx:
        store.add(tx, str(service.id) if service else EVERYONE, category, [normal(term) for term in terms])


def ndjson(*jobs: dict[str, Any]) -> bytes:
    """A batch."""
    return "\n".join(map(json.dumps, jobs)).encode()


def asked(prompt: str = BAD, **more: Any) -> dict[str, Any]:
    """A job as it is handed in."""
    return {"input": {"prompt": prompt}, **more}


def nowhere(rt: Runtime) -> None:
    """No table has anything of the refused prompt in it."""
    for table in ("jobs", "events", "refusals", "idempotency_keys", "notifications", "prices"):
        found = scalar(rt, f"SELECT count(*) FROM {table} t WHERE to_jsonb(t)::text ILIKE '%quokka%'")
        assert (table, found) == (table, 0)


# -- the doors --------------------------------------------------------------------------------------------------------


def test_a_refused_job_names_its_category_and_its_field_and_nothing_of_the_prompt(rt: Runtime, caller: Caller) -> None:
    """Its caller can tell a refusal of ours from a mistake of theirs."""
    listed(rt, "behead*")
    listed(rt, "quokka", category="adult", service=caller.service)
    with pytest.raises(PromptRefused) as refused:
        accept.take(rt, caller.service, asked())
    assert refused.value.categories == ("adult", "violence")
    assert [(one.field, one.message) for one in refused.value.errors] == [
        ("input.prompt", "Is refused: adult, violence.")
    ]
    assert "quokka" not in f"{refused.value!r} {refused.value.detail}"
    nowhere(rt)


def test_a_term_of_one_service_is_none_of_anothers(rt: Runtime, make_caller: Callable[..., Caller]) -> None:
    """A children's shop and a film studio share an account."""
    shop, studio = make_caller("shop").service, make_caller("studio").service
    listed(rt, "behead*", service=shop)
    with pytest.raises(PromptRefused):
        accept.take(rt, shop, asked())
    assert accept.take(rt, studio, asked())[1]


def test_an_exempt_service_is_refused_by_its_own_list_alone(
    rt: Runtime, make_caller: Callable[..., Caller], environ: dict[str, str]
) -> None:
    """Said by a person, and taken back; whatever else is screened stays."""

    def exempt(*words: str) -> Any:
        done = run_in(environ, "screens", "exempt", *words)
        assert done.returncode == 0, done.stderr
        return done

    def refused(service: Service) -> bool:
        try:
            accept.take(Runtime(rt.settings, rt.db), service, asked())
        except PromptRefused:
            return True
        return False

    shop, museum = make_caller("shop").service, make_caller("museum").service
    listed(rt, "behead*")
    assert [refused(shop), refused(museum)] == [True, True]
    exempt("museum", "violence")
    assert "as before" in exempt("museum", "violence").stderr
    assert json.loads(exempt("--json").stdout) == [{"service": "museum", "category": "violence"}]
    assert [refused(shop), refused(museum)] == [True, False]
    listed(rt, "quokka", service=museum)
    assert refused(museum)
    assert run_in(environ, "screens", "remove", "violence", "quokka", "--service", "museum").returncode == 0
    assert not refused(museum)
    exempt("museum", "violence", "--end")
    assert refused(museum)
    for words in (["museum"], ["museum", "war"], ["nobody", "violence"]):
        assert run_in(environ, "screens", "exempt", *words).returncode in {1, 2}


def test_a_batch_with_refused_lines_is_refused_by_line_and_stores_nothing(rt: Runtime, caller: Caller) -> None:
    """All or nothing, as for any other mistake."""
    listed(rt, "behead*")
    body = ndjson(asked("a fox"), asked(), asked("a fox"), asked("Beheadings"))
    for door in (batch.accept_lines, batch.check_lines):
        with pytest.raises(PromptRefused) as refused:
            door(rt, caller.service, body)
        assert [(one.line, one.field) for one in refused.value.errors] == [(2, "input.prompt"), (4, "input.prompt")]
    assert refused.value.detail == "Nothing was stored: 2 lines are refused, from line 2 on (violence)."
    assert scalar(rt, "SELECT count(*) FROM jobs") == 0


def test_what_was_accepted_before_stays_so_under_its_key(rt: Runtime, caller: Caller) -> None:
    """A caller whose answer was lost must get the job there is, not a refusal of what is paid already."""
    one, _ = accept.take(rt, caller.service, asked(), key="order-1")
    line = batch.accept_lines(rt, caller.service, ndjson(asked(idempotency_key="order-2")))[0]
    many = batch.accept_lines(rt, caller.service, ndjson(asked(), asked()), key="night-1")[0]
    execute(rt, "UPDATE jobs SET state = 'cancelled', due_at = NULL, finished_at = clock_timestamp()")
    retry, _ = again.retry(rt, caller.service, one, key="order-1-again")

    listed(rt, "behead*")
    rt = Runtime(rt.settings, rt.db)
    assert accept.take(rt, caller.service, asked(), key="order-1") == (one, False)
    assert batch.accept_lines(rt, caller.service, ndjson(asked(), asked()), key="night-1") == (many, False)
    fresh = batch.accept_lines(rt, caller.service, ndjson(asked(idempotency_key="order-2"), asked("a fox")))[0]
    assert fresh[:1] == line
    assert again.retry(rt, caller.service, one, key="order-1-again") == (retry, False)
    with pytest.raises(PromptRefused):
        again.retry(rt, caller.service, one, key="another")
    with pytest.raises(PromptRefused):
        accept.take(rt, caller.service, asked(priority=1), key="order-1")
    with pytest.raises(PromptRefused):
        batch.accept_lines(rt, caller.service, ndjson(asked(priority=1, idempotency_key="order-2")))


def test_a_message_is_refused_without_its_prompt(rt: Runtime, caller: Caller) -> None:
    """Refusals are read by people, and kept."""
    listed(rt, "behead*")
    messages.take(rt, "task-1", [], {"service": "shop", **asked()})
    messages.take(rt, "task-2", [], {"service": "shop", **asked(priority=99)})  # wrong before it is screened
    messages.take(rt, "task-3", [BAD], {"service": "nobody"})
    messages.take(rt, "task-4", [], {"service": "shop", **asked("a fox", priority=99)})
    with rt.db.transaction() as tx:
        found = {one.task_id: one for one in refusals.newest(tx, at_most=9)}
    assert (found["task-1"].code, found["task-1"].request) == ("prompt_refused", None)
    assert found["task-1"].errors == [{"field": "input.prompt", "message": "Is refused: violence."}]
    assert [found[f"task-{number}"].code for number in (2, 3, 4)] == ["invalid_input"] * 3
    assert [bool(found[f"task-{number}"].request) for number in (2, 3, 4)] == [False, False, True]
    nowhere(rt)


def test_a_message_that_was_kept_is_blanked_when_it_is_refused_at_last(rt: Runtime, caller: Caller) -> None:
    """It was kept for another mistake, before there was that term."""
    messages.take(rt, "task-1", [], {"service": "studio", **asked()})
    listed(rt, "behead*")
    (refusal_id,) = [one.id for one in _refusals(rt)]
    execute(rt, "UPDATE services SET name = 'studio'")
    rt = Runtime(rt.settings, rt.db)
    with pytest.raises(PromptRefused):
        messages.try_again(rt, refusal_id)
    nowhere(rt)
    assert [one.code for one in _refusals(rt)] == ["prompt_refused"]
    with pytest.raises(NotAllowedNow):
        messages.try_again(rt, refusal_id)


def _refusals(rt: Runtime) -> list[refusals.Refusal]:
    with rt.db.transaction() as tx:
        return refusals.newest(tx, at_most=9)


def test_what_was_queued_by_sql_is_screened_before_it_is_paid(
    make_rt: Callable[..., Runtime],
    rt: Runtime,
    web: str,
    caller: Caller,
    sandbox: Sandbox,
    start_worker: Callable[..., Worker],
) -> None:
    """Nobody stands at that door; and while the operator's own screen fails, nothing passes."""

    def written(prompt: str) -> UUID:
        job_id = placed(rt, caller.service, State.QUEUED)
        change = "UPDATE jobs SET admitted = false, due_at = clock_timestamp(), input = :input WHERE id = :id"
        execute(rt, change, id=job_id, input=json.dumps({"prompt": prompt}))
        return job_id

    listed(rt, "behead*")
    bad, good, odd = written(BAD), written("a fox"), written("a fox by Globex")
    worker = start_worker(make_rt(prompt_screen="tests.hooks:failing"))
    swept(worker, lambda: state(rt, bad) == State.FAILED)
    until(lambda: scalar(rt, "SELECT bool_and(due_at > clock_timestamp()) FROM jobs WHERE state = 'queued'"))
    assert row(rt, bad).error == {
        "code": "prompt_refused",
        "message": "input.prompt: Is refused: violence.",
        "provider_code": None,
    }
    assert state(rt, good) == State.QUEUED
    worker.stop(0.0)

    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() WHERE state = 'queued'")
    swept(
        start_worker(make_rt(prompt_screen="tests.hooks:competitors")),
        lambda: (state(rt, good), state(rt, odd)) == (State.COMPLETED, State.FAILED),
    )
    assert row(rt, odd).error["message"] == "input: Is refused: competitors."
    assert [charge["prompt"] for charge in sandbox.ledger()] == ["a fox"]


def test_over_http_a_refused_prompt_is_in_no_answer_and_no_log(
    rt: Runtime, environ: dict[str, str], caller: Caller, tmp_path: Path
) -> None:
    """Whatever the door; and the answer is the documented one."""
    listed(rt, "behead*")
    with serving(environ | {"PROMPT_SCREEN": "tests.hooks:failing"}, tmp_path) as web:
        one = post(f"{web.url}/v1/jobs", asked(), key=caller.key)
        many = post(f"{web.url}/v1/jobs/batch", ndjson(asked("a fox"), asked()), key=caller.key)
        failed = post(f"{web.url}/v1/jobs", asked("a quokka"), key=caller.key)
    assert (one.status, one.json["code"], many.status, many.json["code"]) == (422, "prompt_refused") * 2
    assert one.json["detail"] == "The screen refuses this prompt: violence."
    assert one.json["errors"] == [{"field": "input.prompt", "message": "Is refused: violence."}]
    assert many.json["errors"] == [{"field": "input.prompt", "message": "Is refused: violence.", "line": 2}]
    assert (failed.status, failed.json["code"], failed.headers["retry-after"]) == (503, "not_screened", "10")
    said = b"".join(answer.body for answer in (one, many, failed)).decode() + web.log
    assert "screen.refused" in web.log
    assert "tests/hooks.py" in web.log
    assert [word for word in ("quokka", "Globex") if word in said] == []
    nowhere(rt)


# -- the operator's own -----------------------------------------------------------------------------------------------


def test_the_operators_function_is_asked_of_what_the_lists_let_pass(
    make_rt: Callable[..., Runtime], sandbox: Sandbox, caller: Caller
) -> None:
    """It may name categories of its own, and cannot change what is asked."""
    rt = make_rt(prompt_screen="tests.hooks:competitors")
    with pytest.raises(PromptRefused) as refused:
        accept.take(rt, caller.service, asked())
    assert (refused.value.categories, refused.value.errors[0].field) == (("competitors",), "input")
    job_id, _ = accept.take(rt, caller.service, asked("a fox"))
    assert row(rt, job_id).input == {"prompt": "a fox"}
    with pytest.raises(PromptRefused) as refused:
        batch.accept_lines(rt, caller.service, ndjson(asked("a fox"), asked()))
    assert [one.line for one in refused.value.errors] == [2]


@pytest.mark.parametrize("name", ["failing", "talkative"])
def test_a_function_that_fails_lets_nothing_pass(
    make_rt: Callable[..., Runtime], sandbox: Sandbox, caller: Caller, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever installed it relies on it. The words of its error show the prompt, so they are told to nobody."""
    rt = make_rt(prompt_screen=f"tests.hooks:{name}")
    with pytest.raises(NotScreened) as failed:
        accept.take(rt, caller.service, asked())
    assert failed.value.__cause__ is None
    messages.take(rt, "task-1", [], {"service": "shop", **asked()})
    assert [(one.code, bool(one.request)) for one in _refusals(rt)] == [("not_screened", True)]
    said = capfd.readouterr()
    assert "quokka" not in said.out + said.err


def test_a_function_that_takes_for_ever_is_left_alone_after_a_while() -> None:
    """Threads that never end must not pile up, nor may anybody wait behind them."""
    hook = Hook("tests.hooks:slow", within_s=0.01)
    try:
        for _ in range(MAX_STUCK + 1):
            with pytest.raises(NotScreened):
                hook.ask("shop", [("a/b", {"prompt": "a fox"})])
        assert len(hook._stuck) == MAX_STUCK
    finally:
        hooks.SLOW.set()
    until(lambda: not any(one.is_alive() for one in hook._stuck))
    hook = Hook("tests.hooks:slow")
    assert hook.ask("shop", [("a/b", {"prompt": "a fox"})] * 3) == [None] * 3


@pytest.mark.parametrize("path", ["hooks:missing", "nothing:slow", "hooks:patient", "hooks:shy"])
def test_a_function_that_cannot_be_asked_is_found_at_the_start(path: str) -> None:
    """Not by the first prompt."""
    with pytest.raises(ConfigError, match="PROMPT_SCREEN"):
        Hook(f"tests.{path}")


# -- the lists --------------------------------------------------------------------------------------------------------


def test_every_process_knows_a_changed_list_within_seconds(rt: Runtime) -> None:
    """Without a restart, and without asking for every request."""
    known = Lists(rt.db, reread_s=0.0)
    assert not known().of(None)
    listed(rt, "quokka")
    assert known().of(None).terms(BAD)
    before = known()
    assert known() is before
    with rt.db.transaction() as tx:
        assert store.remove(tx, EVERYONE, "violence", ["quokka"]) == 1
        assert store.remove(tx, EVERYONE, "violence", ["quokka"]) == 0
    assert not known().of(None)
    slow = Lists(rt.db)
    slow()
    listed(rt, "quokka")
    assert not slow().of(None), "not looked after for every request"


def test_lists_are_kept_by_command(environ: dict[str, str], rt: Runtime, caller: Caller, tmp_path: Path) -> None:
    """Added, loaded, tried out and emptied; each mistake is named."""

    def run(*words: str) -> tuple[int, str]:
        done = run_in(environ, "screens", *words)
        return done.returncode, done.stdout + done.stderr

    assert run("add", "violence", "Behead*", "severed  HEAD", "behead*") == (0, "2 added\n")
    assert run("add", "violence", "behead*", "--service", "shop") == (0, "1 added\n")
    assert run("load", "adult")[0] == 0
    file = tmp_path / "terms.txt"
    file.write_text("# mine\n\nquokka  # an animal\nab*\n")
    assert run("load", "hate", str(file)) == (
        1,
        "pipeline: Nothing was loaded: line 4 must have at least 3 letters before its *.\n",
    )
    file.write_text("quokka\n")
    assert run("load", "adult", str(file), "--replace") == (0, "1 terms, instead of 18\n")
    status, said = run("list", "--json")
    assert status == 0
    assert [(one["service"], one["category"], one["term"]) for one in json.loads(said)] == [
        (None, "adult", "quokka"),
        (None, "violence", "behead*"),
        (None, "violence", "severed head"),
        ("shop", "violence", "behead*"),
    ]
    status, said = run("test", BAD, "--json")
    assert (status, {one["category"] for one in json.loads(said)["why"]}) == (1, {"adult", "violence"})
    assert run("test", "a fox") == (0, "it would pass\n")
    assert run("remove", "violence", "behead*", "unknown")[0] == 1
    assert run("remove", "violence", "BEHEAD*") == (0, "1 removed\n")
    assert run("add", "voilence", "quokka")[0] == 1
    assert run("list", "--category", "adult")[0] == 0
