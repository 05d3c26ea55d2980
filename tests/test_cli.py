"""The operator's door, as an operator uses it: commands in, words and exit statuses out, never a traceback."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipeline.catalogue import Offer
from pipeline.cli.common import plain
from pipeline.embedded.ports import hold
from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import audit, catalogue, paces, schema
from pipeline.store.account import halt
from pipeline.worker import Worker
from tests.commands import command, start
from tests.conftest import WEBHOOK_SECRET, Caller
from tests.factories import execute, placed, processing, queued, scalar, swept
from tests.http import get

PIPELINE = Path(sys.executable).with_name("pipeline")
API_KEY = "a-key-that-nobody-may-see"
LONG = "word " * 100 + "end"
Run = Callable[..., subprocess.CompletedProcess[str]]


def run_in(environ: dict[str, str], *words: str | bytes) -> subprocess.CompletedProcess[str]:
    """Run a command in exactly this environment of ours; whatever it is, it fails without a traceback or a secret."""
    path = os.environ.get("PATH", os.defpath)
    done = command({"PATH": path, "LANG": "C.UTF-8", "COLUMNS": "200", **environ}, *words)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    for secret in (API_KEY, WEBHOOK_SECRET):
        assert secret not in said
    if url := environ.get("DATABASE_URL"):
        assert url.split(":")[2].split("@")[0] not in said, "the database's password"
    return done


@pytest.fixture
def run(rt: Runtime, environ: dict[str, str]) -> Run:
    """Run a command on the tests' database: `run("jobs", "--json")`."""
    return lambda *words: run_in(environ | {"WAVESPEED_API_KEY": API_KEY}, *words)


def value(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON value a command printed; it must have succeeded."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What a command says when it does not do it: on standard error, with exit status 1."""
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("pipeline: ")
    return done.stderr


def service_of(rt: Runtime, key: str) -> str | None:
    with rt.db.transaction() as tx:
        found = paces.admit(tx, key)
    return found[0].name if found else None


# Services


def test_a_services_key_is_shown_once_and_kept_as_a_hash(rt: Runtime, run: Run) -> None:
    """Whoever reads the database, or lists the services, cannot act as one of them."""
    done = run("services", "create", "shop")

    assert done.returncode == 0
    (key,) = [word for word in done.stdout.split() if word.startswith("pk_")]
    assert done.stdout.count(key) == 1
    assert service_of(rt, key) == "shop"
    assert key not in scalar(rt, "SELECT string_agg(services::text, ' ') FROM services")
    assert scalar(rt, "SELECT key_hash = sha256(convert_to(:key, 'UTF8')) FROM services", key=key)
    listed = run("services", "list")
    assert "shop" in listed.stdout
    assert key not in listed.stdout


def test_a_name_is_taken_once(rt: Runtime, run: Run) -> None:
    """A second key for the same name would end the first one's silently."""
    key = value(run("services", "create", "shop", "--operator", "--json"))["key"]

    assert "rotate" in refusal(run("services", "create", "shop"))

    assert service_of(rt, key) == "shop"
    (listed,) = value(run("services", "list", "--json"))
    assert (listed["name"], listed["operator"], listed["revoked"]) == ("shop", True, False)


def test_a_rotated_key_ends_the_old_one_and_a_revoked_one_ends_at_once(
    rt: Runtime, run: Run, make_caller: Callable[..., Caller]
) -> None:
    """What is done after a leak must have effect."""
    old = make_caller("shop").key

    new = value(run("services", "rotate", "shop", "--json"))
    assert new["name"] == "shop"
    assert (service_of(rt, old), service_of(rt, new["key"])) == (None, "shop")

    assert run("services", "revoke", "shop").returncode == 0
    assert service_of(rt, new["key"]) is None
    (listed,) = value(run("services", "list", "--json"))
    assert (listed["name"], listed["operator"], listed["revoked"]) == ("shop", False, True)


@pytest.mark.parametrize(
    "words",
    [
        ("services", "create", "No Capitals"),
        ("services", "rotate", b"caf\xff"),
        ("services", "revoke", "nobody"),
        ("enqueue", "a lighthouse", "--service", b"caf\xff"),
    ],
    ids=ascii,
)
def test_a_service_that_cannot_be_is_refused_in_words(words: tuple[str | bytes, ...], rt: Runtime, run: Run) -> None:
    """Terminals send any byte."""
    assert "service" in refusal(run(*words))
    assert scalar(rt, "SELECT count(*) FROM services") == 0


# Jobs


def test_jobs_are_handed_in_listed_and_shown(rt: Runtime, run: Run) -> None:
    """With --json each command prints one value that a program can read."""
    (first,) = value(run("enqueue", "a lighthouse", "--priority", "3", "--key", "order-1", "--json"))
    assert (first["state"], first["service"], first["priority"]) == ("queued", "operator", 3)
    assert first["input"] == {"prompt": "a lighthouse"}

    (again,) = value(run("enqueue", "a lighthouse", "--priority", "3", "--key", "order-1", "--json"))
    assert again == first
    several = value(run("enqueue", "a mill", "--count", "3", "--json"))
    assert len({job["id"] for job in several}) == 3

    assert value(run("jobs", "--json")) == [*several[::-1], first]
    assert value(run("jobs", "--state", "completed", "--json")) == []
    shown = value(run("show", first["id"], "--json"))
    assert shown["id"] == first["id"]
    assert [event["kind"] for event in shown["events"]] == ["job.queued"]
    for words in (["jobs"], ["enqueue", "a third"]):
        done = run(*words)
        assert done.returncode == 0
        assert "queued" in done.stdout


def failed(rt: Runtime, caller: Caller) -> UUID:
    """Make a job that failed with a long story."""
    job_id = placed(rt, caller.service, State.FAILED)
    execute(rt, "UPDATE jobs SET error = jsonb_build_object('message', CAST(:said AS text))", said=LONG)
    return job_id


def on_a_terminal(environ: dict[str, str], *words: str) -> str:
    """Run a command whose standard output is a terminal, and give what it shows."""
    ours, theirs = pty.openpty()
    path = os.environ.get("PATH", os.defpath)
    environ = {"PATH": path, "TERM": "xterm", "LANG": "C.UTF-8", **environ}
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(start, environ, words, Path(os.ttyname(theirs)))
        status.add_done_callback(lambda _: os.close(theirs))
        shown = b""
        with contextlib.suppress(OSError):  # so a terminal ends on Linux
            while more := os.read(ours, 4096):
                shown += more
        os.close(ours)
    assert status.result() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())


