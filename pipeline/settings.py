"""The environment: read once, checked, frozen."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, ValidationError, model_validator

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one account may do: POSTs in any 60 s, and tasks at a time."""

    submits_per_minute: int
    max_in_flight: int


LEVELS: Mapping[str, Limits] = {
    "bronze": Limits(2, 2),
    "silver": Limits(500, 300),
    "gold": Limits(3000, 3000),
    "ultra": Limits(5000, 10000),
}
"""Source: https://wavespeed.ai/docs/account-levels (images a minute, concurrent tasks)."""


def _postgres_url(url: str) -> str:
    """Heroku's `postgres://` becomes SQLAlchemy's `postgresql+psycopg://`."""
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise ValueError("must begin with postgres:// or postgresql://")
    return urlunsplit(parts._replace(scheme="postgresql+psycopg"))


def _broker_url(url: str) -> str:
    """Any Redis, Valkey or RabbitMQ URL; `rediss://` gets Heroku's self-signed certificates accepted."""
    parts = urlsplit(url)
    scheme = {"valkey": "redis", "valkeys": "rediss"}.get(parts.scheme, parts.scheme)
    if scheme not in {"redis", "rediss", "amqp", "amqps"}:
        raise ValueError("must begin with redis://, rediss://, amqp:// or amqps://")
    query = parts.query
    if scheme == "rediss" and "ssl_cert_reqs" not in dict(parse_qsl(query)):
        query = urlencode([*parse_qsl(query), ("ssl_cert_reqs", "none")])
    return urlunsplit(parts._replace(scheme=scheme, query=query))


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http:// or https:// address")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("must be a plain address without credentials, query or fragment")
    return url.rstrip("/")


def _base_url(url: str) -> str:
    if _origin(url).endswith("/api/v3"):
        raise ValueError("must not contain /api/v3, it is added for you")
    return _origin(url)


def _comma_separated(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Origin = Annotated[str, AfterValidator(_origin)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True):
    """
    The environment, read once: each field is the variable of the same name in capitals.

    A ConfigError names *every* missing or malformed variable, and shows no value.
    """

    database_url: Annotated[str, AfterValidator(_postgres_url)]
    broker_url: Annotated[str, AfterValidator(_broker_url)] = "redis://127.0.0.1:6379/0"
    public_url: Origin | None = None  # where the provider reaches us; without it every job is polled

    wavespeed_api_key: SecretStr | None = None  # secrets stay out of tracebacks and logs
    wavespeed_base_url: Annotated[str, AfterValidator(_base_url)] = "https://api.wavespeed.ai"
    wavespeed_webhook_secret: Annotated[tuple[SecretStr, ...], BeforeValidator(_comma_separated)] = ()
    wavespeed_level: Literal["bronze", "silver", "gold", "ultra"] = "bronze"
    submits_per_minute: Annotated[int, Field(ge=1)] | None = None  # None: what the level allows
    max_in_flight: Annotated[int, Field(ge=1)] | None = None
    submit_window_s: Seconds = 60.0  # the provider's window; shorter only in tests
    account_exclusive: bool = False  # nobody else, and no browser, makes tasks on this account
    default_model: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)+$")] = "openai/dall-e-2"

    lease_s: Annotated[float, Field(ge=75)] = 90.0  # longer than a POST can take: connect 10 s, read 60 s
    poll_after_s: Seconds | None = None  # None: 30 s with webhooks, 2 s without
    polls_per_minute: Annotated[int, Field(ge=1)] = 1200  # a budget of their own, all processes together
    deadline_s: Seconds = 3600.0  # a job's, from being accepted, unless it names its own
    unknown_patience_s: Seconds = 900.0  # how long a lost POST's task may take to show in the provider's list

    secret_key: SecretStr | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _callbacks_can_arrive(self) -> Self:
        """A callback address that the provider cannot reach would silently turn every job into a polled one."""
        if self.public_url and not _is_loopback(self.wavespeed_base_url):
            parts = urlsplit(self.public_url)
            if parts.scheme != "https" or _is_private(parts.hostname or ""):
                raise ValueError("public_url: must be a public https:// address, the provider calls it from outside")
        return self

    @cached_property
    def limits(self) -> Limits:
        """The account's limits: those of its level, unless named one by one."""
        level = LEVELS[self.wavespeed_level]
        return Limits(
            self.submits_per_minute or level.submits_per_minute,
            self.max_in_flight or level.max_in_flight,
        )

    @property
    def first_poll_s(self) -> float:
        """How long a job may run before we ask, in seconds."""
        return self.poll_after_s or (30.0 if self.public_url else 2.0)


def load(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """
    Read the settings from *environ*; an empty variable counts as unset.

    Raises:
        ConfigError: Names every missing or malformed variable and says what is wrong with it.
    """
    values: dict[str, Any] = {
        name: environ[name.upper()].strip() for name in Settings.model_fields if environ.get(name.upper(), "").strip()
    }
    if "broker_url" not in values:
        for name in ("REDIS_URL", "CLOUDAMQP_URL"):  # what Heroku's add-ons set
            if environ.get(name):
                values["broker_url"] = environ[name]
                break
    try:
        return Settings(**values, **overrides)
    except ValidationError as error:
        problems = [_problem(item["loc"], item["msg"]) for item in error.errors(include_url=False, include_input=False)]
    raise ConfigError("The environment needs mending:\n" + "\n".join(f"  {problem}" for problem in problems))


def _problem(loc: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not loc:  # a rule between fields names its own
        name, _, message = message.partition(": ")
        return f"{name.upper()}: {message}"
    return f"{str(loc[0]).upper()}: {'is missing' if message == 'Field required' else message}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
