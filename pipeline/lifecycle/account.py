"""The account: is the key good, is there credit, what is the webhook secret. Probes while halted; resumes by itself."""

import asyncio
from decimal import Decimal

from pipeline import telemetry
from pipeline.errors import ProviderError
from pipeline.runtime import Runtime
from pipeline.store import account, claims
from pipeline.store.account import Halt
from pipeline.threads import Loop
from pipeline.wavespeed import WaveSpeed

log = telemetry.get(__name__)

PROBE_S = 60.0
"""While the account is halted, one GET /balance in this time is all the provider hears of us."""

SECRET_MIN_AGE_S = 60.0
"""A secret is fetched at most so often, whatever strangers' callbacks provoke."""


class KeyCheck:
    """
    Asks for the balance on behalf of every request that was refused in the same moment: a GET or two for a whole batch.

    What is answered was asked after the refusal: a key may be revoked while an earlier GET is on its way.
    """

    def __init__(self, provider: WaveSpeed) -> None:
        self._provider = provider
        self._asking: asyncio.Task[float | ProviderError] | None = None

    async def works(self) -> bool:
        """Does the provider know the key? False also when it does not answer."""
        return not isinstance(await self._ask(), ProviderError)

    async def balance(self) -> float | None:
        """The balance in USD; None when it cannot be told now."""
        answer = await self._ask()
        return None if isinstance(answer, ProviderError) else answer

    async def _ask(self) -> float | ProviderError:
        earlier = self._asking
        if earlier is not None:
            await asyncio.wait([earlier])
        if self._asking is earlier:  # the first of those who waited asks for all of them
            self._asking = asyncio.create_task(self._get())
        assert self._asking is not None
        return await asyncio.shield(self._asking)

    async def _get(self) -> float | ProviderError:
        try:
            return await self._provider.balance()
        except ProviderError as error:
            return error


class Prober:
    """Asks once a minute, over all processes, whether a halt is over."""

    def __init__(self, rt: Runtime, loop: Loop, provider: WaveSpeed) -> None:
        self._rt = rt
        self._loop = loop
        self._provider = provider

    def look(self) -> float | None:
        """Probe if it is time to; resume if the account is in order."""
        with self._rt.db.transaction() as tx:
            halt = account.claim_probe(tx, probe_s=PROBE_S)
        if halt is None:
            return None
        try:
            balance = self._loop.run(self._provider.balance())
        except ProviderError as error:
            log.warning("account.still_halted", reason=halt.reason, why=error.code)
            return None
        with self._rt.db.transaction() as tx:
            cheapest = claims.cheapest(tx)
            resumed = _is_over(halt, balance, cheapest) and account.resume(tx)
        if not resumed:
            log.warning("account.still_halted", reason=halt.reason, balance_usd=balance)
            return None
        log.warning("account.resumed", reason=halt.reason, balance_usd=balance)
        self._rt.nudge("submit", "poll", "reconcile", "notify")
        return None


def _is_over(halt: Halt, balance: float, cheapest: Decimal | None) -> bool:
    """
    Whether the account can pay again, for the cheapest waiting job at least: that one is tried first.

    Where the balance covered the refused job already, or no price is known, it must have risen since.
    """
    if halt.reason != "insufficient_credits":
        return True
    before = halt.balance or 0.0
    if cheapest is None or before >= cheapest:
        return balance > before and balance >= (cheapest or 0)
    return balance >= cheapest


class SecretKeeper:
    """Fetches the webhook secret: when none is known, every hour, and when a callback's signature matched none."""

    def __init__(self, rt: Runtime, loop: Loop, provider: WaveSpeed) -> None:
        self._rt = rt
        self._loop = loop
        self._provider = provider

    def look(self) -> float | None:
        """Fetch the secret, unless somebody did in the last minute."""
        if not self._rt.settings.public_url or self._rt.secrets.from_environment:
            return None  # nobody calls back, or the operator keeps the secret
        with self._rt.db.transaction() as tx:
            if not account.claim_secret_fetch(tx, every_s=SECRET_MIN_AGE_S):
                return None
        try:
            secret = self._loop.run(self._provider.webhook_secret())
        except ProviderError as error:
            with self._rt.db.transaction() as tx:
                account.forget_secret_fetch(tx, again_s=5.0, every_s=SECRET_MIN_AGE_S)
            log.warning("secret.not_fetched", why=error.code, http_status=error.http_status)
            return 5.5
        with self._rt.db.transaction() as tx:
            if account.keep_secret(tx, secret):
                log.info("secret.fetched")
        return None
