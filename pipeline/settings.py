"""The environment: read once, checked, frozen."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from pipeline import addresses, models
from pipeline.addresses import Network
from pipeline.errors import ConfigError
from pipeline.outputs import Policy


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


def _split(url: str) -> SplitResult:
    """Take an address apart. Python's own words for a broken one quote it, and with it perhaps a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is not an address; percent-encode what is special in its user name or password") from None
    return parts


def _postgres_url(url: str) -> str:
    """Heroku's `postgres://` becomes SQLAlchemy's `postgresql+psycopg://`."""
    parts = _split(url)
    if parts.scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise ValueError("must begin with postgres:// or postgresql://")
    return urlunsplit(parts._replace(scheme="postgresql+psycopg"))


def _broker_url(url: str) -> str:
    """Any Redis, Valkey or RabbitMQ URL; `rediss://` gets Heroku's self-signed certificates accepted."""
    parts = _split(url)
    scheme = {"valkey": "redis", "valkeys": "rediss"}.get(parts.scheme, parts.scheme)
    if scheme not in {"redis", "rediss", "amqp", "amqps"}:
        raise ValueError("must begin with redis://, rediss://, amqp:// or amqps://")
    query = parts.query
    if scheme == "rediss" and "ssl_cert_reqs" not in dict(parse_qsl(query)):
        query = urlencode([*parse_qsl(query), ("ssl_cert_reqs", "none")])
    return urlunsplit(parts._replace(scheme=scheme, query=query))


