"""The catalogue: which models there are and what they take, read from the provider once a day."""

import asyncio
from collections.abc import Sequence

from pipeline import telemetry
from pipeline.catalogue import Offer
from pipeline.errors import ProviderError
from pipeline.runtime import Runtime
from pipeline.store import catalogue
from pipeline.store.catalogue import Change
from pipeline.threads import Loop
from pipeline.wavespeed import WaveSpeed

log = telemetry.get(__name__)


def keep(rt: Runtime, offers: Sequence[Offer], *, believed: bool = False) -> Change:
    """Make what was read the catalogue. *believed*: even if most of what there was is missing."""
    with rt.db.transaction() as tx:
        change = catalogue.keep(tx, offers, believed=believed)
    if change.doubtful:
        log.warning("catalogue.doubted", listed=change.listed)
    log.info("catalogue.read", listed=change.listed, added=change.added, withdrawn=change.withdrawn)
    return change


def sync(rt: Runtime, *, believed: bool = False) -> Change:
    """
    Read the provider's catalogue now, and keep it.

    Raises:
        ProviderError: It cannot be read; what was known stays.
    """

    async def fetched() -> Sequence[Offer]:
        provider = rt.provider()
        try:
            return await provider.models()
        finally:
            await provider.close()

    return keep(rt, asyncio.run(fetched()), believed=believed)


class CatalogueKeeper:
    """Reads the catalogue: when none was ever read, and every day."""

    def __init__(self, rt: Runtime, loop: Loop, provider: WaveSpeed) -> None:
        self._rt = rt
        self._loop = loop
        self._provider = provider

    def look(self) -> float | None:
        """Read it, unless somebody did within the last day."""
        with self._rt.db.transaction() as tx:
            if not catalogue.claim_reading(tx):
                return None
        try:
            offers = self._loop.run(self._provider.models())
        except ProviderError as error:
            log.warning("catalogue.not_read", why=error.code, http_status=error.http_status)
            return None  # the sweep says when to try again
        keep(self._rt, offers)
        return None
