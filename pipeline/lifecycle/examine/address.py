"""Our own public address: a signed ping goes out through it, as a callback would come in, and must be echoed by us."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from hashlib import sha256
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from pipeline import addresses, pings
from pipeline.lifecycle.examine.findings import Finding, fail, ok, warn
from pipeline.outbound import Answer, Blocked, Outbound, Unreachable, shown
from pipeline.pings import Echo
from pipeline.runtime import Runtime
from pipeline.store import keys

PATIENCE_S = 10.0
"""The provider gives up, too."""

_ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_CERTAIN = ("cannot be found by its name", "does not agree on TLS", "has no valid certificate")
_NOBODY_HOME = {502, 503, 504}


def address(rt: Runtime, *, usable: bool) -> Iterator[Finding]:
    """Send the ping; without the database, whose secret signs it, only say so."""
    url = rt.settings.public_url
    if url is None:
        words = "PUBLIC_URL is not set: every job is polled, and none is called back"
        yield warn("webhooks", "no_public_url", words, "set PUBLIC_URL to this app's https address")
    elif usable:
        with rt.db.transaction() as tx:
            secret = keys.of(tx, None)[0]
        yield asyncio.run(_ping(rt, url, secret))


async def _ping(rt: Runtime, url: str, secret: str) -> Finding:
    ping_id = f"ping_{secrets.token_urlsafe(18)}"
    headers = pings.headers(secret, ping_id, now=rt.unix_time())
    in_development = addresses.is_loopback(urlsplit(rt.settings.wavespeed_base_url).hostname or "")
    outbound = Outbound(_ANYWHERE if in_development else rt.settings.outbound_allow)
    try:
        answer = await outbound.post(
            url + pings.PATH, headers=headers, body=pings.BODY, total_s=PATIENCE_S, answer_bytes=64 * 1024
        )
    except Blocked as error:
        return fail("webhooks", "public_url_private", error.detail, "the provider calls from outside: see PUBLIC_URL")
    except Unreachable as error:
        if any(words in error.detail for words in _CERTAIN):
            return fail("webhooks", "public_url_broken", error.detail, "see PUBLIC_URL, its DNS and its certificate")
        words = f"{error.detail.removesuffix('.')}, asked from here"
        return warn("webhooks", "public_url_silent", words, "see whether `web` runs, and whether others reach it")
    finally:
        await outbound.close()
    return _judged(url, answer, secret, ping_id)


def _judged(url: str, answer: Answer, secret: str, ping_id: str) -> Finding:
    name = shown(url).rstrip("/")
    if 300 <= answer.status < 400:
        return _redirected(url, answer.headers.get("Location", ""))
    said = _json(answer.body)
    if answer.status == 200 and (echo := _echo(said)) and pings.is_ours(secret, ping_id, echo):
        if echo.sha256 == sha256(pings.BODY).hexdigest():
            return ok("webhooks", f"{name} leads here: a signed ping came back in {answer.duration_ms} ms")
        words = f"something in front of {name} changes bodies ({len(pings.BODY)} bytes sent, {echo.size} came)"
        todo = "have it pass bodies on as they are, or no callback's signature is right"
        return fail("webhooks", "body_changed", words, todo)
    if answer.status == 401 and said.get("code") == "bad_signature":
        return _refused(name, str(said.get("detail")))
    if said.get("code") == "unavailable":
        words = f"{name} leads to a web process that has no database"
        return fail("webhooks", "web_without_database", words, "see DATABASE_URL there, and its log")
    if answer.status in _NOBODY_HOME:
        words = f"{name} answers HTTP {answer.status}: nobody is behind it"
        return warn("webhooks", "public_url_silent", words, "see whether `web` runs")
    kind = answer.headers.get("Content-Type", "").partition(";")[0] or "nothing"
    words = f"{name} leads to another app, or is kept from us: HTTP {answer.status}, {kind}"
    return fail("webhooks", "public_url_elsewhere", words, "set PUBLIC_URL to the address of this app's `web`")


def _redirected(url: str, location: str) -> Finding:
    target = shown(location) if "://" in location else location[:200]
    where = f"{shown(url).rstrip('/')} redirects to {target or 'nowhere'}"
    words = f"{where}: the provider does not follow, and callbacks are lost"
    origin, found, _ = location.partition(pings.PATH)
    todo = shown(origin).rstrip("/") if found and "://" in origin else "where it ends"
    return fail("webhooks", "public_url_redirects", words, f"set PUBLIC_URL to {todo}")


def _refused(name: str, detail: str) -> Finding:
    if detail == pings.NOT_OURS:
        words = f"{name} leads to another installation of this, with a database of its own"
        return fail("webhooks", "public_url_other", words, "see PUBLIC_URL here, and DATABASE_URL there")
    if detail == pings.TOO_OLD:
        words = f"the clock of {name} and the one here are minutes apart"
        return fail("webhooks", "web_clock_off", words, "set the clocks by NTP, or callbacks are not believed")
    if detail.startswith("The header"):
        words = f"something in front of {name} drops or changes the headers webhook-id, -timestamp and -signature"
        return fail("webhooks", "headers_stripped", words, "have it pass them on, or no callback is believed")
    words = f"{name} leads to an older release, which knows no ping"
    return warn("webhooks", "web_older", words, "deploy this release there, too")


def _echo(said: dict[str, Any]) -> Echo | None:
    try:
        return Echo(int(said["size"]), str(said["sha256"]), str(said["signature"]))
    except (KeyError, TypeError, ValueError):
        return None


def _json(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
