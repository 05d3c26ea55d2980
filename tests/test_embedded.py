"""The stack on one machine, by real processes: what is killed comes back, and what is stopped leaves nothing."""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from pipeline.embedded import environment, ports, procfile, scratch, supervisor
from pipeline.embedded import postgres as embedded_postgres
from pipeline.embedded import valkey as embedded_valkey
from pipeline.embedded.accounts import account_for, can_run, copy_for_all
from pipeline.embedded.dev import dev
from pipeline.embedded.logs import Logs
from pipeline.embedded.processes import Program, Server, StackError, wait_until
from pipeline.errors import ConfigError
from pipeline.settings import Settings

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can lend accounts")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks for what only Linux offers")

SLEEP = (sys.executable, "-c", "import time; time.sleep(1000)")

SUPERVISE = """
import contextlib, json, sys
from pathlib import Path
from pipeline.embedded.logs import Logs
from pipeline.embedded.processes import Program
from pipeline.embedded.supervisor import Stopped, StopSignals, Supervisor

directory = Path(sys.argv[1])
logs = Logs(directory / "logs", follow=True)
with StopSignals().caught() as signals, contextlib.suppress(Stopped):
    watch = Supervisor(directory, logs, signals, ["one", "two"])
    try:
        for name, argv in json.loads(sys.argv[2]).items():
            watch.start(Program(name=name, argv=tuple(argv), log=logs.file(name), cwd=directory))
        watch.until(lambda: False, "eternity", 1000.0)
    finally:
        watch.stop(["one", "two"])
"""


@contextmanager
def supervised(directory: Path, **programs: tuple[str, ...]) -> Iterator[subprocess.Popen[str]]:
    """Run a supervisor in a process of its own, as the commands do."""
    argv = [sys.executable, "-c", SUPERVISE, str(directory), json.dumps(programs)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def process(*argv: str) -> Iterator[int]:
    """Run a program that nobody supervises."""
    with subprocess.Popen(argv) as popen:
        eventually(lambda: psutil.Process(popen.pid).cmdline() == list(argv))
        try:
            yield popen.pid
        finally:
            popen.kill()


def pids(directory: Path, name: str = "one") -> list[int]:
    file = directory / "pids.json"
    return list(json.loads(file.read_text())[name]) if file.exists() else []


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, 20.0), "it never came true"


def query(server: Server, sql: str) -> object:
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


# The Procfile


def test_the_procfile_names_everything_production_needs() -> None:
    """What is run here is read from it, so a line that is missing there is missing here."""
    assert list(procfile.read()) == ["release", "web", "worker", "beat"]


def test_the_web_server_has_the_threads_that_the_app_counts_on() -> None:
    """So many callers may wait that some threads are always left for callbacks: both must mean the same number."""
    assert (
        f"--blocking-threads ${{WEB_THREADS:-{Settings.model_fields['web_threads'].default}}} "
        in procfile.read()["web"]
    )


def test_a_procfile_may_be_commented() -> None:
    """The platform allows it."""
    assert procfile.parse("# the doors\n\nweb: run --port ${PORT:-1}\n") == {"web": "run --port ${PORT:-1}"}


@pytest.mark.parametrize("text", ["web run", "web:", "web: a\nweb: b", ": a"])
def test_a_malformed_procfile_is_refused_by_line(text: str) -> None:
    """A line that is skipped silently is a program that is not running."""
    with pytest.raises(ConfigError, match="line"):
        procfile.parse(text)


@pytest.mark.parametrize("line", ["echo $0 ${NAME:-x}", "NAME=y echo $0 $NAME", "true && echo $0 x"])
def test_a_line_means_what_the_shell_says(line: str, tmp_path: Path) -> None:
    """Variables, defaults, assignments and lists work here as they do on the platform."""
    ours = subprocess.run(procfile.shell(line), capture_output=True, text=True, check=True)
    theirs = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
    assert ours.stdout == theirs.stdout


# The supervisor


def test_a_killed_program_is_started_again_and_recorded(tmp_path: Path) -> None:
    """A worker that dies of memory must not stay away; whoever reads pids.json must find the new one."""
    with supervised(tmp_path, one=SLEEP):
        eventually(lambda: bool(pids(tmp_path)))
        (first,) = pids(tmp_path)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: pids(tmp_path) not in ([], [first]))
        assert not alive(first)