def test_a_pipe_gets_every_line_whole(rt: Runtime, environ: dict[str, str], caller: Caller) -> None:
    """Whatever the width of the terminal it was started from."""
    job_id = failed(rt, caller)

    done = run_in(environ | {"COLUMNS": "40"}, "jobs")

    (line,) = [line for line in done.stdout.splitlines() if str(job_id) in line]
    assert LONG in line


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 140, 200])
def test_a_terminal_shows_ids_whole_and_what_else_there_is_room_for(
    rt: Runtime, environ: dict[str, str], caller: Caller, columns: int
) -> None:
    """They are what every other command asks for."""
    ids = [failed(rt, caller) for _ in range(2)]

    lines = on_a_terminal(environ | {"COLUMNS": str(columns)}, "jobs").splitlines()

    assert all(any(str(job_id) in line for line in lines) for job_id in ids)
    assert len(lines) == 4 + len(ids), "one line a job"
    assert max(map(len, lines)) <= max(columns, 40)
    heads = {head.strip() for head in lines[1].split("┃")}
    assert {"job"} | ({"state", "took", "result"} if columns >= 80 else set()) <= heads
    assert ("created" in heads) is (columns >= 140)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("enqueue", ""), "input.prompt: Must not be empty."),
        (("enqueue", b"\xff"), "input.prompt: "),
        (("enqueue", "x", "--input", '{"size": 1}'), "input.size: "),
        (("enqueue", "x", "--input", "[]"), "is not a JSON object"),
        (("enqueue", "x", "--key", ""), "idempotency_key: "),
        (("enqueue", "x", "--service", "nobody"), "pipeline services create nobody"),
        (("notifications", "replay", "--service", "nobody", "--dry-run"), "no service named nobody"),
        (("show", "nonsense"), "is not a job's id"),
        (("show", "01890000-0000-7000-8000-000000000000"), "There is no job"),
        (("notifications", "list", "--since", "999999d"), "--since: 999999d ago was before the year 1."),
        (("notifications", "replay", "01890000-0000-7000-8000-000000000000"), "There is no notification"),
    ],
    ids=lambda words: ascii(words)[:50],
)
def test_wrong_input_is_named(words: tuple[str | bytes, ...], said: str, rt: Runtime, run: Run) -> None:
    """The field and what to do about it, exit status 1, nothing stored."""
    assert said in refusal(run(*words))
    assert scalar(rt, "SELECT count(*) FROM jobs") == 0


