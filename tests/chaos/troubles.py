"""Those who hurt the stack, each at its own random times, all at once: Postgres, workers, broker, connections."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import redis

from pipeline.embedded.processes import StackError
from pipeline.embedded.stack import RunningStack
from tests.chaos.proxy import Mood, Proxy

FAULTS: Mapping[str, object] = {
    "generation_s": [0.2, 1.5],
    "latency_s": [0.0, 1.0],  # so that there is always a POST under way when a worker is killed
    "fail": 0.02,
    "webhook_drop": 0.05,
    "webhook_duplicate": 0.5,
    "webhook_delay_s": [0.0, 1.0],
    "webhook_spread_s": [0.0, 15.0],
    "webhook_early": 0.1,
    "webhook_forge": 0.01,
    "lose_answer": 0.02,
    "status_500": 0.01,
    "redirect_307": 0.01,
    "status_429": 0.02,
}
"""What the provider does wrong: callbacks delivered 0 to 4 times in any order, forged ones, lost answers, refusals."""

DATABASE_EVERY_S = (5.0, 40.0)
WORKERS_EVERY_S = (5.0, 20.0)
BROKER_EVERY_S = (5.0, 30.0)
CONNECTIONS_EVERY_S = (3.0, 12.0)
OTHERS_EVERY_S = (20.0, 60.0)
OUTAGE_S = (1.0, 5.0)
HALF_OPEN_S = (1.0, 8.0)


@dataclass(frozen=True)
class Kill:
    """Workers that were killed at one moment (Unix time)."""

    at: float
    pids: frozenset[int]


class Troubles:
    """Everything that goes wrong on purpose, and the record of it."""

    def __init__(self, stack: RunningStack, proxy: Proxy, *, seed: str) -> None:
        self._stack = stack
        self._proxy = proxy
        self._over = threading.Event()
        self.made: list[tuple[float, str]] = []  # when each began (Unix time), and what it was
        self.kills: list[Kill] = []
        self._failed: list[BaseException] = []
        acts: dict[str, tuple[tuple[float, float], Callable[[random.Random], str]]] = {
            "database": (DATABASE_EVERY_S, self._hurt_the_database),
            "workers": (WORKERS_EVERY_S, self._kill_workers),
            "broker": (BROKER_EVERY_S, self._hurt_the_broker),
            "connections": (CONNECTIONS_EVERY_S, self._hurt_connections),
            "others": (OTHERS_EVERY_S, self._kill_others),
        }
        self._threads = [
            threading.Thread(
                target=self._make, args=(every_s, act, random.Random(f"{seed} {name}")), name=name, daemon=True
            )
            for name, (every_s, act) in acts.items()
        ]

    @contextlib.contextmanager
    def raging(self) -> Iterator["Troubles"]:
        """
        Make trouble for as long as this lasts; then everything is allowed to run again.

        Raises:
            StackError: The stack could not be hurt as meant.
        """
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(60.0)
        if self._failed:
            raise StackError(f"A trouble could not be made: {self._failed[0]!r}") from self._failed[0]

    def _make(self, every_s: tuple[float, float], act: Callable[[random.Random], str], dice: random.Random) -> None:
        while not self._over.wait(dice.uniform(*every_s)):
            began = time.time()
            try:
                if done := act(dice):
                    self.made.append((began, done))
            except Exception as error:
                self._failed.append(error)
                return

    def _hurt_the_database(self, dice: random.Random) -> str:
        how = dice.choice(("fast restart", "immediate restart", "SIGKILL", "outage"))
        if how == "outage":
            self._stop_a_while("postgres", dice)
        elif how == "SIGKILL":
            self._stack.kill("postgres")
        else:
            number = signal.SIGINT if how == "fast restart" else signal.SIGQUIT
            with contextlib.suppress(ProcessLookupError):
                for postmaster in self._stack.pids()["postgres"][:1]:
                    os.kill(postmaster, number)
        return f"Postgres: {how}"

    def _kill_workers(self, dice: random.Random) -> str:
        there = self._stack.pids()["worker"]
        everybody = dice.random() < 0.3
        killed = set()
        at = time.time()
        for pid in there if everybody else dice.sample(there, min(1, len(there))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        if not killed:
            return ""
        self.kills.append(Kill(at, frozenset(killed)))
        return f"SIGKILL of {'all workers' if everybody else 'a worker'}"

    def _hurt_the_broker(self, dice: random.Random) -> str:
        how = dice.choice(("FLUSHALL", "FLUSHALL", "SIGKILL", "outage"))
        if how == "outage":
            self._stop_a_while("valkey", dice)
        elif how == "SIGKILL":
            self._stack.kill("valkey")
        else:
            try:
                with redis.Redis.from_url(self._stack.broker_url, socket_timeout=2.0) as broker:
                    broker.flushall()
            except redis.RedisError:
                return ""  # just starting
        return f"broker: {how}"

    def _hurt_connections(self, dice: random.Random) -> str:
        way = dice.choice(sorted(self._proxy.ways))
        how = dice.choice((Mood.HELD, Mood.SWALLOWING, None))
        for_s = dice.uniform(*HALF_OPEN_S)
        if how is None:
            self._proxy.cut(way)
            return f"connections to {way}: cut"
        self._proxy.turn(way, how)
        self._over.wait(for_s)
        self._proxy.turn(way, Mood.OPEN)
        return f"connections to {way}: half open, {how}"

    def _kill_others(self, dice: random.Random) -> str:
        name = dice.choice(("web", "beat"))
        self._stack.kill(name)
        return f"SIGKILL of {name}"

    def _stop_a_while(self, name: str, dice: random.Random) -> None:
        for_s = dice.uniform(*OUTAGE_S)
        self._stack.stop(name)
        self._over.wait(for_s)
        self._stack.start(name)