def test_descendants_of_a_dead_program_do_not_survive_it(tmp_path: Path) -> None:
    """An orphaned web worker would go on holding the port, and answer with the old code."""
    with supervised(tmp_path, one=("/bin/sh", "-c", "sleep 1000 & wait")):
        eventually(lambda: len(pids(tmp_path)) == 2)
        parent, child = pids(tmp_path)
        os.kill(parent, signal.SIGKILL)
        eventually(lambda: len(pids(tmp_path)) == 2 and parent not in pids(tmp_path))
        assert not alive(child)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_supervisor_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    """Descendants neither: the next start wants their ports."""
    with supervised(tmp_path, one=SLEEP, two=("/bin/sh", "-c", "sleep 1000 & wait")) as process:
        eventually(lambda: len(pids(tmp_path)) == 1 and len(pids(tmp_path, "two")) == 2)
        family = [*pids(tmp_path), *pids(tmp_path, "two")]
        process.send_signal(number)
        assert process.wait(20) == 0
        assert not any(alive(pid) for pid in family)
        assert pids(tmp_path) == pids(tmp_path, "two") == []


def test_a_second_signal_does_not_wait_for_the_deaf(tmp_path: Path) -> None:
    """Who presses Ctrl-C again means it; the echo that `make` sends at once does not count."""
    with supervised(tmp_path, one=("/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")) as supervising:
        eventually(lambda: len(pids(tmp_path)) == 2)
        deaf = pids(tmp_path)[0]

        def left_after_another_signal() -> bool:
            supervising.send_signal(signal.SIGINT)
            return supervising.poll() is not None

        eventually(left_after_another_signal)
        assert supervising.wait() == 0
        assert not alive(deaf)


@on_linux
def test_programs_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    """`kill -9` of a stack must not leave a worker that goes on spending money."""
    with supervised(tmp_path, one=SLEEP) as process:
        eventually(lambda: bool(pids(tmp_path)))
        (pid,) = pids(tmp_path)
        process.kill()
        eventually(lambda: not alive(pid))


def test_a_held_program_stays_away_until_it_is_released(tmp_path: Path) -> None:
    """Outages are rehearsed this way."""
    (tmp_path / "hold").mkdir()
    with supervised(tmp_path, one=SLEEP):
        eventually(lambda: bool(pids(tmp_path)))
        (tmp_path / "hold/one").touch()
        eventually(lambda: not pids(tmp_path))
        (tmp_path / "hold/one").unlink()
        eventually(lambda: bool(pids(tmp_path)))


def test_a_program_that_cannot_start_ends_the_start_with_its_own_words(tmp_path: Path) -> None:
    """Trying for ever would hide the reason."""
    with supervised(tmp_path, one=("/bin/sh", "-c", "echo no luck today; exit 3")) as process:
        assert process.wait(20) == 1
        assert process.stderr
        said = process.stderr.read()
    assert "one does not start" in said
    assert "no luck today" in said


def test_what_a_killed_stack_left_is_ended(tmp_path: Path) -> None:
    """The next start wants its ports and its data."""
    with process(*SLEEP) as left:
        (tmp_path / "pids.json").write_text(json.dumps({"worker": [left]}))
        supervisor.clear(tmp_path)
        assert not alive(left)


def test_a_pid_that_was_given_anew_is_spared(tmp_path: Path) -> None:
    """Only what was there when the file was written, and calls itself what we would, is taken for ours."""
    file = tmp_path / "pids.json"
    with process(*SLEEP) as younger, process("sleep", "1000") as other:
        file.write_text(json.dumps({"worker": [other]}))
        supervisor.clear(tmp_path)
        file.write_text(json.dumps({"worker": [younger]}))
        os.utime(file, (0, 0))
        supervisor.clear(tmp_path)
        assert alive(younger)
        assert alive(other)


# Postgres and Valkey


def test_postgres_never_runs_as_root(postgres: Server) -> None:
    """It refuses to, so root lends it another account; anybody else runs it as themselves."""
    uid = psutil.Process(postgres.pid).uids().effective
    assert uid != 0
    assert os.geteuid() in (0, uid)


def test_postgres_asks_for_its_password(postgres: Server) -> None:
    """Its superuser may run commands: other users of the machine must not be it."""
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.url, password="guess")


