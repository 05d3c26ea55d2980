"""`pipeline doctor`: is this installation fit for its work?"""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.catalogue import Offer
from pipeline.embedded.processes import Server
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import catalogue
from tests.factories import MODEL, execute
from tests.test_cli import run_in

Doctor = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def doctor(rt: Runtime, environ: dict[str, str], valkey: Server) -> Doctor:
    """Call the doctor to the tests' installation: `doctor("--json", BROKER_URL="")`."""

    def call(*words: str, **changes: str) -> "subprocess.CompletedProcess[str]":
        return run_in(environ | {"BROKER_URL": valkey.url} | changes, "doctor", *words)

    return call


def levels(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    said: Any = json.loads(done.stdout)
    assert said["fit"] == (done.returncode == 0)
    return {finding["what"]: finding["level"] for finding in said["findings"]}


def test_a_sound_installation_is_found_sound(rt: Runtime, web: str, doctor: Doctor) -> None:
    """Every line ok, and exit status 0: for a script, and for a person."""
    with rt.db.transaction() as tx:
        catalogue.keep(tx, [Offer(MODEL)])
    execute(rt, "UPDATE account SET swept_at = now() + interval '1 h'")  # on a busy machine, too, all is recent
    execute(
        rt,
        "INSERT INTO workers (id, host, pid, beat_at, told_at)"
        " VALUES (gen_random_uuid(), 'elsewhere', 1, now() + interval '1 h', now() + interval '1 h')",
    )
    done = doctor("--json")
    assert set(levels(done).values()) == {"ok"}, done.stdout
    assert {(finding["code"], finding["todo"]) for finding in json.loads(done.stdout)["findings"]} == {("ok", None)}
    assert set(levels(done)) == {
        *("settings", "procfile", "database", "db clock", "connections", "schema", "broker", "eviction", "queue"),
        *("provider", "clock", "secret", "webhooks", "archive", "outputs", "models", "screen", "list"),
        *("account", "workers", "beat", "sweep"),
    }
    shown = doctor("--formation", "web=2,worker=3").stdout
    assert shown.count("ok") >= 20
    assert "the balance is" in shown
    assert "at most 48 (release 1, web 20 in 2 processes, worker 27 in 3 processes)" in shown
    assert "→" not in shown


def test_a_formation_that_nobody_can_read_is_wrong_usage(doctor: Doctor) -> None:
    """Rather than a sum that is not theirs."""
    for text in ("web=many", "web:2", "clock=1"):
        done = doctor("--formation", text)
        assert done.returncode != 0
        assert "web=2,worker=3" in done.stderr


def test_what_is_wrong_is_named_with_what_to_do(rt: Runtime, sandbox: Sandbox, doctor: Doctor) -> None:
    """All of it at once, not one thing after the other was mended."""
    with rt.db.transaction() as tx:
        catalogue.keep(tx, [Offer("openai/dall-e-3")])
        tx.exec_driver_sql("UPDATE account SET halted_reason = 'key_refused', halted_at = clock_timestamp()")
    sandbox.faults(revoked=True)
    done = doctor("--json", BROKER_URL="redis://127.0.0.1:1/0", PUBLIC_URL="")
    found = levels(done)
    assert {what for what, level in found.items() if level == "fail"} == {"broker", "provider", "account"}
    assert {what for what, level in found.items() if level == "warn"} == {"webhooks", "models", "workers", "sweep"}
    assert "DEFAULT_MODEL (openai/dall-e-2) is not in the provider's catalogue" in done.stdout
    assert "openai/dall-e-3" in done.stdout
    assert done.returncode == 1
    assert "→ start `worker`" in doctor(PUBLIC_URL="").stdout


def test_a_receiver_that_is_switched_off_is_said(rt: Runtime, doctor: Doctor) -> None:
    """Its notifications wait and are not dead, so nothing else here tells of it."""
    execute(rt, "INSERT INTO endpoints (name, failing_since, failures) VALUES ('shop', now(), 9)")
    assert "receivers" not in levels(doctor("--json"))
    execute(rt, "UPDATE endpoints SET off_at = now(), probe_at = now()")
    assert levels(doctor("--json"))["receivers"] == "warn"


def test_settings_and_a_database_that_are_not_there_are_a_finding_each(doctor: Doctor) -> None:
    """A doctor that falls ill himself helps nobody."""
    done = doctor("--json", DEADLINE_S="soon", DATABASE_URL="", WAVESPEED_LEVEL="iron")
    assert (levels(done), done.returncode) == ({"settings": "fail"}, 1)
    assert all(name in done.stdout for name in ("DEADLINE_S", "DATABASE_URL", "WAVESPEED_LEVEL"))
    gone = doctor("--json", DATABASE_URL="postgres://nobody:a-password@127.0.0.1:1/none")
    found = levels(gone)
    assert (found["database"], found["broker"]) == ("fail", "ok")
    assert "models" not in found


def test_a_database_that_was_never_migrated_is_said(doctor: Doctor, new_database: Callable[[str], str]) -> None:
    """The commonest mistake of a first day."""
    done = doctor(DATABASE_URL=new_database("bare"))
    assert done.returncode == 1
    assert "pipeline migrate" in done.stdout


def test_the_catalogue_that_nobody_read_yet_is_a_warning(doctor: Doctor) -> None:
    """It is read by the first worker; until then nothing is wrong."""
    assert levels(doctor("--json"))["models"] == "warn"


def test_a_balance_of_nothing_is_a_warning(sandbox: Sandbox, doctor: Doctor) -> None:
    """The next POST would halt the account."""
    sandbox.set_balance(0.0)
    assert levels(doctor("--json"))["provider"] == "warn"
