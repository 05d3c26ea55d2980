"""Examine: is this installation fit for its work? Each finding says what to do about it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import aiohttp
from kombu.exceptions import KombuError

from pipeline.broker import SWEEP_S, make_celery
from pipeline.errors import ConfigError, KeyRefused, ProviderError, StorageFailed, Unavailable
from pipeline.outputs import SOURCE_DAYS
from pipeline.runtime import Runtime
from pipeline.settings import OFF
from pipeline.store import account, catalogue, endpoints, schema, screens
from pipeline.store.custody import LOST_SINCE_DAYS, custody

PATIENCE_S = 5.0
"""How long the broker and our own address may take to answer, in seconds."""

SWEEP_LATE_S = 6 * SWEEP_S


class Level(StrEnum):
    """How a thing is: in order, worth a look, or in the way of the work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing examined."""

    what: str
    level: Level
    words: str


def examine(rt: Runtime) -> Iterator[Finding]:
    """Look at one thing after the other; what hangs on something that is broken is left out."""
    yield Finding("settings", Level.OK, f"level {rt.settings.wavespeed_level}, {_limits(rt)}")
    try:
        yield from _database(rt)
        usable = True
    except Unavailable as error:
        yield Finding("database", Level.FAIL, error.detail)
        usable = False
    yield _broker(rt)
    yield _provider(rt)
    yield from _webhooks(rt, usable=usable)
    yield _archive(rt)
    if usable:
        yield from _custody(rt)
        yield _catalogue(rt)
        yield _screen(rt)
        yield from _work(rt)


def _limits(rt: Runtime) -> str:
    limits = rt.settings.limits
    return f"{limits.submits_per_minute} starts a minute, {limits.max_in_flight} tasks at a time"


def _database(rt: Runtime) -> Iterator[Finding]:
    with rt.db.transaction() as tx:
        server: str = tx.exec_driver_sql("SHOW server_version").scalar_one()
        version, is_older = schema.current(tx), schema.is_older_than_the_code(tx)
    yield Finding("database", Level.OK, f"Postgres {server}")
    if is_older:
        raise Unavailable(f"Its schema is at {version}, older than this code: run `pipeline migrate`.")
    yield Finding("schema", Level.OK, f"at {version}")


def _broker(rt: Runtime) -> Finding:
    app = make_celery(rt.settings.broker_url)
    try:
        with app.connection_for_write(connect_timeout=PATIENCE_S) as connection:
            connection.ensure_connection(max_retries=1, timeout=PATIENCE_S)
    except (KombuError, OSError) as error:
        words = f"cannot be reached ({type(error).__name__}): jobs wait for the workers' own sweeps. See BROKER_URL"
        return Finding("broker", Level.FAIL, words)
    return Finding("broker", Level.OK, "reachable")


def _provider(rt: Runtime) -> Finding:
    async def balance() -> float:
        provider = rt.provider()
        try:
            return await provider.balance()
        finally:
            await provider.close()

    try:
        usd = asyncio.run(balance())
    except ConfigError as error:
        return Finding("provider", Level.FAIL, error.detail)
    except KeyRefused as error:
        return Finding("provider", Level.FAIL, f"refuses WAVESPEED_API_KEY: {error.detail}")
    except ProviderError as error:
        return Finding("provider", Level.WARN, f"cannot be asked now: {error.detail}")
    if usd <= 0:
        return Finding("provider", Level.WARN, f"the key works, but the balance is {usd:.2f} USD: top it up")
    return Finding("provider", Level.OK, f"the key works, the balance is {usd:.2f} USD")


def _webhooks(rt: Runtime, *, usable: bool) -> Iterator[Finding]:
    url = rt.settings.public_url
    if url is None:
        yield Finding("webhooks", Level.WARN, "PUBLIC_URL is not set: every job is polled, and none is called back")
        return
    if problem := asyncio.run(_asked(f"{url}/healthz")):
        words = f"{url} does not answer from here ({problem}): can the provider reach it?"
        yield Finding("webhooks", Level.WARN, words)
    else:
        yield Finding("webhooks", Level.OK, f"{url} answers")
    if usable and not rt.secrets.from_environment:
        with rt.db.transaction() as tx:
            known = account.secrets(tx)
        if not known:
            yield Finding(
                "secret", Level.WARN, "the webhook secret is not known yet: a worker fetches it when it starts"
            )


def _archive(rt: Runtime) -> Finding:
    storage = rt.storage
    if storage is None:
        words = f"outputs are not kept, and the provider deletes them after {SOURCE_DAYS} days: {rt.storage_problem}"
        return Finding("archive", Level.WARN, words)
    try:
        storage.try_now()
    except StorageFailed as error:
        return Finding("archive", Level.FAIL, error.detail)
    where = storage.folder or rt.settings.archives_to
    return Finding("archive", Level.OK, f"{where} can be written, read and cleared")


def _custody(rt: Runtime) -> Iterator[Finding]:
    with rt.db.transaction() as tx:
        now = custody(tx)
        off = [one.name for one in endpoints.troubled(tx) if one.off_at]
    waiting = sum(now.unarchived.values())
    if now.oldest_s is None:
        yield Finding("outputs", Level.OK, "there is none that only the provider has")
    else:
        left_s = max(SOURCE_DAYS * 86_400 - now.oldest_s, 0)
        words = f"{waiting} that only the provider has; it deletes the oldest in {left_s / 3600:.0f} h"
        late = now.at_risk and rt.settings.archive_url != OFF
        level = Level.OK if not late else Level.WARN if left_s > 86_400 else Level.FAIL
        yield Finding("outputs", level, f"{words}: is the archive in order?" if late else words)
    if now.lost:
        words = f"{now.lost} were lost in the last {LOST_SINCE_DAYS} days: their jobs' histories say why"
        yield Finding("lost", Level.WARN, words)
    if now.quarantined:
        yield Finding(
            "review", Level.OK, f"{now.quarantined} flagged outputs wait for a person: `pipeline review list`"
        )
    if now.dead:
        words = f"{now.dead} notifications were given up: `pipeline notifications list --state dead`"
        yield Finding("told", Level.WARN, words)
    if off:
        words = f"{len(off)} are switched off because nothing got through for days: `pipeline notifications endpoints`"
        yield Finding("receivers", Level.WARN, words)


async def _asked(url: str) -> str | None:
    """What is wrong with an address of ours; None when it says that it is alive."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, allow_redirects=False) as answer:
            return None if answer.status == 200 else f"HTTP {answer.status}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return type(error).__name__