def test_what_a_stranger_wrote_is_one_line_of_a_table_and_commands_no_terminal() -> None:
    """Most answers of servers end with a line break, which is nothing to warn of."""
    assert plain("no\r\nreally\tno\n").plain == "no really no"
    assert plain("\x1b[2Jgone\x00").plain == "\ufffd[2Jgone\ufffd"


@pytest.mark.parametrize("words", [("enqueue", "x", "--priority", "11"), ("jobs", "--state", "odd"), ("nonsense",)])
def test_wrong_usage_is_exit_status_two(words: tuple[str, ...], run: Run) -> None:
    """As every other command on the machine."""
    done = run(*words)

    assert (done.returncode, done.stdout) == (2, "")


def test_what_is_shown_of_a_job_holds_no_token(rt: Runtime, run: Run, caller: Caller) -> None:
    """It would let its reader forge the address of a callback; terminals are pasted into tickets."""
    job = processing(rt, caller.service)

    plain, machine = run("show", str(job.job_id)), run("show", str(job.job_id), "--json")

    (attempt,) = value(machine)["attempts"]
    assert (attempt["number"], attempt["outcome"], attempt["prediction_id"]) == (1, "accepted", job.prediction_id)
    assert [event["kind"] for event in value(machine)["events"]] == ["job.queued", "job.submitting", "job.processing"]
    for done in (plain, machine):
        assert job.prediction_id in done.stdout
        assert job.token not in done.stdout + done.stderr


def test_markup_in_a_prompt_or_an_error_is_only_text(rt: Runtime, run: Run, caller: Caller) -> None:
    """Square brackets mean something to the table's printer, escape sequences to the terminal."""
    job_id = queued(rt, caller.service, "[red]x[/green] [/] [link=file:///etc/passwd]")
    execute(
        rt,
        """
        UPDATE jobs SET state = 'failed', due_at = NULL, finished_at = clock_timestamp(),
            error = '{"code": "x", "message": "[/nonsense] \\u001b[31m [bold", "provider_code": null}' WHERE id = :id
        """,
        id=job_id,
    )
    execute(
        rt,
        "INSERT INTO events (job_id, seq, kind, data) VALUES (:id, 2, 'job.failed', '{\"why\": \"[/x] \\u001b[31m\"}')",
        id=job_id,
    )

    for words in (("jobs",), ("show", str(job_id))):
        done = run(*words)
        assert done.returncode == 0, done.stderr
        assert "[/nonsense]" in done.stdout
        assert "\x1b" not in done.stdout


def test_waiting_ends_with_the_jobs(
    rt: Runtime, web: str, run: Run, sandbox: Sandbox, start_worker: Callable[..., Worker]
) -> None:
    """The exit status tells a script whether all are completed."""
    worker = start_worker()

    def finished(*words: str) -> subprocess.CompletedProcess[str]:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(run, "enqueue", *words, "--wait", "--json")
            swept(worker, waiting.done)
            return waiting.result()

    completed = finished("a lighthouse")
    (job,) = value(completed)
    assert (job["state"], len(job["outputs"])) == (State.COMPLETED, 1)

    failed = finished("a lighthouse [sandbox:fail]")
    assert failed.returncode == 1
    (job,) = json.loads(failed.stdout)
    assert (job["state"], job["error"]["code"]) == (State.FAILED, "content_moderation")


# The account


def test_an_account_in_order_is_said_to_be(rt: Runtime, run: Run) -> None:
    """With what it may do, and what it holds when that is asked for."""
    assert "in order" in run("account").stdout
    shown = value(run("account", "--balance", "--json"))

    assert shown["balance_usd"] > 0
    assert (shown["halted_reason"], shown["halted_at"], shown["backoff_s"], shown["trial"]) == (None, None, 0, False)
    assert (shown["in_flight_cap"], shown["submits_per_minute"], shown["swept_s"]) == (3000, 3000, None)


