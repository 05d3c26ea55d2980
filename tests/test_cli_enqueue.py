"""`pipeline enqueue`: jobs from files, stored whole or not at all, and what they produce brought home."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import intake
from pipeline.cli.rows import Defaults, format_of, read
from pipeline.errors import BudgetExceeded, InvalidInput
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import scalar, swept, until
from tests.test_cli import Run, refusal, run, value

PIPELINE = Path(sys.executable).with_name("pipeline")
__all__ = ["run"]  # a fixture

NOTHING = Defaults({}, {}, {})

CSV = """\ufeffprompt,priority,metadata.order,input.n,size,run_at,idempotency_key
"a lighthouse, at
dawn",3,007,,,,
42,,,2,"[1, ""x""]",,own-key
"""


def stored(rt: Runtime) -> list[dict[str, Any]]:
    """What was handed in, in order."""
    columns = "'input', input, 'priority', priority, 'metadata', metadata, 'model', model"
    sql = f"SELECT coalesce(json_agg(json_build_object({columns}) ORDER BY id), '[]') FROM jobs"
    found: list[dict[str, Any]] = scalar(rt, sql)
    return found


def prompts(rt: Runtime) -> list[str]:
    return [job["input"]["prompt"] for job in stored(rt)]


def keys(rt: Runtime) -> set[str]:
    return set(scalar(rt, "SELECT coalesce(array_agg(key), '{}') FROM idempotency_keys"))


def test_a_file_of_prompts_is_a_job_a_line(rt: Runtime, run: Run, tmp_path: Path) -> None:
    """The same file with the same key is the same jobs, however often it is handed in."""
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa lighthouse\r\n\n  a mill, at dusk  \n007")
    words = ("enqueue", "--file", str(file), "--priority", "-2", "--metadata", "campaign=x=y", "--key", "night")

    jobs = value(run(*words, "--json"))

    assert [job["input"]["prompt"] for job in jobs] == prompts(rt) == ["a lighthouse", "a mill, at dusk", "007"]
    assert {(job["priority"], job["metadata"]["campaign"]) for job in jobs} == {(-2, "x=y")}
    assert keys(rt) == {"night-1", "night-2", "night-3"}
    assert value(run(*words, "--json")) == jobs
    assert "accepted 3 jobs" in run(*words).stderr


def test_objects_say_everything_the_api_takes_and_options_fill_in_the_rest(
    rt: Runtime, run: Run, tmp_path: Path
) -> None:
    """What a line says of itself holds."""
    file = tmp_path / "jobs.jsonl"
    lines = [
        {"input": {"prompt": "a lighthouse", "size": 2}, "model": "a/b", "metadata": {"a": "1"}, "priority": 7},
        {"input": {"prompt": "a mill"}, "idempotency_key": "mine"},
        {},
    ]
    file.write_text("\n\n".join(map(json.dumps, lines)) + "\n")

    done = run(
        *("enqueue", "--file", str(file), "--input", '{"prompt": "any"}', "--metadata", "b=2", "--key", "k"),
        *("--callback-url", "https://example.com/told", "--deadline-s", "900", "--run-at", "2026-01-31T12:00:00Z"),
    )

    assert done.returncode == 0, done.stderr
    assert prompts(rt) == ["a lighthouse", "a mill", "any"]
    first, second, _ = stored(rt)
    assert (first["input"]["size"], first["model"], first["priority"]) == (2, "a/b", 7)
    assert (first["metadata"], second["metadata"]) == ({"a": "1", "b": "2"}, {"b": "2"})
    assert keys(rt) == {"k-1", "mine", "k-3"}
    assert scalar(rt, "SELECT count(*) FROM jobs WHERE callback_url = 'https://example.com/told'") == 3
    assert scalar(rt, "SELECT bool_and(deadline_at - run_at = interval '15 minutes') FROM jobs")


def test_columns_of_a_table_are_fields(rt: Runtime, run: Run, tmp_path: Path) -> None:
    """A cell that is JSON is that, but prompts and metadata are the text they are; an empty one says nothing."""
    file = tmp_path / "jobs.csv"
    file.write_text(CSV)

    assert run("enqueue", "--file", str(file), "--model", "a/b").returncode == 0

    first, second = stored(rt)
    assert first["input"] == {"prompt": "a lighthouse, at\ndawn"}
    assert (first["priority"], first["metadata"]) == (3, {"order": "007"})
    assert second["input"] == {"prompt": "42", "n": 2, "size": [1, "x"]}
    assert keys(rt) == {"own-key"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", b"a lighthouse\n\n" + b"x" * 1001, "line 3: input.prompt: Must have at most 1000"),
        ("p.txt", b"a lighthouse\n\xff", "line 2: : Is not UTF-8."),
        ("p.txt", b"\n \n", "There is no job in it."),
        ("j.jsonl", b'{"input": {"prompt": "a"}}\n\nnonsense', "line 3: : Must be a job as a JSON object."),
        ("j.jsonl", b'{"input": {"prompt": "a"}}\n\n[1]', "line 3: : Must be a job as a JSON object."),
        ("j.jsonl", b'{"input": {"prompt": "a"}}\n\n{"input": 7}', "line 3: input: "),
        ("j.jsonl", b'{"input": {"prompt": "a"}}\n{"input": {"prompt": 1e999}}', "line 2: "),
        ("j.jsonl", b'{"input": {"prompt": "a"}, "metadata": 7, "colour": 1}', "line 1: colour: Is not a field"),
        ("j.ndjson", b"[" * 100_000, "line 1: "),
        ("c.csv", b'prompt\na\n"two\nlines"\n' + b"x" * 1001, "line 5: input.prompt: "),
        ("c.csv", b"prompt,priority\na,1\nb,high", "line 3: priority: Must be a number."),
        ("c.csv", b"prompt,priority\na,1\nb,99", "line 3: priority: "),
        ("c.csv", b"prompt\na,b", "line 2: : Has 2 cells"),
        ("c.csv", b"prompt,prompt\na,b", "line 1: prompt: Each column"),
        ("c.csv", b'prompt\n"a"b\n', "line 2: : Is not CSV"),
        ("c.csv", b"prompt,run_at\na,tomorrow", "line 2: run_at: "),
        ("c.csv", b"prompt,input.size\na,1", "line 2: input.size: Is not an option"),
        ("c.csv", b"prompt\n" + b"x" * 200_000, "line 2: : Is not CSV"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_wrong_line_is_named_and_nothing_is_stored(
    name: str, content: bytes, said: str, rt: Runtime, caller: Caller
) -> None:
    """Whoever mends the file hands in all of it again."""
    with pytest.raises(InvalidInput) as refused:
        intake.store(rt, caller.service, lambda: read(BytesIO(content), format_of(name)), NOTHING)
    words = [refused.value.detail, *(f"line {one.line}: {one.field}: {one.message}" for one in refused.value.errors)]
    assert said in "\n".join(words)
    assert prompts(rt) == []


def test_a_wrong_line_is_said_in_words(rt: Runtime, run: Run, tmp_path: Path) -> None:
    """With its number and its field, on standard error."""
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"input": {"prompt": "a"}}\n\n{"input": {"prompt": "b", "colour": 1}}')
    assert "\n  line 3: input.colour: Is not an option" in refusal(run("enqueue", "--file", str(file)))
    assert prompts(rt) == []


@pytest.mark.parametrize(
    "words",
    [(), ("x", "--file", "f"), ("-", "--file", "f"), ("--file", "f", "--count", "2"), ("x", "--metadata", "novalue")],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_wrong_usage(words: tuple[str, ...], rt: Runtime, run: Run) -> None:
    """Exit status 2, as of every program."""
    assert run("enqueue", *words).returncode == 2


def test_a_file_that_is_not_there_is_said_in_a_line(rt: Runtime, run: Run, tmp_path: Path) -> None:
    """And so is a folder."""
    for path in (tmp_path / "none.txt", tmp_path):
        assert "cannot be read" in refusal(run("enqueue", "--file", str(path)))


def test_a_file_may_be_a_pipe(rt: Runtime, run: Run, tmp_path: Path) -> None:
    """As shells make of `--file <(…)`: it cannot be read twice, so it is kept."""
    pipe = tmp_path / "jobs.jsonl"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as others:
        written = others.submit(pipe.write_text, '{"input": {"prompt": "a mill"}}\n')
        assert run("enqueue", "--file", str(pipe)).returncode == 0
        written.result()
    assert prompts(rt) == ["a mill"]


def lines_of(*prompts: str) -> Callable[[], Iterator[tuple[int, dict[str, Any]]]]:
    return lambda: iter([(number, {"input": {"prompt": prompt}}) for number, prompt in enumerate(prompts, 1)])


def test_a_file_of_any_length_is_checked_whole_before_any_of_it_is_stored(rt: Runtime, caller: Caller) -> None:
    """What fits into no single transaction is still all or nothing, as far as anything is wrong with it."""
    with pytest.raises(InvalidInput) as refused:
        intake.store(rt, caller.service, lines_of(*["x"] * 7, ""), NOTHING, at_once=3)
    assert {(one.line, one.field) for one in refused.value.errors} == {(8, "input.prompt")}
    assert prompts(rt) == []

    ids = intake.store(rt, caller.service, lines_of(*"abcdefgh"), NOTHING, at_once=3)

    assert len(set(ids)) == 8
    assert prompts(rt) == list("abcdefgh")


def test_what_is_cut_short_is_gone_on_with_by_its_key(
    rt: Runtime, run: Run, caller: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key is named, and no job is stored twice."""
    assert run("budgets", "set", "--daily", "0.5").returncode == 0  # the price of four
    with pytest.raises(BudgetExceeded):
        intake.store(rt, caller.service, lines_of(*"abcdefgh"), NOTHING, at_once=3)
    said = " ".join(capsys.readouterr().err.split())
    assert "3 of 8 jobs are stored" in said
    key = said.partition("--key ")[2].split()[0]
    assert run("budgets", "set", "--daily", "none").returncode == 0

    ids = intake.store(rt, caller.service, lines_of(*"abcdefgh"), Defaults({}, {}, {}, key), at_once=3)

    assert len(set(ids)) == 8
    assert prompts(rt) == list("abcdefgh")