def _origin(url: str) -> str:
    parts = _split(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http:// or https:// address")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("must be a plain address without credentials, query or fragment")
    return url.rstrip("/")


def _base_url(url: str) -> str:
    if _origin(url).endswith("/api/v3"):
        raise ValueError("must not contain /api/v3, it is added for you")
    return _origin(url)


def _model(name: str) -> str:
    if problem := models.name_problem(name):
        raise ValueError(problem[0].lower() + problem[1:])
    return name


def _function(path: str) -> str:
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or not name.isidentifier():
        raise ValueError("must name a function as package.module:function")
    return path


def _comma_separated(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _network(text: object) -> object:
    try:
        return ip_network(text) if isinstance(text, str) else text
    except ValueError:
        raise ValueError("must be networks such as 10.0.0.0/8 or ::1/128, separated by commas") from None


def _no_empty_key(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value().removeprefix("whsec_"):
        raise ValueError("must be more than its prefix, or anybody could sign with it")
    return secret


def _token(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]{16,500}", secret.get_secret_value()):
        raise ValueError("must be at least 16 printable ASCII characters without spaces, or it can be guessed")
    return secret


def _api_key(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", secret.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces or line breaks: copy it once more")
    return secret


def _password(secret: SecretStr) -> SecretStr:
    if not 12 <= len(secret.get_secret_value()) <= 500:
        raise ValueError("must have 12 to 500 characters, or it can be guessed")
    return secret


OFF = "off"
"""Of an address: there is none, by choice."""


def _archive_url(url: str) -> str:
    if url == OFF:
        return url
    parts = _split(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return url
    if parts.scheme not in {"s3", "gs", "az"} or not parts.netloc:
        raise ValueError("must be file:///folder, s3://bucket, gs://bucket or az://container, or off")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("must be a plain address; keys go into the variables of the bucket's maker")
    return url


Origin = Annotated[str, AfterValidator(_origin)]
ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
Token = Annotated[SecretStr, AfterValidator(_token)]
Password = Annotated[SecretStr, AfterValidator(_password)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_no_empty_key)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400)]  # Postgres must be able to add it to a time


class Settings(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True):
    """
    The environment, read once: each field is the variable of the same name in capitals.

    A ConfigError names *every* missing or malformed variable, and shows no value.
    """

    database_url: Annotated[str, AfterValidator(_postgres_url)]
    broker_url: Annotated[str, AfterValidator(_broker_url)] = "redis://127.0.0.1:6379/0"

    wavespeed_api_key: ApiKey | None = None  # secrets stay out of tracebacks and logs
    wavespeed_base_url: Annotated[str, AfterValidator(_base_url)] = "https://api.wavespeed.ai"
    public_url: Origin | None = None  # where the provider reaches us; without it every job is polled
    wavespeed_webhook_secret: Annotated[tuple[WebhookSecret, ...], BeforeValidator(_comma_separated)] = ()
    wavespeed_level: Literal["bronze", "silver", "gold", "ultra"] = "bronze"
    submits_per_minute: Annotated[int, Field(ge=1)] | None = None  # None: what the level allows
    max_in_flight: Annotated[int, Field(ge=1)] | None = None
    submit_window_s: Seconds = 60.0  # the provider's window; shorter only in tests
    account_exclusive: bool = False  # nobody else, and no browser, makes tasks on this account
    default_model: Annotated[str, AfterValidator(_model)] = "openai/dall-e-2"
    allow_unlisted_models: bool = False  # jobs may name models that the provider's catalogue does not

    prompt_screen: Annotated[str, AfterValidator(_function)] | None = None  # the operator's own, beside the lists

    lease_s: Annotated[Seconds, Field(ge=75)] = 90.0  # longer than a POST can take: connect 10 s, read 60 s
    poll_after_s: Seconds | None = None  # None: 30 s with webhooks, 2 s without
    polls_per_minute: Annotated[int, Field(ge=1)] = 1200  # a budget of their own, all processes together
    deadline_s: Seconds = 3600.0  # a job's, from being accepted, unless it names its own
    unknown_patience_s: Seconds = 900.0  # how long a lost POST's task may take to show in the provider's list

    outbound_allow: Annotated[
        tuple[Annotated[Network, BeforeValidator(_network)], ...], BeforeValidator(_comma_separated)
    ] = ()  # networks that callbacks and downloads may lead to though they are not public

    archive_url: Annotated[str, AfterValidator(_archive_url)] | None = None  # None: a folder beside the code
    archive_redirect: bool = True  # callers fetch files from a bucket by a signed address; else through us
    nsfw_policy: Policy = Policy.FLAG  # where the service has none of its own
    dyno: str | None = None  # Heroku's name for this machine, whose disk is private and vanishes
    operator_callback_url: str | None = None  # where the operator is told of a halted account, and the like

    web_threads: Annotated[int, Field(ge=10, le=10_000)] = 320  # of one web process; the Procfile reads it too

    metrics_token: Token | None = None  # None: there is no /metrics

    secret_key: Token | None = None  # signs the dashboard's cookies
    dashboard_password: Password | None = None  # None: there is no dashboard
    dashboard_viewer_password: Password | None = None  # who signs in with this one may look, and change nothing
    trusted_proxies: Annotated[int, Field(ge=0, le=5)] | None = None  # None: one on Heroku, none elsewhere

    otel_exporter_otlp_endpoint: Origin | None = None  # where traces go; the SDK reads more variables by itself

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("public_url")
    @classmethod
    def _callbacks_can_arrive(cls, url: str | None, info: ValidationInfo) -> str | None:
        """A callback address that the provider cannot reach would silently turn every job into a polled one."""
        provider = info.data.get("wavespeed_base_url")  # absent when it is wrong itself: then that is said first
        if not url or not provider or addresses.is_loopback(urlsplit(provider).hostname or ""):
            return url
        if urlsplit(url).scheme != "https" or addresses.address_problem(url):
            raise ValueError("must be a public https:// address, the provider calls it from outside")
        return url

    @field_validator("operator_callback_url")
    @classmethod
    def _operator_can_be_told(cls, url: str | None, info: ValidationInfo) -> str | None:
        """One that is refused each time would leave the operator in the dark when it matters."""
        if url and (problem := addresses.address_problem(url, info.data.get("outbound_allow", ()))):
            raise ValueError(f"cannot be called: {problem}")
        return url

    @field_validator("dashboard_password")
    @classmethod
    def _sessions_can_be_signed(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if password and "secret_key" in info.data and info.data["secret_key"] is None:
            raise ValueError("needs SECRET_KEY beside it, which signs the sessions: `openssl rand -hex 32` makes one")
        return password

    @field_validator("dashboard_viewer_password")
    @classmethod
    def _roles_can_be_told_apart(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if password and "dashboard_password" in info.data:
            if info.data["dashboard_password"] is None:
                raise ValueError("needs DASHBOARD_PASSWORD beside it")
            if password == info.data["dashboard_password"]:
                raise ValueError("must be another one than DASHBOARD_PASSWORD")
        return password

    @property
    def proxies(self) -> int:
        """How many proxies of ours stand before the web server, each of which says whom it answers."""
        return self.trusted_proxies if self.trusted_proxies is not None else 1 if self.dyno else 0

    @cached_property
    def limits(self) -> Limits:
        """The account's limits: those of its level, unless named one by one."""
        level = LEVELS[self.wavespeed_level]
        return Limits(
            self.submits_per_minute or level.submits_per_minute,
            self.max_in_flight or level.max_in_flight,
        )

    @property
    def archives_to(self) -> str:
        """
        Where outputs are kept.

        Raises:
            ConfigError: Nowhere; the detail says why.
        """
        url = self.archive_url or (Path(__file__).resolve().parent.parent / ".archive").as_uri()
        if url == OFF:
            raise ConfigError("ARCHIVE_URL is off")
        if self.dyno and url.startswith("file:"):
            raise ConfigError("ARCHIVE_URL must be a bucket here (s3://, gs://, az://): a dyno's disk vanishes")
        return url

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
    names = {name: name.upper() for name in Settings.model_fields}
    for name in ("REDIS_URL", "CLOUDAMQP_URL"):  # what Heroku's add-ons set
        if "broker_url" not in values and environ.get(name, "").strip():
            values["broker_url"], names["broker_url"] = environ[name].strip(), name
    try:
        return Settings(**values, **overrides)
    except ValidationError as error:
        wrong = {str(item["loc"][0]): item["msg"] for item in error.errors(include_url=False, include_input=False)}
    problems = [f"{names.get(name, name)}: {_advice(message)}" for name, message in wrong.items()]
    raise ConfigError("The environment needs mending:\n" + "\n".join(f"  {problem}" for problem in problems))


def _advice(message: str) -> str:
    return "is missing" if message == "Field required" else message.removeprefix("Value error, ")