def test_show_says_what_a_job_waits_for(rt: Runtime, run: Run, caller: Caller) -> None:
    """In the words of the dashboard."""
    assert "It waits for its turn" in run("show", str(queued(rt, caller.service))).stdout
    assert "The provider works on it" in run("show", str(placed(rt, caller.service, State.PROCESSING))).stdout


def test_what_is_done_to_a_job_by_a_command_stands_in_the_audit(rt: Runtime, run: Run, caller: Caller) -> None:
    """With whatever became of it, and who typed."""
    job_id, held = queued(rt, caller.service), placed(rt, caller.service, State.UNKNOWN)
    run("cancel", str(job_id))
    run("retry", str(job_id))
    run("decide", str(held), "--resubmit")
    with rt.db.transaction() as tx:
        rows = audit.newest(tx)[::-1]
    assert [(row.action, row.target) for row in rows] == [
        ("job.cancel", str(job_id)),
        ("job.retry", str(job_id)),
        ("job.decide", str(held)),
    ]
    assert {row.door for row in rows} == {"command line"}
    assert all(row.who.startswith("cli:") for row in rows)
    assert [row.outcome for row in rows[:2]] == ["done", "done"]
    assert rows[2].data["decision"] == "resubmit"


def test_a_halt_is_said_with_its_reason_and_what_to_do(rt: Runtime, run: Run, caller: Caller, sandbox: Sandbox) -> None:
    """Above the jobs that wait for it, on standard error: what reads their JSON is not disturbed."""
    job_id = queued(rt, caller.service)
    sandbox.faults(revoked=True)
    with rt.db.transaction() as tx:
        assert halt(tx, "key_refused", balance=None)

    done = run("show", str(job_id), "--json")
    assert value(done)["state"] == State.QUEUED
    assert done.stderr.count("\n") == 1
    assert "halted since 2" in done.stderr
    assert "WAVESPEED_API_KEY" in done.stderr
    done = run("account", "--balance", "--json")
    assert value(done)["halted_reason"] == "key_refused"
    assert value(done)["halted_at"].endswith("Z")
    assert value(done)["balance_usd"] is None
    assert "cannot be told" in done.stderr


@pytest.mark.parametrize(("trial", "why"), [("true", "fails or cannot be reached"), ("false", "429")])
def test_a_backoff_is_said_with_what_is_left_of_it(rt: Runtime, run: Run, trial: str, why: str) -> None:
    """It ends by itself; nobody need do anything."""
    execute(rt, f"UPDATE account SET trial = {trial}, backoff_until = clock_timestamp() + interval '1 hour'")
    done = run("jobs", "--json")
    assert value(done) == []
    assert "backing off for 3" in done.stderr
    assert why in done.stderr


# The environment


@pytest.mark.parametrize("words", [("migrate",), ("enqueue", "x"), ("sweep",)], ids=lambda words: words[0])
def test_settings_that_are_wrong_are_named_all_at_once(words: tuple[str, ...]) -> None:
    """One deploy mends them all."""
    wrong = {"LEASE_S": "1", "WAVESPEED_LEVEL": "platinum", "PUBLIC_URL": "http://localhost"}

    said = refusal(run_in({"WAVESPEED_API_KEY": API_KEY, **wrong}, *words))

    named = [line.split(":")[0].strip() for line in said.splitlines()[1:]]
    assert sorted(named) == sorted(["DATABASE_URL", *wrong])


@pytest.mark.parametrize("words", [("migrate",), ("jobs",)], ids=lambda words: words[0])
def test_a_database_that_is_away_is_said_in_a_line(words: tuple[str, ...]) -> None:
    """Whoever is called at night reads the last line."""
    nobody = hold(None)  # the port is ours, and nobody listens
    said = refusal(run_in({"DATABASE_URL": f"postgres://u:a-password@127.0.0.1:{nobody.number}/d"}, *words))
    nobody.close()

    assert "The database cannot be " in said
    assert len(said.splitlines()) == 1


def test_migrating_is_safe_to_repeat(new_database: Callable[[str], str]) -> None:
    """Every release does it; before, every other command says that it is missing."""
    environ = {"DATABASE_URL": new_database("cli")}

    assert "pipeline migrate" in refusal(run_in(environ, "jobs"))
    for _ in range(2):
        done = run_in(environ, "migrate")
        assert done.returncode == 0
        assert schema.known()[-1] in done.stderr
    assert value(run_in(environ, "jobs", "--json")) == []