def test_outputs_are_fetched_whole(
    rt: Runtime, web: str, run: Run, sandbox: Sandbox, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """Named after their jobs; one that cannot be had is named, and no half of a file is left."""
    worker = start_worker()
    folder = tmp_path / "made"

    def finished(*words: str) -> subprocess.CompletedProcess[str]:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(run, "enqueue", *words, "--download", str(folder), "--json")
            swept(worker, waiting.done)
            return waiting.result()

    jobs = value(finished("a lighthouse", "--count", "3"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{job['id']}-0.png" for job in jobs)
    assert {path.read_bytes()[:8] for path in folder.iterdir()} == {b"\x89PNG\r\n\x1a\n"}

    sandbox.faults(file_expired=1.0)
    lost = finished("a mill")
    assert lost.returncode == 4
    (job,) = json.loads(lost.stdout)
    assert f"not fetched: {job['id']}, output 0" in lost.stderr
    assert len(list(folder.iterdir())) == 3


def test_time_is_up_and_the_jobs_go_on(rt: Runtime, run: Run) -> None:
    """Exit status 3: nothing is wrong, and nothing is known."""
    done = run("enqueue", "a lighthouse", "--timeout-s", "0", "--json")
    assert done.returncode == 3
    (job,) = json.loads(done.stdout)
    assert f"1 job goes on: {job['id']}" in done.stderr


def test_ctrl_c_while_waiting_says_which_jobs_go_on(rt: Runtime, environ: dict[str, str]) -> None:
    """They are paid for, and can be waited for again; a pipe of prompts is read to its end first."""
    words = [str(PIPELINE), "enqueue", "-", "--wait"]
    env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "COLUMNS": "200", **environ}
    with subprocess.Popen(
        words,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it may be ignored here
    ) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(b"a lighthouse\na mill\n")
        process.stdin.close()
        process.stdin = None
        until(lambda: len(prompts(rt)) == 2)
        while b"accepted" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        table, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert b"2 jobs go on: " in said
    assert b"Traceback" not in said
    assert table.count(b"queued") == 2


def test_a_shell_completes_services_and_models(rt: Runtime, environ: dict[str, str], caller: Caller) -> None:
    """From the database; where there is none, nothing is offered and nothing said."""
    away = {"DATABASE_URL": "postgres://u:a-password@127.0.0.1:1/d"}
    for typed, env, offered in (
        ("--service sh", environ, "shop"),
        ("--model openai/d", environ, "openai/dall-e-2"),
        ("--service sh", away, ""),
    ):
        asked = {"_PIPELINE_COMPLETE": "complete_bash", "COMP_WORDS": f"pipeline enqueue {typed}", "COMP_CWORD": "3"}
        path = os.environ.get("PATH", os.defpath)
        done = subprocess.run(
            [PIPELINE], env={"PATH": path, **env, **asked}, capture_output=True, text=True, check=True
        )
        assert (done.stdout.strip(), done.stderr) == (offered, "")