def test_two_postgres_servers_run_at_once(postgres: Server) -> None:
    """Tests run side by side, and so do stacks."""
    with embedded_postgres.running() as other:
        assert query(other, "SHOW port") != query(postgres, "SHOW port")


def test_kept_data_survives_a_kill_in_a_closed_directory(tmp_path: Path) -> None:
    """Durable, at the same address, and without opening anybody's home to the account that root lends."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with embedded_postgres.running(closed / "data") as server:
        url = server.url
        assert query(server, "SHOW fsync") == "on"
        query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(server.pid, signal.SIGKILL)
        server.restart()
        assert server.url == url
        assert query(server, "SELECT answer FROM kept") == 42
    with embedded_postgres.running(closed / "data") as server:
        assert query(server, "SELECT answer FROM kept") == 42
    assert closed.stat().st_mode & 0o777 == 0o700


def test_data_of_another_postgres_is_refused_in_words(tmp_path: Path) -> None:
    """Postgres's own message would be in a log that nobody reads."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigError, match="made by Postgres 17"), embedded_postgres.running(tmp_path):
        pass


@as_root
def test_postgres_runs_from_a_copy_where_its_account_may_read_it(tmp_path: Path) -> None:
    """A checkout in root's closed home is out of reach for every other account."""
    account = account_for(tmp_path / "data")
    with embedded_postgres.programs(None) as bin_dir, scratch.directory("test") as copy:
        copy_for_all(bin_dir.parents[2], copy, only=embedded_postgres.NEEDED)
        assert can_run(account, str(copy / "embedded_postgres/pginstall/bin/postgres"), "--version")
        assert can_run(account, str(copy / "embedded_postgres/pginstall/bin/initdb"), "--version")


@as_root
def test_an_ordinary_user_runs_postgres_too(tmp_path: Path) -> None:
    """Most people are not root."""
    account = account_for(tmp_path / "data")
    assert account
    if not can_run(account, sys.executable, "-c", "import pipeline.embedded"):
        pytest.skip("this Python is in root's closed home")
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.embedded import postgres\nwith postgres.running() as it: print(it.url)"],
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        env={"PATH": os.defpath},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("postgresql://")


def test_valkey_keeps_its_port_over_a_restart() -> None:
    """Clients reconnect to the address they know."""
    with embedded_valkey.running() as server:
        url = server.url
        os.kill(server.pid, signal.SIGKILL)
        server.restart()
        assert server.url == url
        assert redis.Redis.from_url(url).ping()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A port in use, a full disk: the reason is in its log."""
    argv = ("/bin/sh", "-c", "echo disk full; exit 1")
    program = Program(name="x", argv=argv, log=tmp_path / "log", cwd=tmp_path, ready=lambda: False)
    with pytest.raises(StackError, match="disk full"):
        Server(program, "").start()


# What they share


@on_linux
def test_a_held_port_is_for_its_server_alone() -> None:
    """A second stack must not take it while the first one's server is still starting, or is down."""
    port = ports.hold()
    try:
        assert ports.hold(port.number).number != port.number
        with pytest.raises(ConfigError, match="not free"):
            ports.hold_exactly(port.number)
        with socket.create_server(("127.0.0.1", port.number)):
            pass
    finally:
        port.close()
    ports.hold_exactly(port.number).close()


