"""The sandbox's API: the documented calls, their answers byte by byte where it matters, and its limits."""

import base64
import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from datetime import datetime

import pytest
from PIL import Image

from pipeline.sandbox import Sandbox, running
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


def test_a_submit_is_answered_as_documented(api: Caller) -> None:
    """Clients are written against this shape: its keys, its empty values, its link."""
    answer = api.submit(enable_base64_output=False)
    data = answer.data
    assert list(answer.json) == ["code", "message", "data"]
    assert answer.headers["Content-Type"].startswith("application/json")
    assert re.fullmatch(r"[0-9a-f]{32}", data["id"])
    assert data == {
        "id": data["id"],
        "model": DALLE,
        "outputs": [],
        "urls": {"get": f"{api.sandbox.url}/api/v3/predictions/{data['id']}/result"},
        "has_nsfw_contents": [],
        "status": "created",
        "created_at": data["created_at"],
        "error": "",
        "executionTime": 0,
        "timings": {"inference": 0},
    }


def test_times_have_nine_digits(api: Caller) -> None:
    """Go prints nanoseconds; a parser that knows microseconds only must find out here."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", api.submit().data["created_at"])


def test_json_is_escaped_as_go_does(api: Caller) -> None:
    """Who compares bytes, or re-serialises a signed body, must fail here and not in production."""
    api.sandbox.faults(result_input=True)
    task = api.start("café <b> & 日本 🎨 \u2028")
    body = api.call("GET", f"predictions/{task}").body
    assert "café \\u003cb\\u003e \\u0026 日本 🎨 \\u2028".encode() in body
    assert json.loads(body)["data"]["input"]["prompt"] == "café <b> & 日本 🎨 \u2028"
    assert b": " not in body


def test_a_lone_surrogate_in_a_prompt_breaks_nothing(api: Caller) -> None:
    """JSON can spell half a character; no answer may be a 500 for it."""
    api.sandbox.faults(result_input=True)
    answer = api.call("POST", DALLE, b'{"prompt":"half \\ud800"}')
    assert answer.data["input"] == {"prompt": "half \ufffd"}
    done = api.ended(answer.data["id"])
    assert fetch("GET", done["outputs"][0]).status == 200


def test_both_result_paths_show_the_completed_task(api: Caller) -> None:
    """Two pages of the documentation name two paths."""
    done = api.run()
    assert done["status"] == "completed"
    assert done["has_nsfw_contents"] == [False]
    assert "code" not in done
    assert done["executionTime"] == done["timings"]["inference"] > 0
    assert api.call("GET", f"predictions/{done['id']}").data == done


def test_an_unknown_task_is_404(api: Caller) -> None:
    """The poller tells a lost task from a running one by it."""
    answer = api.call("GET", "predictions/00000000000000000000000000000000/result")
    assert (answer.status, answer.json) == (404, {"code": 404, "message": "Task not found"})


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("openai/dall-e-9", {"prompt": "x"}, "model not found"),
        (DALLE, {}, "prompt is required"),
        (DALLE, {"prompt": ""}, "prompt is required"),
        (DALLE, {"prompt": 7}, "prompt: 7 is not of type 'string'"),
        (DALLE, {"prompt": None}, "prompt: None is not of type 'string'"),
        (DALLE, {"prompt": "x", "size": "big"}, "Additional properties are not allowed"),
        (DALLE, {"prompt": "x", "enable_base64_output": "yes"}, "enable_base64_output: 'yes' is not of type"),
        ("openai/dall-e-3", {"prompt": "x", "size": "1*1"}, "size: '1*1' is not one of"),
        ("wavespeed-ai/flux-dev-lora", {"prompt": "x", "num_images": 1.5}, "num_images: 1.5 is not of type"),
        ("wavespeed-ai/flux-dev-lora", {"prompt": "x", "loras": [{}]}, "loras[0]: 'path' is a required"),
        (DALLE, b"not json", "invalid request body"),
        (DALLE, b'{"prompt": NaN}', "invalid request body"),
        (DALLE, [], "invalid request body"),
        (f"{DALLE}?webhook=ftp%3A%2F%2Fhost%2F", {"prompt": "x"}, "webhook must be an http or https URL"),
    ],
)
def test_bad_input_is_400_and_free(api: Caller, path: str, body: object, message: str) -> None:
    """Refused before a task exists: the client must not repeat it, and nobody pays."""
    answer = api.call("POST", path, body)
    assert (answer.status, answer.json["code"]) == (400, 400)
    assert message in answer.json["message"]
    assert api.sandbox.ledger() == []


def test_base64_with_a_webhook_is_the_bare_400(api: Caller) -> None:
    """The one documented error without an envelope."""
    answer = api.submit(webhook="http://127.0.0.1:1/", enable_base64_output=True)
    assert answer.status == 400
    assert answer.json == {
        "error": "webhook callback does not support base64 output, please use the normal API to use base64 output"
    }


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, {"Authorization": "Basic a2V5"}])
def test_without_a_key_all_calls_are_401(api: Caller, headers: dict[str, str]) -> None:
    """Each call, not only the paid one."""
    for method, path in [("POST", DALLE), ("GET", "balance"), ("GET", "webhook/secret"), ("POST", "predictions")]:
        answer = fetch(method, f"{api.sandbox.url}/api/v3/{path}", {"prompt": "x"}, headers)
        assert (answer.status, answer.json) == (401, {"code": 401, "message": "invalid authentication"})


# Files


def test_the_output_is_a_real_picture_of_its_own(api: Caller) -> None:
    """Archives sniff types, read sizes and compare hashes."""
    first, second = (api.run("a lighthouse")["outputs"][0] for _ in range(2))
    answer = fetch("GET", first)
    assert answer.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(answer.body)) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (1024, 1024))
        assert len(image.getcolors() or []) == 2  # the prompt is drawn on it
    assert fetch("GET", first).body == answer.body
    assert fetch("GET", second).body != answer.body


def test_head_tells_the_size_without_the_file(api: Caller) -> None:
    """Download managers ask first."""
    url = api.run()["outputs"][0]
    head = fetch("HEAD", url)
    assert head.status == 200
    assert head.body == b""
    assert int(head.headers["Content-Length"]) == len(fetch("GET", url).body)


def test_pictures_have_the_size_asked_for_and_their_number(api: Caller) -> None:
    """One task may make several files, of any shape."""
    done = api.run(model="wavespeed-ai/flux-dev-lora", num_images=3, size="512*256")
    assert [url.rsplit("/", 1)[1] for url in done["outputs"]] == ["1.png", "2.png", "3.png"]
    assert done["has_nsfw_contents"] == [False] * 3
    files = [fetch("GET", url).body for url in done["outputs"]]
    assert len(set(files)) == 3
    with Image.open(io.BytesIO(files[0])) as image:
        assert image.size == (512, 256)


def test_films_are_mp4_by_their_first_bytes(api: Caller) -> None:
    """Not every output is a picture."""
    api.sandbox.faults(file_kb=3)
    answer = fetch("GET", api.run(model="bytedance/seedance-v1-lite-t2v-480p", duration=10)["outputs"][0])
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.body[4:8] == b"ftyp"
    assert len(answer.body) == 3 * 1024


def test_padding_keeps_the_picture_valid(api: Caller) -> None:
    """Size caps are tested with files that are otherwise fine."""
    api.sandbox.faults(file_kb=200)
    data = fetch("GET", api.run()["outputs"][0]).body
    assert len(data) == 200 * 1024
    at, names = 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at + 4 : at + 8 + length]
        assert struct.pack(">I", zlib.crc32(chunk)) == data[at + 8 + length : at + 12 + length]
        names.append(chunk[:4])
        at += 12 + length
    assert names[0] == b"IHDR"
    assert names[-2:] == [b"saNd", b"IEND"]
    with Image.open(io.BytesIO(data)) as image:
        image.load()


def test_files_that_were_never_made_are_denied(api: Caller) -> None:
    """A CDN does not say why."""
    done = api.run()
    url = done["outputs"][0].removesuffix("1.png")
    for name in ("0.png", "2.png", "01.png", "1.jpg", "x.png"):
        assert fetch("GET", url + name).status == 403
    assert fetch("GET", f"{api.sandbox.url}/files/predictions/none/1.png").status == 403


def test_base64_outputs_are_the_naked_file(api: Caller) -> None:
    """No `data:` prefix."""
    done = api.run(enable_base64_output=True)
    assert base64.b64decode(done["outputs"][0], validate=True).startswith(b"\x89PNG\r\n")


def test_links_lead_to_the_host_that_was_asked(api: Caller) -> None:
    """In a container the sandbox has another name than its own."""
    headers = {"Authorization": "Bearer key", "Host": "sandbox.test:99"}
    answer = fetch("POST", f"{api.sandbox.url}/api/v3/{DALLE}", {"prompt": "x"}, headers)
    assert answer.data["urls"]["get"].startswith("http://sandbox.test:99/api/v3/predictions/")
    assert api.ended(answer.data["id"])["outputs"][0].startswith("http://sandbox.test:99/files/predictions/")


# Sync mode


def test_sync_mode_answers_with_the_result(api: Caller) -> None:
    """One request instead of many."""
    data = api.submit(enable_sync_mode=True).data
    assert data["status"] == "completed"
    assert len(data["outputs"]) == 1


def test_sync_mode_gives_up_waiting_but_not_the_task(api: Caller) -> None:
    """Code 5004 means: still running, poll, do not pay again."""
    api.sandbox.faults(sync_window_s=0.05, generation_s=600)
    data = api.submit(enable_sync_mode=True).data
    assert (data["status"], data["code"], data["outputs"]) == ("processing", 5004, [])
    assert data["error"] == "Sync mode timed out after 0.05 seconds. The prediction is still processing asynchronously."
    assert api.result(data["id"])["status"] == "processing"


# List and delete


def test_the_list_pages_from_the_newest(api: Caller) -> None:
    """Reconciliation reads page after page and must see each task once."""
    ids = [api.start(f"number {n}") for n in range(5)]
    pages = [api.call("POST", "predictions", {"page": n, "page_size": 2}).data for n in (1, 2, 3, 4)]
    assert [len(page["items"]) for page in pages] == [2, 2, 1, 0]
    assert [item["id"] for page in pages for item in page["items"]] == ids[::-1]
    assert {(page["page"], page["total"]) for page in pages} == {(1, 5), (2, 5), (3, 5), (4, 5)}
    assert [item["id"] for item in api.call("GET", "predictions").data["items"]] == ids[::-1]


def test_the_list_filters_by_model_status_and_time(api: Caller) -> None:
    """The ladder asks for one model and a tight window."""
    done = api.run("done")
    failed = api.run("[sandbox:fail]")
    api.sandbox.faults(**SLOW)
    running_task = api.submit(model="openai/dall-e-3").data

    def ids(**wanted: object) -> list[str]:
        return [item["id"] for item in api.list(**wanted)]

    assert ids(model="openai/dall-e-3") == [running_task["id"]]
    assert ids(status="completed") == [done["id"]]
    assert ids(status="failed") == [failed["id"]]
    assert ids(status="processing") == [running_task["id"]]
    assert ids(created_after=failed["created_at"]) == [running_task["id"], failed["id"]]
    assert ids(created_before=failed["created_at"]) == [failed["id"], done["id"]]
    assert ids(created_after=failed["created_at"], created_before=failed["created_at"]) == [failed["id"]]
    assert ids(created_before="2020-01-01T00:00:00+01:00") == []


@pytest.mark.parametrize("wanted", [{"page": 0}, {"page_size": 101}, {"page": "x"}, {"created_after": "yesterday"}])
def test_a_senseless_list_is_400(api: Caller, wanted: dict[str, object]) -> None:
    """The documented bounds."""
    assert api.call("POST", "predictions", wanted).status == 400


def test_the_list_shows_inputs_unless_told_not_to(api: Caller) -> None:
    """Accounts differ; the reconciler has to cope with both."""
    api.start("a prompt")
    assert api.list()[0]["input"] == {"prompt": "a prompt"}
    api.sandbox.faults(list_input=False)
    assert "input" not in api.list()[0]


def test_deleted_tasks_are_gone_both_ways(api: Caller) -> None:
    """Two generations of the documentation, two calls. What was paid stays in the ledger."""
    one, two, three = (api.run()["id"] for _ in range(3))
    assert api.call("POST", "predictions/delete", {"ids": [one, two, "unknown"]}).data == {"deleted_count": 2}
    assert api.call("DELETE", f"predictions/{three}").data == {"id": three, "status": "deleted"}
    assert api.call("DELETE", f"predictions/{three}").status == 404
    assert api.call("GET", f"predictions/{one}/result").status == 404
    assert api.list() == []
    assert len(api.sandbox.ledger()) == 3


def test_tasks_are_purged_after_their_retention(api: Caller) -> None:
    """Seven days at the provider; a late poll gets 404, or `deleted` where the switch says so."""
    done = api.run()
    api.sandbox.faults(retention_s=0)
    assert api.call("GET", f"predictions/{done['id']}/result").status == 404
    assert api.list() == []
    assert fetch("GET", done["outputs"][0]).status == 403
    api.sandbox.faults(purged_as_deleted=True)
    assert api.result(done["id"])["status"] == "deleted"


# Money


def test_each_accepted_task_is_charged_once_and_failures_are_paid_back(api: Caller) -> None:
    """The ledger is what "charged once" is asserted with."""
    done = api.run("a lighthouse")
    failed = api.run("[sandbox:fail] a storm")
    assert api.sandbox.ledger() == [
        {
            "prediction_id": task["id"],
            "model": DALLE,
            "prompt": prompt,
            "price": 0.12,
            "at": task["created_at"],
            "status": status,
        }
        for task, prompt, status in [
            (done, "a lighthouse", "completed"),
            (failed, "[sandbox:fail] a storm", "failed"),
        ]
    ]
    assert api.call("GET", "balance").data == {"balance": 999.88}


def test_without_the_money_nothing_is_made(api: Caller) -> None:
    """Insufficient credit is a 400 at this provider, and a top-up heals it."""
    api.sandbox.set_balance(0.2)
    api.run()
    answer = api.submit()
    assert answer.status == 400
    assert answer.json["message"] == "Insufficient credits. Please top up your account to continue."
    assert api.call("GET", "balance").data == {"balance": 0.08}
    api.sandbox.set_balance(1)
    assert api.submit().status == 200
    assert len(api.sandbox.ledger()) == 2


def test_prices_follow_the_inputs(api: Caller) -> None:
    """The price asked for is the price charged."""
    inputs = {"prompt": "x", "quality": "hd", "size": "1024*1792"}
    price = api.call("POST", "model/price", {"model_id": "openai/dall-e-3", "inputs": inputs}).data
    assert price == {
        "model_id": "openai/dall-e-3",
        "price": 0.12,
        "discounted_price": 0.12,
        "discount_rate": 0,
        "currency": "USD",
    }
    legacy = api.call("POST", "model/pricing", {"model_id": DALLE, "inputs": {}}).data
    assert legacy == {"model_id": DALLE, "unit_price": 0.12, "currency": "USD"}
    api.call("POST", "openai/dall-e-3", inputs)
    assert api.sandbox.ledger()[-1]["price"] == 0.12
    assert api.call("POST", "model/price", {"model_id": "none", "inputs": {}}).status == 400


def test_billings_show_charges_and_refunds(api: Caller) -> None:
    """The last rung of a reconciliation: what was paid for which task."""
    done, failed = api.run()["id"], api.run("[sandbox:fail]")["id"]

    def search(**wanted: object) -> list[tuple[str, str, float]]:
        items = api.call("POST", "billings/search", wanted).data["items"]
        return [(item["prediction"]["uuid"], item["billing_type"], item["price"]) for item in items]

    assert search() == [(failed, "refund", 0.12), (failed, "deduct", 0.12), (done, "deduct", 0.12)]
    assert search(prediction_uuids=[done]) == [(done, "deduct", 0.12)]
    assert search(billing_type="refund") == [(failed, "refund", 0.12)]
    assert search(page=2, page_size=2) == [(done, "deduct", 0.12)]
    assert search(start_time="0", end_time="1000") == []
    item = api.call("POST", "billings/search", {"prediction_uuids": [done]}).data["items"][0]
    assert item["prediction"] == {"uuid": done, "model_uuid": DALLE, "status": "completed"}


def test_the_catalogue_carries_json_schemas(api: Caller) -> None:
    """Callers check inputs against them before they pay."""
    models = {model["model_id"]: model for model in api.call("GET", "models").data}
    assert {DALLE, "openai/dall-e-3", "openai/gpt-image-1.5/text-to-image"} <= set(models)
    assert {model["type"] for model in models.values()} == {"text-to-image", "text-to-video"}
    assert models[DALLE]["base_price"] == 0.12
    run = models[DALLE]["api_schema"]["api_schemas"][0]
    assert (run["type"], run["method"], run["api_path"]) == ("model_run", "POST", f"/api/v3/{DALLE}")
    assert run["request_schema"]["required"] == ["prompt"]
    assert run["request_schema"]["additionalProperties"] is False
    assert run["request_schema"]["x-order-properties"][0] == "prompt"


# Limits


@pytest.mark.parametrize("limits", [{"level": "bronze"}, {"limits": {"per_window": 2, "concurrent": None}}])
def test_beyond_the_limit_of_a_window_is_429(api: Caller, limits: dict[str, object]) -> None:
    """Bronze is two tasks in any 60 seconds; refused ones cost nothing."""
    api.sandbox.faults(**limits)
    api.run()
    api.run()
    answer = api.submit()
    assert (answer.status, answer.json["code"]) == (429, 429)
    assert answer.json["message"] == "You have reached your concurrency limit"
    assert "Retry-After" not in answer.headers
    assert len(api.sandbox.ledger()) == 2


def test_the_window_slides(api: Caller) -> None:
    """A slot comes back when the task that took it is as old as the window, not at the full minute."""
    api.sandbox.faults(limits={"per_window": 2}, level_window_s=0.4)
    eventually(lambda: len(api.sandbox.ledger()) == 6 if api.submit().status == 200 else None)
    at = [datetime.fromisoformat(row["at"][:26] + "Z").timestamp() for row in api.sandbox.ledger()]
    assert all(later - earlier > 0.399 for earlier, later in zip(at, at[2:], strict=False))


def test_images_and_videos_are_counted_apart(api: Caller) -> None:
    """As the table of account levels does."""
    api.sandbox.faults(limits={"per_window": 1})
    assert api.submit().status == 200
    assert api.submit(model="bytedance/seedance-v1-lite-t2v-480p").status == 200
    assert api.submit().status == 429


def test_more_at_once_than_allowed_is_429_until_one_ends(api: Caller) -> None:
    """The concurrency limit frees itself."""
    api.sandbox.faults(limits={"concurrent": 1}, generation_s=1)
    first = api.start()
    assert api.submit().status == 429
    api.ended(first)
    assert api.submit().status == 200
    assert api.sandbox.arrivals()["max_running"] == 1


def test_a_switch_lets_tasks_wait_instead(api: Caller) -> None:
    """What the documentation says and the field contradicts."""
    api.sandbox.faults(limits={"concurrent": 1}, queue_instead_of_429=True)
    tasks = [api.start() for _ in range(4)]
    assert {api.ended(task)["status"] for task in tasks} == {"completed"}
    assert api.sandbox.arrivals()["max_running"] == 1


def test_lifting_the_limit_starts_those_who_wait(api: Caller) -> None:
    """The dial is live."""
    api.sandbox.faults(limits={"concurrent": 1}, queue_instead_of_429=True, **SLOW)
    api.start()
    waiting = api.start("[sandbox:generation_s=0]")
    assert api.result(waiting)["status"] == "created"
    api.sandbox.faults(limits=None)
    assert api.ended(waiting)["status"] == "completed"


def test_arrivals_count_every_submit_and_calls_by_kind(api: Caller) -> None:
    """Tests of limiters and pollers read their own behaviour here."""
    api.start()
    api.submit("[sandbox:status_429]")
    api.call("GET", "balance")
    api.call("GET", "predictions/none")
    seen = api.sandbox.arrivals()
    assert seen["count"] == len(seen["at"]) == 2
    assert seen["at"] == sorted(seen["at"])
    assert seen["calls"] == {"submit": 1, "balance": 1}
    assert seen["refused"] == {"submit": 1, "result": 1}
