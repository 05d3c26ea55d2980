"""What one process builds once, and everything else is handed: settings, database, the way to nudge."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from pipeline import telemetry, tracing
from pipeline.broker import make_celery
from pipeline.errors import ConfigError, Unavailable
from pipeline.hook import Hook
from pipeline.models import Catalogue
from pipeline.nudges import Nudger
from pipeline.screening import Screens
from pipeline.settings import Settings, load
from pipeline.store import account, inbox
from pipeline.store import catalogue as models
from pipeline.store import screens as terms
from pipeline.store.database import PATIENCE_S, Database, Transaction
from pipeline.store.inbox import Call, Heard
from pipeline.together import Together

if TYPE_CHECKING:
    from pipeline.outbound import Outbound
    from pipeline.storage import Storage
    from pipeline.wavespeed import WaveSpeed

T = TypeVar("T")

SECRETS_REREAD_S = 5.0
"""How old the webhook secrets a process knows may be: a rotation is taken over within this time."""

REREAD_S = 5.0
"""How often a process looks whether the catalogue of models, or the screen for prompts, is another one by now."""


def _quiet(*kinds: str) -> None:
    """A nudge to nobody: the next sweep finds the rows."""


@dataclass(frozen=True)
class Runtime:
    """
    One process's equipment. Frozen: a test hands in its own database, provider or nudge.

    `nudge("submit", …)` wakes whoever looks after such rows; it returns at once and never raises.
    """

    settings: Settings
    db: Database
    nudge: Callable[..., None] = _quiet

    @cached_property
    def secrets(self) -> "Secrets":
        """The webhook secrets, as this process knows them."""
        return Secrets(self.settings, self.db)

    @cached_property
    def callbacks(self) -> Together[Call, Heard | None]:
        """Takes those callbacks together that come at the same time: `rt.callbacks.do(call)`, see `inbox.hear_many`."""

        def take(calls: Sequence[Call]) -> list[Heard | None]:
            with self.db.statement() as tx:
                return inbox.hear_many(tx, calls, poll_s=self.settings.first_poll_s)

        return Together(take)

    @cached_property
    def catalogue(self) -> "Models":
        """The models there are, as this process knows them: `rt.catalogue()`."""
        return Models(self.settings, self.db)

    @cached_property
    def screens(self) -> "Lists":
        """The terms that prompts are screened for, as this process knows them: `rt.screens()`."""
        return Lists(self.db)

    @cached_property
    def hook(self) -> Hook | None:
        """
        The operator's own screen for prompts, if there is one.

        Raises:
            ConfigError: PROMPT_SCREEN names none that can be used.
        """
        return Hook(self.settings.prompt_screen) if self.settings.prompt_screen else None

    @cached_property
    def price_pause(self) -> "Pause":
        """How long the provider is not asked for prices by this process."""
        return Pause()

    def provider(self) -> "WaveSpeed":
        """
        A client of the provider's API.

        Raises:
            ConfigError: There is no API key.
        """
        from pipeline.wavespeed import WaveSpeed  # noqa: PLC0415 - aiohttp, for the few who call the provider

        key = self.settings.wavespeed_api_key
        if key is None:
            raise ConfigError("WAVESPEED_API_KEY: is missing; workers pay with it. See https://wavespeed.ai/accesskey")
        return WaveSpeed(key.get_secret_value(), self.settings.wavespeed_base_url)

    def outbound(self) -> "Outbound":
        """A client for addresses that others chose."""
        from pipeline.outbound import Outbound  # noqa: PLC0415 - aiohttp, for the few who call anybody

        return Outbound(self.settings.outbound_allow)

    @property
    def storage(self) -> "Storage | None":
        """Where outputs are kept; None: nowhere, see `storage_problem`."""
        return self._archive if not isinstance(self._archive, str) else None

    @property
    def storage_problem(self) -> str | None:
        """Why outputs are not kept; None when they are."""
        return self._archive if isinstance(self._archive, str) else None

    @cached_property
    def _archive(self) -> "Storage | str":
        from pipeline.storage import Storage  # noqa: PLC0415 - a library of some size, for those who touch files

        try:
            return Storage(self.settings.archives_to)
        except ConfigError as error:
            return error.detail

    def webhook_for(self, token: str) -> str | None:
        """Where the provider is to call back for one attempt; None without a public address: then we poll."""
        return f"{self.settings.public_url}/webhooks/wavespeed/{token}" if self.settings.public_url else None

    @staticmethod
    def unix_time() -> int:
        """Now, in seconds, as signatures count it."""
        return int(time.time())


class Pause:
    """What failed a moment ago is left alone for a while: those who wait for it would queue up behind one another."""

    def __init__(self) -> None:
        self._until = float("-inf")

    @property
    def over(self) -> bool:
        """Whether it may be tried."""
        return time.monotonic() > self._until

    def begin(self, seconds: float) -> None:
        """Leave it alone for so long, from now on."""
        self._until = time.monotonic() + seconds


class Secrets:
    """Those of the environment, or the ones workers fetched into Postgres, read again every few seconds."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.from_environment = tuple(secret.get_secret_value() for secret in settings.wavespeed_webhook_secret)
        self._db = db
        self._known: Sequence[str] = ()
        self._read_at = float("-inf")
        self._asked_at = float("-inf")

    def may_be_rotated(self) -> bool:
        """True when a fetched secret matched nothing, at most once in a few seconds: strangers can provoke this."""
        if self.from_environment or time.monotonic() - self._asked_at < SECRETS_REREAD_S:
            return False
        self._asked_at = time.monotonic()
        return True

    def __call__(self) -> Sequence[str]:
        """
        The secrets that may have signed a callback.

        Raises:
            Unavailable: None is known yet, so no callback can be judged; the provider will try again.
        """
        if self.from_environment:
            return self.from_environment
        if time.monotonic() - self._read_at > SECRETS_REREAD_S:
            with self._db.transaction() as tx:
                self._known = account.secrets(tx)
            self._read_at = time.monotonic()
        if not self._known:
            self._read_at = float("-inf")
            raise Unavailable("The webhook secret is not known yet: a worker is about to fetch it.")
        return self._known


