"""The playground: a newcomer runs a prompt, sees what becomes of it, and takes the same home as a program."""

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipeline.catalogue import Offer
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.sandbox.catalogue import MODELS
from pipeline.store import audit, budgets, catalogue, services
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import MODEL, execute, queued, row, scalar, state, swept, until
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]

FLUX = "wavespeed-ai/flux-dev-lora"
HOSTILE = (
    '\n it\'s "so" \\ $HOME `id` $(id) %s !! \\n ${x}\n\té 漢字 🎨 \u202e\u2028'
    " </textarea></pre><script>alert(1)</script>'''"
)
"""Each of these ends a literal, or means something else, in some language."""


@pytest.fixture
def offers(rt: Runtime, visitor: Visitors) -> Callable[..., None]:
    """Make these the provider's models, and wait until the web server knows them."""

    def make(*others: Offer, named: str = FLUX) -> None:
        known = [Offer(one.id, one.type, one.description, one.schema) for one in MODELS.values()]
        with rt.db.transaction() as tx:
            catalogue.keep(tx, [*known, *others])
        ann = visitor()
        until(lambda: f'<option value="{named}">' in ann.get("/playground").text)

    return make


def job_of(answer: Any) -> UUID:
    """The job that the page is about."""
    assert answer.url.path == "/playground"
    return UUID(answer.url.params["job"])


def form_of(page: str) -> dict[str, str]:
    """The form as a browser would send it again, but for its boxes."""
    fields = dict(re.findall(r'<input[^>]*? name="([^"]+)"[^>]*? value="([^"]*)"', page))
    fields |= dict(re.findall(r'<textarea[^>]*? name="([^"]+)"[^>]*>\n(.*?)</textarea>', page, re.DOTALL))
    for name, options in re.findall(r'<select[^>]*? name="([^"]+)".*?>(.*?)</select>', page, re.DOTALL):
        chosen = re.search(r'<option(?: value="([^"]*)")? selected>([^<]*)', options)
        fields[name] = (chosen[1] or chosen[2]) if chosen else ""
    return {name: html.unescape(value) for name, value in fields.items() if name not in {"csrf_token", "name"}}