def test_the_command_is_the_module() -> None:
    """`pipeline` and `python -m pipeline` are the same; help needs no settings."""
    environ = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    for name in ([str(PIPELINE)], [sys.executable, "-m", "pipeline"]):
        done = subprocess.run([*name, "--help"], env=environ, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        for word in ("enqueue", "jobs", "show", "services", "migrate", "sandbox", "sweep", "dev", "demo"):
            assert word in done.stdout


# The sandbox


def test_the_sandbox_says_where_it_listens() -> None:
    """On any free port; it ends when asked."""
    command = [str(PIPELINE), "sandbox", "--port", "0", "--api-key", API_KEY, "--generation-s", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        url = line.rpartition(" ")[2].strip()
        assert line.startswith("sandbox listening on http://127.0.0.1:")
        assert get(f"{url}/api/v3/balance", key=API_KEY).status == 200
        assert get(f"{url}/api/v3/balance", key="another").status == 401
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=20)
    assert (rest, errors, process.returncode) == ("", "", 0)


@pytest.mark.parametrize("number", ["taken", "99999"])
def test_a_port_the_sandbox_cannot_have_is_said_in_a_line(number: str) -> None:
    """Most often another sandbox runs there: `pipeline dev` has one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1]) if number == "taken" else number
        said = refusal(run_in({}, "sandbox", "--port", port))

    assert port in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("faults", ['{"fial": 1}', "[]", "nonsense", '{"fail": 2}'])
def test_a_fault_that_does_not_exist_is_refused(faults: str) -> None:
    """A test that believes in a fault it mistyped proves nothing."""
    refusal(run_in({}, "sandbox", "--port", "0", "--faults", faults))


def test_budgets_and_prices_are_set_and_shown(run: Run, rt: Runtime, caller: Caller) -> None:
    """In dollars; what is wrong is said, and nothing is changed by half."""
    assert run("budgets", "set", "--service", caller.service.name, "--daily", "0.3", "--monthly", "5").returncode == 0
    assert "the day's budget of all together is limited to 1.00 USD" in run("budgets", "set", "--daily", "1").stderr
    assert "is 0.20 USD a job" in run("models", "price", "openai/dall-e-2", "0.2").stderr
    queued(rt, caller.service)

    shown = json.loads(run("budgets", "list", "--json").stdout)
    assert {(one["service"], one["period"]): (one["limit_usd"], one["left_usd"]) for one in shown} == {
        (None, "day"): (1.0, 0.8),
        ("shop", "day"): (0.3, 0.1),
        ("shop", "month"): (5.0, 4.8),
    }
    assert "0.20" in run("models", "list").stdout
    wrong = run("budgets", "set", "--daily", "2", "--monthly", "much")
    assert (wrong.returncode, "'much' is not an amount" in wrong.stderr) == (1, True)
    assert run("budgets", "set", "--daily", "none").returncode == 0
    assert {one["service"] for one in json.loads(run("budgets", "list", "--json").stdout)} == {"shop"}
    assert run("models", "price", "openai/dall-e-2", "ask").returncode == 0
    assert json.loads(run("models", "list", "--json").stdout) == []


def test_a_services_share_limits_and_callbacks_are_set_and_shown(run: Run, rt: Runtime, caller: Caller) -> None:
    """What is not named stays; 'none' takes a limit away."""
    done = run(
        *("services", "set", "shop", "--weight", "3", "--max-in-flight", "20", "--requests-per-minute", "600"),
        *("--callback-url", "https://shop.example.com/done", "--callback-task", "shop.done@shop"),
        *("--callback-task", "shop.told", "--nsfw-policy", "quarantine"),
    )
    assert done.returncode == 0, done.stderr
    (shown,) = value(run("services", "list", "--json"))
    assert shown | {"name": "shop"} == {
        "name": "shop",
        "operator": False,
        "revoked": False,
        "weight": 3,
        "max_in_flight": 20,
        "requests_per_minute": 600,
        "paused_at": None,
        "callback_url": "https://shop.example.com/done",
        "callback_tasks": [{"task": "shop.done", "queue": "shop"}, {"task": "shop.told", "queue": "celery"}],
        "nsfw_policy": "quarantine",
    }
    assert "quarantine" in run("services", "list").stdout
    assert run("services", "set", "shop", "--max-in-flight", "none", "--callback-task", "none").returncode == 0
    (shown,) = value(run("services", "list", "--json"))
    assert (shown["max_in_flight"], shown["callback_tasks"], shown["weight"]) == (None, [], 3)
    assert run("services", "pause", "shop").returncode == 0
    assert "paused" in run("services", "list").stdout
    since = value(run("services", "list", "--json"))[0]["paused_at"]
    assert run("services", "pause", "shop").returncode == 0
    assert value(run("services", "list", "--json"))[0]["paused_at"] == since
    assert run("services", "resume", "shop").returncode == 0
    assert value(run("services", "list", "--json"))[0]["paused_at"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-in-flight", "0"), "neither a whole number above 0 nor 'none'"),
        (("--requests-per-minute", "many"), "neither a whole number above 0 nor 'none'"),
        (("--callback-url", "ftp://x"), "must be an http:// or https:// address"),
        (("--callback-url", "http://10.0.0.1/"), "must not lead to 10.0.0.1, a private address"),
        (("--callback-task", "pipeline.enqueue@shop"), "call in a circle"),
        (("--callback-task", "done@pipeline"), "call in a circle"),
        (("--callback-task", "two words"), "is no task's name"),
        (("--nsfw-policy", "hide"), "is none of allow, flag, quarantine"),
        ((), "say what to change"),
    ],
    ids=str,
)
def test_what_a_service_cannot_be_set_to_is_said_and_nothing_changed(
    run: Run, rt: Runtime, caller: Caller, words: tuple[str, ...], said: str
) -> None:
    """Half a change is worse than none."""
    done = run("services", "set", "shop", *(("--weight", "7") if words else ()), *words)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert scalar(rt, "SELECT weight FROM services") == 1


def test_a_model_is_paused_and_resumed_and_a_mistyped_one_is_not(run: Run, rt: Runtime, caller: Caller) -> None:
    """A pause of a name that nobody has would hold up nobody."""
    job_id = queued(rt, caller.service)
    assert run("models", "pause", "openai/dall-e-2").returncode == 0
    assert scalar(rt, "SELECT due_at = deadline_at FROM jobs WHERE id = :id", id=job_id)
    assert "paused since" in run("models", "list").stdout
    assert run("models", "resume", "openai/dall-e-2").returncode == 0
    assert scalar(rt, "SELECT due_at < deadline_at FROM jobs WHERE id = :id", id=job_id)
    with rt.db.transaction() as tx:
        catalogue.keep(tx, [Offer("openai/dall-e-3")])
    assert "openai/dall-e-3" in refusal(run("models", "pause", "openai/dalle-3"))
    assert "Must be a model's id" in refusal(run("models", "pause", "dall-e"))


def test_the_budget_of_a_revoked_service_can_still_be_changed_and_ended(run: Run, caller: Caller) -> None:
    """Its jobs go on, and what they may spend with them."""
    assert run("budgets", "set", "--service", "shop", "--daily", "1").returncode == 0
    assert run("services", "revoke", "shop").returncode == 0
    assert run("budgets", "set", "--service", "shop", "--daily", "2").returncode == 0
    assert [one["limit_usd"] for one in json.loads(run("budgets", "list", "--json").stdout)] == [2.0]
    assert run("budgets", "set", "--service", "shop", "--daily", "none").returncode == 0
    assert json.loads(run("budgets", "list", "--json").stdout) == []


def test_reconcile_says_by_its_exit_status_whether_the_ledgers_agree(
    run: Run, rt: Runtime, caller: Caller, sandbox: Sandbox
) -> None:
    """A nightly job calls it: 0 they agree, 1 they differ, 2 nobody knows."""
    assert run("reconcile").returncode == 0
    job = processing(rt, caller.service)
    execute(
        rt,
        "UPDATE jobs SET state = 'completed', outputs = '[]', due_at = NULL, finished_at = now(), reserved = 0;"
        "UPDATE attempts SET started_at = started_at - interval '1 hour'",
    )
    differ = run("reconcile", "--json")
    assert differ.returncode == 1
    (one,) = json.loads(differ.stdout)["differences"]
    assert (one["kind"], one["job_ids"]) == ("never_charged", [str(job.job_id)])
    table = run("reconcile")
    assert str(job.job_id) in table.stdout
    assert "the ledgers differ" in table.stderr
    sandbox.faults(revoked=True)
    unread = run("reconcile")
    assert unread.returncode == 2
    assert "cannot be read" in unread.stderr
