"""The provider: the key, the balance, its clock against ours, and the secret that signs its callbacks."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.errors import ConfigError, KeyRefused, ProviderError
from pipeline.lifecycle.examine.findings import Finding, fail, ok, warn
from pipeline.runtime import Runtime
from pipeline.signatures import TOLERANCE_S
from pipeline.store import account
from pipeline.wavespeed import Standing

OFF_S = 30.0
FAR_OFF_S = 0.8 * TOLERANCE_S
"""Nearly as far as a callback's clock may be from ours: further, and none is believed."""

_KEY_PAGE = "https://wavespeed.ai/accesskey"


@dataclass(frozen=True, slots=True)
class _Said:
    standing: Standing
    at: datetime  # by our clock, in the middle of the call
    secret: str | None
    no_secret: str = ""  # why


def provider(rt: Runtime, *, usable: bool) -> Iterator[Finding]:
    """Ask the provider, and compare."""
    try:
        said = asyncio.run(_ask(rt))
    except ConfigError:
        words = "WAVESPEED_API_KEY is missing: workers do not start without"
        yield fail("provider", "key_missing", words, f"make one at {_KEY_PAGE}, and set it")
        return
    except KeyRefused as error:
        words = f"refuses WAVESPEED_API_KEY: {error.detail}"
        yield fail("provider", "key_refused", words, f"set one of {_KEY_PAGE}; a halted account then resumes by itself")
        return
    except ProviderError as error:
        todo = "see WAVESPEED_BASE_URL, and whether the provider has an outage"
        yield warn("provider", "provider_unreachable", f"cannot be asked now: {error.detail}", todo)
        return
    usd = said.standing.usd
    if usd <= 0:
        yield warn("provider", "no_credit", f"the key works, but the balance is {usd:.2f} USD", "top it up")
    else:
        yield ok("provider", f"the key works, the balance is {usd:.2f} USD")
    yield from _clock(said)
    if rt.settings.public_url:
        yield from _secret(rt, said, usable=usable)


async def _ask(rt: Runtime) -> _Said:
    client = rt.provider()
    try:
        began = datetime.now(UTC)
        standing = await client.standing()
        at = began + (datetime.now(UTC) - began) / 2
        if not rt.settings.public_url:
            return _Said(standing, at, None)
        try:
            return _Said(standing, at, await client.webhook_secret())
        except ProviderError as error:
            return _Said(standing, at, None, error.detail)
    finally:
        await client.close()


def _clock(said: _Said) -> Iterator[Finding]:
    if said.standing.server_time is None:
        return
    there = said.standing.server_time + timedelta(seconds=0.5)  # it is cut to the second
    off_s = (said.at - there).total_seconds()
    words = f"this machine's is {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} the provider's"
    todo = "set it by NTP, on every machine that runs `web`"
    if abs(off_s) > FAR_OFF_S:
        words += f"; at {TOLERANCE_S} s no callback is believed"
        yield fail("clock", "clock_far_off", words, todo)
    elif abs(off_s) > OFF_S:
        yield warn("clock", "clock_off", words, todo)
    else:
        yield ok("clock", words)


def _secret(rt: Runtime, said: _Said, *, usable: bool) -> Iterator[Finding]:
    own = rt.secrets.from_environment
    if said.secret is None:
        words = f"the provider does not tell it now: {said.no_secret}"
        yield warn("secret", "secret_unknown", words, "ask again later")
    elif own:
        if said.secret.removeprefix("whsec_") in {one.removeprefix("whsec_") for one in own}:
            yield ok("secret", "WAVESPEED_WEBHOOK_SECRET has the provider's")
        else:
            words = "WAVESPEED_WEBHOOK_SECRET has not the provider's: every callback is refused, and every job polled"
            yield fail("secret", "secret_wrong", words, "unset it (workers then fetch it), or set the provider's")
    elif usable:
        with rt.db.transaction() as tx:
            known = account.secrets(tx)
        if not known:
            words = "the webhook secret is not known yet"
            yield warn("secret", "secret_not_fetched", words, "start a worker: it fetches it")
        elif said.secret not in known:
            words = "the provider has a new webhook secret, which no worker has fetched yet"
            yield warn("secret", "secret_rotated", words, "nothing: a worker fetches it with the next callback")
        else:
            yield ok("secret", "fetched from the provider, and still its")