def _catalogue(rt: Runtime) -> Finding:
    known, model = rt.catalogue(), rt.settings.default_model
    if not known.known:
        return Finding("models", Level.WARN, "the catalogue was not read yet: a worker does, or `pipeline models sync`")
    if not known.lists(model):
        near = known.nearest(model)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        words = f"DEFAULT_MODEL ({model}) is not in the provider's catalogue{hint}"
        return Finding("models", Level.WARN, words)
    with rt.db.transaction() as tx:
        paused = [one.id for one in catalogue.everything(tx) if one.paused_at]
    if model in paused:
        return Finding("models", Level.WARN, f"DEFAULT_MODEL ({model}) is paused")
    return Finding("models", Level.OK, f"DEFAULT_MODEL ({model}) is in the provider's catalogue")


def _screen(rt: Runtime) -> Finding:
    with rt.db.transaction() as tx:
        terms = len(screens.rows(tx))
    try:
        own = " and PROMPT_SCREEN" if rt.hook else ""
    except ConfigError as error:
        return Finding("screen", Level.FAIL, error.detail)
    return Finding("screen", Level.OK, f"{terms} terms{own}; see `pipeline screens`")


def _work(rt: Runtime) -> Iterator[Finding]:
    with rt.db.transaction() as tx:
        now = account.condition(tx)
    if now.halted_reason:
        yield Finding("account", Level.FAIL, f"halted: {now.halted_reason}; see `pipeline account`")
    elif now.backoff_s:
        yield Finding("account", Level.WARN, f"backing off for {now.backoff_s:.0f} s more; see `pipeline account`")
    else:
        yield Finding("account", Level.OK, "in order")
    if now.swept_s is None or now.swept_s > SWEEP_LATE_S:
        age = "never" if now.swept_s is None else f"{now.swept_s:.0f} s ago"
        yield Finding("sweep", Level.WARN, f"last run {age}: is a worker with its beat running?")
    else:
        yield Finding("sweep", Level.OK, f"last run {now.swept_s:.0f} s ago")
