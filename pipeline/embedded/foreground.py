"""
The whole stack as children of this process: where its data is, and in which order it starts and stops.

    postgres, valkey, sandbox  →  the Procfile's `release`  →  its other lines  →  a service key
"""

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.embedded import api, environment, ports, postgres, procfile, scratch, valkey
from pipeline.embedded.files import write
from pipeline.embedded.logs import Logs
from pipeline.embedded.memory import Memory
from pipeline.embedded.processes import Program, StackError
from pipeline.embedded.supervisor import Ending, StopSignals, Supervisor, clear
from pipeline.errors import ConfigError

GROUPS = ("web", "worker", "beat", "postgres", "valkey", "sandbox")
OURSELVES = (sys.executable, "-m", "pipeline")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may choose."""

    data: Path | None = None  # None: a temporary directory, removed at the end
    port: int | None = None  # None: the last run's, or 8000, or else any
    sandbox_port: int | None = None  # None: the last run's, or 8787, or else any
    workers: int = 1
    public_url: bool = True  # False: no webhooks, every job is polled
    without: tuple[str, ...] = ()  # lines of the Procfile to leave out
    via: Mapping[str, int] = field(default_factory=dict)  # proxies' ports, by the server that programs reach so
    defaults: Mapping[str, str] = field(default_factory=dict)  # more variables, unless the user has set them
    follow: bool = True  # show the programs' logs on stderr
    receiver: bool = False  # where there is the sandbox, it is told of jobs' ends: somebody has to be
    imitation: bool = False  # never the real service, whatever key the user's environment has
    broker_url: str | None = None  # a broker that runs already, instead of a Valkey of the stack's own
    worker_options: str = ""  # put behind the Procfile's worker line: of an option given twice, Celery takes the last


@dataclass(frozen=True)
class Facts:
    """What the users of a stack have to know: the keys of `pipeline dev --json`."""

    url: str
    api_key: str
    sandbox_url: str | None  # None: the real service
    database_url: str
    broker_url: str
    dashboard_password: str
    data: str
    pids: dict[str, list[int]]


@contextlib.contextmanager
def running(options: Options, signals: StopSignals, say: Callable[[str], None]) -> Iterator["Stack"]:
    """
    Start a stack, and stop it at the end; *say* is told what it does meanwhile.

    Raises:
        ConfigError: It cannot start like this: the directory or a port is taken.
        StackError: A program of it does not start.
        Stopped: A signal came.
    """
    with contextlib.ExitStack() as cleanup:
        stack = Stack(options, signals, cleanup)
        cleanup.callback(say, "stopped")
        say("starting Postgres and Valkey" if stack.real else "starting Postgres, Valkey and the sandbox")
        stack.start_servers()
        say("making the tables")
        stack.release()
        say(f"starting {', '.join(stack.lines)}")
        stack.start_programs()
        cleanup.callback(say, "stopping")
        yield stack


class Stack:
    """A stack, put up step by step; each step also leaves, in *cleanup*, how to take it down."""

    def __init__(self, options: Options, signals: StopSignals, cleanup: contextlib.ExitStack) -> None:
        own = environment.users_own()
        if options.imitation:
            own.pop("WAVESPEED_API_KEY", None)
        self.real = environment.real_service(own)
        self.lines = procfile.read()
        self._release = self.lines.pop("release")
        for name in options.without:
            self.lines.pop(name, None)
        if "worker" in self.lines:
            self.lines["worker"] += f" {options.worker_options}".rstrip()
        self._options = options
        self._cleanup = cleanup
        self._directory = cleanup.enter_context(_claimed(options.data))
        self.logs = Logs(self._directory / "logs", follow=options.follow)
        for name in environment.ignored(own):
            self.logs.say(f"{name} of your environment is not used: the stack brings its own")
        self._memory = Memory.of(self._directory)
        self._watch = Supervisor(self._directory, self.logs, signals, GROUPS)
        self.wait = self._watch.wait  # how its owner passes the time, and keeps it running
        self.processes = self._watch.pids

        web_port = self._port("web", options.port, 8000)
        self._sandbox_port = 0 if self.real else self._port("sandbox", options.sandbox_port, 8787)
        self._postgres = cleanup.enter_context(
            postgres.server(
                self._directory / "postgres",
                self._port("postgres"),
                log=self.logs.file("postgres"),
                durable=options.data is not None,
            )
        )
        self._valkey = None
        if options.broker_url is None:
            place = self._directory / "valkey"
            self._valkey = cleanup.enter_context(
                valkey.server(place, self._port("valkey"), log=self.logs.file("valkey"))
            )
        self._broker_url = self._valkey.url if self._valkey else options.broker_url or ""
        self._url = f"http://127.0.0.1:{web_port}"
        self._sandbox_url = None if self.real else f"http://127.0.0.1:{self._sandbox_port}"
        self._chosen = environment.chosen(
            own,
            environment.Places(self._url, self._postgres.url, self._broker_url, self._sandbox_url).through(options.via),
            public_url=options.public_url,
            mild={
                "ARCHIVE_URL": (self._directory / "files").as_uri(),
                "SECRET_KEY": self._memory.secret_key,
                "DASHBOARD_PASSWORD": self._memory.dashboard_password,
                "METRICS_TOKEN": self._memory.metrics_token,
                **options.defaults,
            },
        )
        self.webhooks = "PUBLIC_URL" in self._chosen  # else every job is polled
        self._env = environment.complete(own, self._chosen, public_url=options.public_url) | {"PORT": str(web_port)}
        self.facts: Facts

    def start_servers(self) -> None:
        """Start what the Procfile's programs need, and wait for it."""
        servers = [self._postgres.program, *([self._valkey.program] if self._valkey else [])]
        if not self.real:
            argv = (*OURSELVES, "sandbox", "--port", str(self._sandbox_port))
            servers.append(
                self._program("sandbox", argv, ready=lambda: api.answers(f"{self._sandbox_url}/_sandbox/ledger"))
            )
        for server in servers:  # stopped the other way round: the database last
            self._cleanup.callback(self._watch.stop, (server.name,), grace_s=10.0)
        self._watch.start(*servers)
        self._watch.until(lambda: all(server.ready() for server in servers), "starting the servers")

    def release(self) -> None:
        """Run the release line, as the platform does before it starts the others."""
        self._watch.run(self._program("release", procfile.shell(self._release)))

    def start_programs(self) -> None:
        """Start the Procfile's programs, make a key meanwhile, and wait until the web server is ready."""
        self._cleanup.callback(self._watch.stop, tuple(self.lines))
        self.start_again()
        self._memory.api_key = self._memory.api_key or self._new_key()
        if "web" in self.lines:
            self._watch.until(lambda: api.answers(f"{self._url}/readyz"), "starting the web server")
            if api.call("GET", f"{self._url}/v1/jobs?limit=1", key=self._memory.api_key)[0] == 401:
                self._memory.api_key = self._new_key()  # the one remembered has been revoked
        self._memory.keep(self._directory)
        file = self._directory / "env"
        callers = {"PIPELINE_URL": self._url, "PIPELINE_KEY": self._memory.api_key}
        write(file, environment.script({**self._chosen, **callers}, file, os.getpid()))
        self.facts = Facts(
            url=self._url,
            api_key=self._memory.api_key,
            sandbox_url=self._sandbox_url,
            database_url=self._postgres.url,
            broker_url=self._broker_url,
            dashboard_password=self._chosen["DASHBOARD_PASSWORD"],
            data=str(self._directory),
            pids=self._watch.pids(),
        )

    def stop_everyone(self, grace_s: float) -> Ending:
        """SIGTERM to every process of the Procfile's programs at once, as on a dyno; they stay away."""
        return self._watch.stop(tuple(self.lines), grace_s, everyone=True)

    def start_again(self) -> None:
        """Start the Procfile's programs; they may not be ready yet."""
        for name, line in self.lines.items():
            copies = self._options.workers if name == "worker" else 1
            names = [name] if copies == 1 else [f"{name}.{number}" for number in range(1, copies + 1)]
            self._watch.start(*(self._program(each, procfile.shell(line)) for each in names))

    def _program(
        self,
        name: str,
        argv: tuple[str, ...],
        *,
        output: Path | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> Program:
        home = procfile.PROCFILE.parent
        log = self.logs.file(name)
        return Program(name=name, argv=argv, log=log, cwd=home, env=self._env, output=output, ready=ready)

    def _port(self, name: str, asked: int | None = None, preferred: int | None = None) -> int:
        port = ports.hold_exactly(asked) if asked else ports.hold(self._memory.ports.get(name), preferred)
        self._cleanup.callback(port.close)
        self._memory.ports[name] = port.number
        return port.number

    def _new_key(self) -> str:
        """Make a service without limits, and take its key: the command shows it once."""
        output = self._directory / ".key"
        name = f"dev-{secrets.token_hex(2)}"
        argv = (*OURSELVES, "services", "create", name, "--json")
        try:
            self._watch.run(self._program("services", argv, output=output))
            if self._options.receiver and self._sandbox_url:
                url = f"{self._sandbox_url}/_sandbox/receiver"
                told = (*OURSELVES, "services", "set", name, "--callback-url", url)
                self._watch.run(self._program("services", told))
            return str(json.loads(output.read_text())["key"])
        except (ValueError, KeyError):
            raise StackError("`pipeline services create --json` printed no key") from None
        finally:
            output.unlink(missing_ok=True)


@contextlib.contextmanager
def _claimed(data: Path | None) -> Iterator[Path]:
    """Give the directory of a stack, to this process alone, and rid of what a killed one left running."""
    for left in scratch.abandoned():
        clear(left)
        scratch.remove(left)
    if data is None:
        with scratch.directory("stack") as directory:
            yield directory
        return
    directory = data.expanduser().resolve()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = scratch.lock(directory)
    if held is None:
        raise ConfigError(f"A stack is running already on {directory}: stop that one, or choose another --data.")
    try:
        clear(directory)
        shutil.rmtree(directory / "hold", ignore_errors=True)  # an outage of the last run is over
        yield directory
    finally:
        os.close(held)
