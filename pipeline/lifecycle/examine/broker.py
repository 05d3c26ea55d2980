"""The broker: reachable, encrypted on the way, near, keeping what it is given, with somebody at the other end."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from amqp.exceptions import AMQPError
from amqp.exceptions import NotFound as NoSuchQueue
from kombu.exceptions import KombuError
from redis.exceptions import RedisError, ResponseError

from pipeline import addresses
from pipeline.broker import QUEUE, impatient
from pipeline.lifecycle.examine.findings import Finding, fail, ok, warn
from pipeline.lifecycle.examine.reasons import reason
from pipeline.runtime import Runtime

PATIENCE_S = 5.0
FAR_MS = 50.0
LONG_QUEUE = 10_000
NEARLY_ALL = 0.9
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """A broker, as one connection sees it."""

    latency_ms: float
    queued: int
    eviction: str | None = None  # of Redis and Valkey, where they tell
    clients: tuple[int, int] | None = None  # now, at most


def broker(rt: Runtime) -> Iterator[Finding]:
    """Look at the broker."""
    try:
        seen = _look(rt.settings.broker_url)
    except (KombuError, RedisError, AMQPError, OSError) as error:
        why = reason(str(error)) or f"cannot be reached ({type(error).__name__})"
        words = f"it {why}: jobs wait for the workers' own sweeps"
        yield fail("broker", "broker_unreachable", words, "see BROKER_URL, and whether it runs")
    else:
        yield from judge(rt.settings.broker_url, seen)


def judge(url: str, seen: Seen) -> Iterator[Finding]:
    """What is to be said of the broker at *url*."""
    parts = urlsplit(url)
    name = "RabbitMQ" if parts.scheme.startswith("amqp") else "Redis or Valkey"
    here, encrypted = addresses.is_loopback(parts.hostname or "localhost"), parts.scheme in {"rediss", "amqps"}
    if not here and not encrypted:
        words = f"{name} is on another machine, and what is said to it, prompts among it, is not encrypted"
        todo = f"use its {'amqps' if name == 'RabbitMQ' else 'rediss'}:// address in BROKER_URL"
        yield warn("broker", "broker_not_encrypted", words, todo)
    elif seen.latency_ms > FAR_MS:
        words = f"{name} takes {seen.latency_ms:.0f} ms for a trivial command"
        yield warn("broker", "broker_far", words, "move it to the region of the processes")
    else:
        how = "on this machine" if here else "encrypted"
        yield ok("broker", f"{name}, {how}, {seen.latency_ms:.1f} ms for a trivial command")
    yield from _keeping(seen)


def _keeping(seen: Seen) -> Iterator[Finding]:
    if seen.eviction and seen.eviction.startswith("allkeys"):  # the others touch nothing that has no time to live
        words = f"when full it throws messages away ({seen.eviction}): wake-up calls, which costs time, and jobs that"
        todo = "set maxmemory-policy to noeviction (heroku redis:maxmemory NAME --policy noeviction)"
        yield warn("eviction", "broker_evicts", f"{words} other apps hand in by Celery, which are lost", todo)
    elif seen.eviction:
        yield ok("eviction", f"{seen.eviction}: no message is thrown away")
    if seen.clients and seen.clients[0] > NEARLY_ALL * seen.clients[1]:
        words = f"{seen.clients[0]} clients are connected, of {seen.clients[1]} that it allows"
        yield warn("clients", "broker_full", words, "fewer processes, or a broker that allows more")
    if seen.queued > LONG_QUEUE:
        words = f"{seen.queued:,} messages wait in the queue `{QUEUE}`"
        yield warn("queue", "queue_long", words, "start workers: whoever takes them is too slow, or not there")
    else:
        yield ok("queue", f"{seen.queued} messages wait in `{QUEUE}`")


def _look(url: str) -> Seen:
    with impatient(url, PATIENCE_S) as connection:
        connection.ensure_connection(max_retries=1, timeout=PATIENCE_S)
        return _rabbit(connection) if url.startswith("amqp") else _redis(connection.default_channel.client)


def _redis(client: Any) -> Seen:
    latency_ms = _best_ms(client.ping)
    queued = client.llen(QUEUE)
    try:
        memory, clients = client.info("memory"), client.info("clients")
    except ResponseError:  # some that are rented out do not say
        memory, clients = {}, {}
    now, most = clients.get("connected_clients"), clients.get("maxclients")
    return Seen(latency_ms, queued, memory.get("maxmemory_policy"), (now, most) if now and most else None)


def _rabbit(connection: Any) -> Seen:
    latency_ms = _best_ms(lambda: connection.channel().close())
    try:
        queued = int(connection.channel().queue_declare(QUEUE, passive=True).message_count)
    except NoSuchQueue:  # the first worker makes it
        queued = 0
    return Seen(latency_ms, queued)


def _best_ms(ask: Any) -> float:
    best_s = float("inf")
    for _ in range(_TRIES):  # the best tells the distance; the others, how busy it is here or there
        began = time.monotonic()
        ask()
        best_s = min(best_s, time.monotonic() - began)
    return best_s * 1000