def program(page: str, word: str) -> str:
    found = re.search(rf'<pre class="code" id="code-{word}"[^>]*>(.*?)</pre>', page, re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_a_newcomer_presses_run_and_sees_the_picture_and_the_way_to_all_else(
    visitor: Visitors, rt: Runtime, caller: Caller, start_worker: Callable[..., Worker], sandbox: Sandbox
) -> None:
    """In `make dev` the service is told at the sandbox's receiver, too."""
    with rt.db.transaction() as tx:
        services.change(tx, "shop", callback_url=f"{sandbox.url}/_sandbox/receiver")
    ann = visitor()
    page = ann.get("/playground").text
    assert "Price: <strong>$0.12</strong>" in page
    answer = ann.post("/playground", {**form_of(page), "do": "run"})
    job_id = job_of(answer)
    assert 'data-every="1"' in answer.text
    assert "It waits for its turn: " in answer.text

    address = str(answer.url)
    worker = start_worker()
    swept(worker, lambda: "It is done." in ann.get(address).text)
    swept(worker, lambda: f'<img class="large" src="/files/{job_id}/0"' in ann.get(address).text)
    assert ann.get(f"/files/{job_id}/0").headers["content-type"] == "image/png"
    page = ann.get(address).text
    for link in (f"/jobs/{job_id}", f"/callbacks?job={job_id}", f"/notifications?job={job_id}"):
        assert f'href="{link}"' in page
        assert ann.get(link).status_code == 200
    assert form_of(page)["input.prompt"] == form_of(ann.get("/playground").text)["input.prompt"]
    swept(worker, lambda: '<span class="badge good">delivered</span>' in ann.get(address).text)
    swept(worker, lambda: 'data-every="1"' not in ann.get(address).text)
    assert row(rt, job_id).service == "shop"


def test_a_form_that_is_sent_twice_is_one_job_and_another_word_another(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    ann = visitor()
    fields = {**form_of(ann.get("/playground").text), "do": "run"}
    first = job_of(ann.post("/playground", fields))
    assert job_of(ann.post("/playground", fields)) == first
    assert job_of(ann.post("/playground", {**fields, "input.prompt": "a fox"})) != first
    again = {**form_of(ann.get("/playground").text), "do": "run"}
    assert job_of(ann.post("/playground", again)) != first
    assert scalar(rt, "SELECT count(*) FROM jobs") == 3


def test_looking_shows_the_price_and_the_programs_and_runs_nothing(
    visitor: Visitors, rt: Runtime, caller: Caller, offers: Callable[..., None]
) -> None:
    offers()
    ann = visitor()
    ann.get("/playground")
    answer = ann.post(
        "/playground", {"model": FLUX, "service": "shop", "input.prompt": "a fox", "input.num_images": "3"}
    )
    assert answer.status_code == 200
    assert "Price: <strong>$0.045</strong>" in answer.text
    assert json.loads(program(answer.text, "curl").partition("--data-binary '")[2][:-1]) == {
        "model": FLUX,
        "input": {"prompt": "a fox", "num_images": 3},
    }
    assert scalar(rt, "SELECT count(*) FROM jobs") == 0


def test_looking_leaves_what_became_of_the_last_one(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    ann = visitor()
    job_id = queued(rt, caller.service)
    fields = form_of(ann.get(f"/playground?job={job_id}").text)
    answer = ann.post(f"/playground?job={job_id}", {**fields, "input.prompt": ""})
    assert "It waits for its turn: " in answer.text
    assert re.search(r'name="input.prompt".*?class="wrong"[^>]*>Is required\.', answer.text, re.DOTALL)


def test_the_form_is_the_models_own(
    visitor: Visitors, rt: Runtime, caller: Caller, offers: Callable[..., None]
) -> None:
    offers()
    page = visitor().get("/playground", params={"model": FLUX}).text
    names = re.findall(r'name="input\.(\w+)"', page)
    assert [*dict.fromkeys(names)] == [
        *("prompt", "size", "num_images", "num_inference_steps", "guidance_scale", "seed", "loras"),
        "enable_base64_output",
    ]
    assert re.search(r'name="input.num_images"[^>]*type="number" step="1"[^>]*min="1" max="4"', page)
    assert re.search(r'name="input.guidance_scale"[^>]*type="number" step="any"', page)
    assert re.search(r'<select[^>]*name="input.quality"', visitor().get("/playground?model=openai/dall-e-3").text)


def test_what_is_wrong_stands_beside_its_field_and_nothing_typed_is_lost(
    visitor: Visitors, rt: Runtime, caller: Caller, offers: Callable[..., None]
) -> None:
    offers()
    ann = visitor()
    ann.get("/playground")
    typed = {
        "model": FLUX,
        "service": "shop",
        "input.prompt": " ",
        "input.num_images": "9",
        "input.loras": '[{"scale": "much"}]',
        "input.size": "huge",
        "priority": "99",
        "deadline_s": "0.5",
        "callback_url": "ftp://x",
        "metadata": "order=4711",
    }
    answer = ann.post("/playground", {**typed, "do": "run"})
    assert answer.status_code == 422
    kept = form_of(answer.text)
    assert {name: kept[name] for name in typed} == typed
    for name, said in {
        "priority": "less than or equal to 10",
        "deadline_s": "greater than",
        "callback_url": "http",
    }.items():
        assert re.search(rf'class="wrong" id="d-{name}">[^<]*{said}', answer.text), name
    assert scalar(rt, "SELECT count(*) FROM jobs") == 0

    answer = ann.post("/playground", {**typed, "priority": "1", "deadline_s": "60", "callback_url": "", "do": "run"})
    assert answer.status_code == 422
    assert re.search(r'name="input.num_images".*?class="wrong"[^>]*>Must be at most 4\.', answer.text, re.DOTALL)
    assert re.search(r'name="input.loras".*?class="wrong"[^>]*>Loras\.0\.', answer.text, re.DOTALL)

    answer = ann.post("/playground", {**typed, "input.loras": "{", "metadata": "no equals", "do": "run"})
    assert "Is not JSON: line 1, column 2." in answer.text
    assert "Write one NAME=VALUE on each line." in answer.text
    assert "shown once the fields can be read" in answer.text


def test_what_a_budget_does_not_cover_is_said(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    with rt.db.transaction() as tx:
        budgets.open_(tx, str(caller.service.id), "day", Decimal("0.1"))
    ann = visitor()
    answer = ann.post("/playground", {**form_of(ann.get("/playground").text), "do": "run"})
    assert answer.status_code == 402
    assert "this day&#39;s budget of 0.1 USD" in answer.text
    assert scalar(rt, "SELECT count(*) FROM jobs") == 0


def test_all_of_a_request_arrives(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    ann = visitor()
    ann.get("/playground")
    answer = ann.post(
        "/playground",
        {
            "model": MODEL,
            "service": "shop",
            "input.prompt": "one\r\ntwo\r\n",
            "priority": "-3",
            "deadline_s": "90",
            "callback_url": "https://shop.example.com/done",
            "metadata": "order = 4711\r\nwho=Ann = B\r\n",
            "do": "run",
        },
    )
    job = row(rt, job_of(answer))
    assert job.input == {"prompt": "one\ntwo\n"}
    assert (job.priority, job.callback_url) == (-3, "https://shop.example.com/done")
    assert (job.deadline_at - job.run_at).total_seconds() == 90
    assert job.caller_data == {"order": "4711", "who": "Ann = B"}
    kept = form_of(answer.text)
    assert (kept["priority"], kept["deadline_s"], kept["metadata"]) == ("-3", "90", "who=Ann = B\norder=4711")
    assert kept["input.prompt"] == "one\ntwo\n"


def test_a_job_of_any_door_stands_in_the_form_as_it_was_asked_for(
    visitor: Visitors, rt: Runtime, caller: Caller, offers: Callable[..., None]
) -> None:
    """Sent again as it stands, it asks for the same."""
    offers(Offer("some/other"), named="some/other")
    job_id = queued(rt, caller.service, "a fox", metadata={"a": "b\nc", "d=e": "f"}, priority=4)
    execute(rt, "UPDATE jobs SET input = input || '{\"seed\": 7}', model = 'some/other' WHERE id = :id", id=job_id)
    ann = visitor()
    fields = form_of(ann.get(f"/playground?job={job_id}").text)
    again = row(rt, job_of(ann.post("/playground", {**fields, "do": "run"})))
    first = row(rt, job_id)
    assert again.id != first.id
    for name in ("model", "input", "options", "caller_data", "priority", "callback_url", "service"):
        assert getattr(again, name) == getattr(first, name), name


def test_without_any_service_one_is_made_for_it(visitor: Visitors, rt: Runtime) -> None:
    ann = visitor()
    answer = ann.post("/playground", {**form_of(ann.get("/playground").text), "do": "run"})
    assert row(rt, job_of(answer)).service == "playground"
    with rt.db.transaction() as tx:
        rows = [one for one in audit.newest(tx) if one.action != "sign_in"]
    assert [(one.action, one.outcome) for one in rows] == [("playground.run", "done"), ("service.create", "done")]
    assert rows[0].target == str(job_of(answer))


def test_the_prompt_is_not_on_the_trail(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    ann = visitor()
    ann.post("/playground", {**form_of(ann.get("/playground").text), "input.prompt": "hush", "do": "run"})
    with rt.db.transaction() as tx:
        (entry, *_) = audit.newest(tx)
    assert entry.data == {"service": "shop", "model": MODEL}


def test_nothing_a_stranger_wrote_becomes_part_of_the_page(
    visitor: Visitors, rt: Runtime, caller: Caller, offers: Callable[..., None]
) -> None:
    evil = '"><script>alert(1)</script>'
    properties = {
        evil: {"type": "string", "title": evil, "description": evil, "default": evil},
        "choice": {"enum": [evil, 2], "title": evil},
        "number": {"type": "integer", "minimum": 10**400, "default": evil},
        "json": {"type": evil, "title": 7},
    }
    offers(Offer("evil/model", evil, evil, {"type": "object", "properties": properties}), named="evil/model")
    ann = visitor()
    job_id = queued(rt, caller.service, HOSTILE, metadata={evil: evil})
    execute(
        rt,
        "UPDATE jobs SET state = 'failed', due_at = NULL, finished_at = clock_timestamp(),"
        " error = jsonb_build_object('code', 'rejected', 'message', CAST(:evil AS text)) WHERE id = :id",
        evil=evil,
        id=job_id,
    )
    pages = [ann.get(f"/playground?job={job_id}"), ann.get("/playground?model=evil/model"), ann.get("/models?q=evil")]
    pages += [ann.get("/playground", params={"model": evil, "service": evil})]
    ann.get("/playground")
    pages += [
        ann.post("/playground", {"model": "evil/model", f"input.{evil}": evil, "input.choice": evil, "more": evil}),
        ann.post("/playground", {"model": evil, "service": evil, "input.prompt": evil, "metadata": evil, "do": "run"}),
    ]
    for page in pages:
        assert page.status_code in {200, 422}, page.url
        assert "alert(1)" in page.text
        assert "<script>alert" not in page.text


@pytest.mark.parametrize(
    "query", ["job=x", "job=00000000-0000-0000-0000-000000000000", "job=%00", "model=%00", "service=%00&model=", "a=b"]
)
def test_an_odd_address_is_no_fault_of_ours(visitor: Visitors, query: str) -> None:
    assert visitor().get(f"/playground?{query}").status_code == (404 if query.startswith("job") else 200)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"do": "run"},
        {"do": "run", "model": "a/b", "input.prompt": "a\x00b"},
        {"do": "run", "model": MODEL, "service": "\x00", "input.prompt": "x"},
        {"do": "run", "model": MODEL, "service": "nobody", "input.prompt": "x"},
        {"do": "run", "model": MODEL, "input.prompt": "x", "more": '{"a": "\\ud800"}'},
        {"do": "run", "model": MODEL, "input.prompt": "x", "more": "[]"},
        {"do": "run", "model": "a\x00/b", "service": "shop", "input.prompt": "x"},
        {"do": "run", "model": MODEL, "service": "shop", "input.prompt": "x", "metadata": '{"a": {"b": 1}}'},
    ],
    ids=str,
)
def test_an_odd_form_is_said_to_be_wrong(
    visitor: Visitors, rt: Runtime, caller: Caller, fields: Mapping[str, str]
) -> None:
    ann = visitor()
    ann.get("/playground")
    answer = ann.post("/playground", dict(fields))
    assert answer.status_code == (422 if fields else 200)
    assert 'class="wrong"' in answer.text or 'role="alert"' in answer.text
    assert scalar(rt, "SELECT count(*) FROM jobs") == 0


def test_a_viewer_sees_it_and_runs_nothing(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    viewer = visitor(password=VIEWERS_PASSWORD)
    page = viewer.get("/playground").text
    assert "You may look, and run nothing." in page
    assert 'value="run"' not in page
    answer = viewer.post("/playground", {**form_of(page), "do": "run"})
    assert "You may look, and change nothing" in answer.text
    assert scalar(rt, "SELECT count(*) FROM jobs") == 0


PROGRAMS = {
    "curl": ["sh", "-e"],
    "python": [sys.executable, "-"],
    "javascript": ["node", "--input-type=module"],
}


@pytest.mark.parametrize("word", ["curl", "python", pytest.param("javascript", marks=pytest.mark.node)])
def test_the_program_asks_for_exactly_what_was_entered(
    word: str,
    visitor: Visitors,
    rt: Runtime,
    web: str,
    caller: Caller,
    offers: Callable[..., None],
    start_worker: Callable[..., Worker],
    tmp_path: Path,
) -> None:
    """It is run as it was copied, with a prompt in which every language meets its own quotes."""
    offers()
    ann = visitor()
    fields = {
        "model": FLUX,
        "service": "shop",
        "input.prompt": HOSTILE,
        "input.num_images": "2",
        "input.guidance_scale": "3.5",
        "input.loras": json.dumps([{"path": HOSTILE}] * 4),
        "priority": "5",
        "deadline_s": "120.5",
        "metadata": json.dumps({"what": HOSTILE[:300], "it's": "$x"}),
    }
    ann.get("/playground")
    page = ann.post("/playground", fields).text
    worker = start_worker()

    def call() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            PROGRAMS[word],
            input=program(page, word),
            env={"PATH": os.environ.get("PATH", os.defpath), "PIPELINE_KEY": caller.key, "LANG": "C.UTF-8"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(call)
        swept(worker, called.done, 60)
        done = called.result()
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout
    copied = row(rt, scalar(rt, "SELECT id FROM jobs"))
    by_hand = row(rt, job_of(ann.post("/playground", {**fields, "do": "run"})))
    for name in ("model", "input", "options", "priority", "caller_data", "callback_url", "service"):
        assert getattr(copied, name) == getattr(by_hand, name), name
    assert copied.input["prompt"] == HOSTILE
    assert copied.deadline_at - copied.run_at == by_hand.deadline_at - by_hand.run_at
    assert state(rt, copied.id) == "completed"