class Reread(ABC, Generic[T]):
    """Something that is kept in Postgres and seldom changes; looked after every few seconds by one thread."""

    def __init__(self, db: Database, first: T, *, reread_s: float = REREAD_S) -> None:
        self._db = db
        self._reread_s = reread_s
        self._known = first  # as long as it has no version
        self._version: object = None
        self._looked_at = float("-inf")
        self._looking = threading.Lock()

    def __call__(self) -> T:
        """
        What is known; a few seconds old at most.

        Raises:
            Unavailable: The database is away.
        """
        if time.monotonic() - self._looked_at > self._reread_s:
            never = self._looked_at == float("-inf")
            if self._looking.acquire(blocking=never):  # meanwhile the others go by what was known
                try:
                    self._look()
                finally:
                    self._looking.release()
        return self._known

    def _look(self) -> None:
        if time.monotonic() - self._looked_at <= self._reread_s:  # somebody just did
            return
        with self._db.transaction() as tx:
            version = self._version_of(tx)
            found = self._read(tx) if version != self._version else None
        if found is not None:
            self._known, self._version = found, version
        self._looked_at = time.monotonic()

    @abstractmethod
    def _version_of(self, tx: Transaction) -> object:
        """Say which one it is now; None when there never was any."""

    @abstractmethod
    def _read(self, tx: Transaction) -> T:
        """Read it."""


class Models(Reread[Catalogue]):
    """The catalogue of models, as workers read it into Postgres."""

    def __init__(self, settings: Settings, db: Database, *, reread_s: float = REREAD_S) -> None:
        self._allow_unlisted = settings.allow_unlisted_models
        super().__init__(db, Catalogue(allow_unlisted=self._allow_unlisted), reread_s=reread_s)

    def _version_of(self, tx: Transaction) -> object:
        return models.version(tx)

    def _read(self, tx: Transaction) -> Catalogue:
        return Catalogue(models.listings(tx), allow_unlisted=self._allow_unlisted)


class Lists(Reread[Screens]):
    """The lists of terms that prompts are screened for, as people keep them in Postgres."""

    def __init__(self, db: Database, *, reread_s: float = REREAD_S) -> None:
        super().__init__(db, Screens(), reread_s=reread_s)

    def _version_of(self, tx: Transaction) -> object:
        return terms.version(tx)

    def _read(self, tx: Transaction) -> Screens:
        return Screens(terms.rows(tx), terms.exempted(tx))


def from_environment(name: str, *, pool_size: int = 8, patience_s: int = PATIENCE_S) -> Runtime:
    """
    The runtime of this process, which calls itself *name* to Postgres and lets a statement take *patience_s* seconds.

    Logging is set up too.

    Raises:
        ConfigError: The environment is wrong; the message names every bad variable.
    """
    settings = load()
    telemetry.configure(settings.log_level)
    if settings.otel_exporter_otlp_endpoint:
        tracing.begin(name)
    nudge = Nudger(make_celery(settings.broker_url), settings.broker_url)
    database = Database(settings.database_url, name=name, pool_size=pool_size, patience_s=patience_s)
    return Runtime(settings, database, nudge)