def test_a_port_somebody_listens_on_is_not_held() -> None:
    """Two web servers on one port would share its requests, and nobody would notice."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(ConfigError, match="not free"):
            ports.hold_exactly(taken)


def test_only_directories_without_their_process_are_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another stack's data is not ours to remove."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = tmp_path / "wavespeed-stack-gone"
    gone.mkdir()
    with scratch.directory("stack") as used:
        for path in (gone, used):
            os.utime(path, (0, 0))
        assert list(scratch.abandoned()) == [gone]
    assert not used.exists()


def test_logs_are_shown_by_name_and_in_whole_lines(tmp_path: Path) -> None:
    """Half a line of one program and half of another make no sense."""
    stream = io.StringIO()
    logs = Logs(tmp_path, follow=True, stream=stream)
    with logs.file("web").open("a") as web, logs.file("beat").open("a") as beat:
        print("one", file=web, flush=True)
        print("tick ", end="", file=beat, flush=True)
        logs.show()
        print("tock", file=beat, flush=True)
        logs.show()
    assert stream.getvalue() == "web      | one\nbeat     | tick tock\n"


PLACES = environment.Places("http://127.0.0.1:1", "postgresql://ours", "redis://ours", "http://127.0.0.1:2")


@pytest.mark.parametrize("words", [["mysql=1"], ["postgres"], ["postgres=here"]])
def test_a_proxy_is_named_by_server_and_port(words: list[str]) -> None:
    """A slip of the pen must not silently leave the proxy out."""
    with pytest.raises(ConfigError, match="--via"):
        dev(via=words)


def test_programs_may_reach_the_servers_through_proxies() -> None:
    """Who tests what becomes of cut connections must be able to sit between."""
    places = environment.Places(
        "http://127.0.0.1:1",
        "postgresql://me:secret@127.0.0.1:2/postgres",
        "redis://127.0.0.1:3/0",
        "http://127.0.0.1:4",
    )
    through = places.through({"postgres": 22, "sandbox": 44})
    assert through.database_url == "postgresql://me:secret@127.0.0.1:22/postgres"
    assert through.sandbox_url == "http://127.0.0.1:44"
    assert (through.url, through.broker_url) == (places.url, places.broker_url)


def test_what_the_user_has_set_wins_but_not_over_our_servers() -> None:
    """A level to try out, yes; the production database in a forgotten variable, no."""
    own = {"WAVESPEED_LEVEL": "bronze", "DATABASE_URL": "postgresql://production"}
    chosen = environment.chosen(own, PLACES, public_url=True, mild={"POLL_AFTER_S": "3"})
    child = environment.complete(own, chosen, public_url=True)
    assert (child["WAVESPEED_LEVEL"], child["DATABASE_URL"]) == ("bronze", "postgresql://ours")
    assert child["PUBLIC_URL"] == "http://127.0.0.1:1"
    assert child["OUTBOUND_ALLOW"] == "127.0.0.0/8,::1/128", "callers and files are on this machine"
    assert environment.ignored(own) == ["DATABASE_URL"]


def test_a_key_of_the_users_means_the_real_service() -> None:
    """Then nothing of the sandbox's may leak in: not its address, and not its level."""
    own = {"WAVESPEED_API_KEY": "wsk-1"}
    real = environment.Places("http://127.0.0.1:1", "postgresql://ours", "redis://ours", None)
    child = environment.complete(own, environment.chosen(own, real, public_url=True, mild={}), public_url=True)
    assert environment.real_service(own)
    assert not {"WAVESPEED_BASE_URL", "WAVESPEED_LEVEL", "UNKNOWN_PATIENCE_S", "PUBLIC_URL"} & child.keys()


def test_a_second_terminal_gets_the_environment_and_is_not_taken_for_the_users(tmp_path: Path) -> None:
    """A stack that is started from that terminal must not believe the first one's addresses."""
    chosen = environment.chosen({}, PLACES, public_url=True, mild={"DEFAULT_MODEL": "it's $HOME `here`"})
    file = tmp_path / "env"
    file.write_text(environment.script(chosen, file, os.getpid()))
    command = f". {file}; {sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    done = subprocess.run(["/bin/sh", "-c", command], env={"PATH": os.defpath}, capture_output=True, check=True)
    sourced = json.loads(done.stdout)
    assert chosen.items() <= sourced.items()
    assert not chosen.keys() & environment.users_own(sourced).keys()


def test_the_file_of_a_stack_that_has_stopped_says_so_and_sets_nothing(tmp_path: Path) -> None:
    """However it ended. A terminal that had its addresses before must still not pass for the user's own settings."""
    file = tmp_path / "it's env"
    chosen = environment.chosen({}, PLACES, public_url=True, mild={})
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    file.write_text(environment.script(chosen, file, ended.pid))
    words = f". {shlex.quote(str(file))} || echo refused; echo $DATABASE_URL"
    done = subprocess.run(["/bin/sh", "-c", words], env={"PATH": os.defpath}, capture_output=True, check=True)
    assert done.stdout == b"refused\n\n"
    assert f"{file}: that stack has stopped" in done.stderr.decode()
    assert not environment.users_own({**chosen, environment.MARK: str(file)})
