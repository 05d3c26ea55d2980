"""Settings: what an operator mistypes is named, all of it at once, and no secret is shown for it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.settings import LEVELS, Limits, Settings, load

GOOD = {"DATABASE_URL": "postgres://app:pw@db.example.com:5432/app"}
LOOPBACK = {"WAVESPEED_BASE_URL": "http://127.0.0.1:8787"}


def names(error: ConfigError) -> list[str]:
    """The variables an error names, in order."""
    return [line.strip().partition(":")[0] for line in str(error).splitlines()[1:]]


def refused(**environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(GOOD | environ)
    return caught.value


def loaded(**environ: str) -> Settings:
    return load(GOOD | environ)


def test_the_database_is_all_that_must_be_given() -> None:
    """The rest has the defaults the documentation promises."""
    found = load(GOOD)

    assert found.wavespeed_base_url == "https://api.wavespeed.ai"
    assert found.wavespeed_level == "bronze"
    assert found.default_model == "openai/dall-e-2"
    assert (found.lease_s, found.deadline_s, found.unknown_patience_s) == (90, 3600, 900)
    assert found.wavespeed_webhook_secret == ()
    assert found.account_exclusive is False


BAD = {
    "DATABASE_URL": "mysql://root:hunter2@db/app",
    "BROKER_URL": "kafka://:hunter2@broker",
    "PUBLIC_URL": "http://hunter2.example.com",
    "WAVESPEED_API_KEY": "hunter2\nhunter2",
    "WAVESPEED_BASE_URL": "https://api.wavespeed.ai/api/v3?hunter2",
    "WAVESPEED_LEVEL": "hunter2",
    "SUBMITS_PER_MINUTE": "hunter2",
    "MAX_IN_FLIGHT": "0",
    "SUBMIT_WINDOW_S": "hunter2",
    "ACCOUNT_EXCLUSIVE": "hunter2",
    "DEFAULT_MODEL": "hunter2",
    "LEASE_S": "10",
    "POLL_AFTER_S": "-1",
    "POLLS_PER_MINUTE": "hunter2",
    "DEADLINE_S": "0",
    "UNKNOWN_PATIENCE_S": "hunter2",
    "WEB_THREADS": "0",
    "LOG_LEVEL": "hunter2",
}


def test_one_error_names_every_bad_variable() -> None:
    """Mending one to learn of the next costs a deploy each."""
    with pytest.raises(ConfigError) as caught:
        load(BAD)

    # what the callback address must be depends on the provider's, so it is judged once that can be read
    assert sorted(names(caught.value)) == sorted(set(BAD) - {"PUBLIC_URL"})
    assert "hunter2" not in str(caught.value)


def test_a_rule_between_two_variables_does_not_wait_for_the_others() -> None:
    """A private callback address is named beside a missing database."""
    with pytest.raises(ConfigError) as caught:
        load({"PUBLIC_URL": "http://127.0.0.1:8000", "LEASE_S": "1"})

    assert sorted(names(caught.value)) == ["DATABASE_URL", "LEASE_S", "PUBLIC_URL"]
    assert "DATABASE_URL: is missing" in str(caught.value)


@pytest.mark.parametrize("name", sorted(BAD))
def test_each_variable_is_checked_by_itself(name: str) -> None:
    """One line, the variable's name in front."""
    error = refused(**{name: BAD[name]})

    assert names(error) == [name]
    assert "hunter2" not in str(error)
    assert error.__cause__ is None


@pytest.mark.parametrize("name", ["DATABASE_URL", "BROKER_URL", "PUBLIC_URL", "WAVESPEED_BASE_URL"])
@pytest.mark.parametrize(
    "rest",
    [
        "app:hunter2/x@db.example.com/app",  # a slash in the password: the rest of it looks like a port
        "app:[hunter2]@db.example.com/app",
        "app:hunter2℀@db.example.com/app",
        "app:pw@db.example.com:hunter2/app",
        "[hunter2/app",
        "db.example.com:99999/app?password=hunter2",
    ],
)
def test_a_broken_address_is_named_and_not_shown(name: str, rest: str) -> None:
    """A password that was not percent-encoded breaks the address, and must not be printed for it."""
    scheme = {"DATABASE_URL": "postgres", "BROKER_URL": "redis"}.get(name, "https")
    error = refused(**{name: f"{scheme}://{rest}"})

    assert names(error) == [name]
    assert "hunter2" not in str(error)


SECRETS = {
    "DATABASE_URL": "postgresql://app:hunter2@db/app",
    "BROKER_URL": "redis://:hunter2@broker:6379/0",
    "WAVESPEED_API_KEY": "hunter2",
    "WAVESPEED_WEBHOOK_SECRET": "whsec_hunter2,whsec_hunter2b",
    "SECRET_KEY": "hunter2-hunter2-hunter2",
    "DASHBOARD_PASSWORD": "hunter2 hunter2",
}


def test_a_bad_variable_does_not_expose_the_good_ones() -> None:
    """The error goes into logs; secrets stay out of a printed key, too."""
    assert "hunter2" not in str(refused(**SECRETS, LEASE_S="1"))
    shown = repr(
        load(SECRETS).model_dump(
            include={"wavespeed_api_key", "wavespeed_webhook_secret", "secret_key", "dashboard_password"}
        )
    )
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p@h:5432/d", "postgresql+psycopg://u:p@h:5432/d"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+psycopg://u:p@h/d?sslmode=require"),
        ("postgresql+psycopg://u:p%40ss@h/d", "postgresql+psycopg://u:p%40ss@h/d"),
        ("  postgres://u:p@h/d\n", "postgresql+psycopg://u:p@h/d"),
    ],
)
def test_herokus_postgres_url_is_understood(given: str, used: str) -> None:
    """SQLAlchemy no longer knows `postgres://`; Heroku still sets it."""
    assert load({"DATABASE_URL": given}).database_url == used


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("redis://:pw@h:6379", "redis://:pw@h:6379"),
        ("rediss://:pw@h:6380", "rediss://:pw@h:6380?ssl_cert_reqs=none"),
        ("rediss://:pw@h:6380/1?health=5", "rediss://:pw@h:6380/1?health=5&ssl_cert_reqs=none"),
        ("rediss://h?ssl_cert_reqs=required", "rediss://h?ssl_cert_reqs=required"),
        ("valkey://h:6379/0", "redis://h:6379/0"),
        ("valkeys://h:6379/0", "rediss://h:6379/0?ssl_cert_reqs=none"),
        ("amqp://u:p@h/v", "amqp://u:p@h/v"),
        ("amqps://u:p@h/v", "amqps://u:p@h/v"),
    ],
)
def test_every_broker_heroku_sells_is_understood(given: str, used: str) -> None:
    """Heroku's Redis serves a self-signed certificate: checking it would refuse every connection."""
    assert loaded(BROKER_URL=given).broker_url == used


@pytest.mark.parametrize(
    ("environ", "used"),
    [
        ({"BROKER_URL": "redis://a", "REDIS_URL": "redis://b", "CLOUDAMQP_URL": "amqp://c"}, "redis://a"),
        ({"REDIS_URL": "redis://b", "CLOUDAMQP_URL": "amqp://c"}, "redis://b"),
        ({"CLOUDAMQP_URL": "amqp://c"}, "amqp://c"),
        ({"BROKER_URL": " ", "REDIS_URL": " ", "CLOUDAMQP_URL": "amqp://c "}, "amqp://c"),
        ({"BROKER_URL": "redis://a", "REDIS_URL": "nonsense"}, "redis://a"),
        ({}, "redis://127.0.0.1:6379/0"),
    ],
)
def test_the_broker_is_the_first_one_named(environ: dict[str, str], used: str) -> None:
    """BROKER_URL is ours; the others are what add-ons set."""
    assert loaded(**environ).broker_url == used


@pytest.mark.parametrize("name", ["REDIS_URL", "CLOUDAMQP_URL"])
def test_a_bad_broker_is_named_as_it_was_given(name: str) -> None:
    """Nobody finds a mistake in a variable that is not set."""
    assert names(refused(**{name: "nonsense"})) == [name]


@pytest.mark.parametrize(
    "url",
    [
        "http://jobs.example.com",
        "https://127.0.0.1:8000",
        "https://10.1.2.3",
        "https://192.168.0.1",
        "https://169.254.169.254",
        "https://[::1]:8000",
        "https://[fd00::1]",
        "https://[64:ff9b::a00:1]",
        "https://2130706433",
        "https://localhost",
        "https://localhost.",
        "https://web",
        "https://web.internal",
        "https://printer.local",
    ],
)
def test_an_address_the_provider_cannot_reach_is_refused(url: str) -> None:
    """It would silently turn every job into a polled one."""
    assert names(refused(PUBLIC_URL=url)) == ["PUBLIC_URL"]
    assert loaded(PUBLIC_URL=url, WAVESPEED_BASE_URL="http://localhost:8787").public_url == url


@pytest.mark.parametrize("url", ["ftp://jobs.example.com", "jobs.example.com", "https://", "https://u:p@h.example.com"])
@pytest.mark.parametrize("base", [{}, LOOPBACK])
def test_what_is_no_address_is_refused_everywhere(url: str, base: dict[str, str]) -> None:
    """With the sandbox, too."""
    assert names(refused(PUBLIC_URL=url, **base)) == ["PUBLIC_URL"]


def test_networks_are_opened_one_by_one() -> None:
    """A typing error must not open more than was meant, nor nothing without a word."""
    opened = loaded(OUTBOUND_ALLOW="127.0.0.0/8, ::1,10.1.2.3").outbound_allow
    assert [str(network) for network in opened] == ["127.0.0.0/8", "::1/128", "10.1.2.3/32"]
    assert loaded().outbound_allow == ()
    for wrong in ("private", "10.0.0.1/8", "127.0.0.0/8;::1", "10.0.0.0/33"):
        assert names(refused(OUTBOUND_ALLOW=wrong)) == ["OUTBOUND_ALLOW"]


def test_a_public_address_loses_its_last_slash() -> None:
    """The webhook's path is added to it."""
    assert loaded(PUBLIC_URL="https://jobs.example.com/").public_url == "https://jobs.example.com"


@pytest.mark.parametrize("tail", ["/api/v3", "/api/v3/"])
def test_the_providers_address_is_without_its_version(tail: str) -> None:
    """Every documentation page shows it with; requests would go to /api/v3/api/v3."""
    assert names(refused(WAVESPEED_BASE_URL=f"https://api.wavespeed.ai{tail}")) == ["WAVESPEED_BASE_URL"]
    assert loaded(WAVESPEED_BASE_URL="https://api.wavespeed.ai/").wavespeed_base_url == "https://api.wavespeed.ai"


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_a_level_sets_both_limits(level: str) -> None:
    """The account's level is what people know."""
    assert loaded(WAVESPEED_LEVEL=level).limits == LEVELS[level]


@pytest.mark.parametrize(
    ("environ", "limits"),
    [
        ({}, Limits(2, 2)),
        ({"SUBMITS_PER_MINUTE": "7"}, Limits(7, 2)),
        ({"MAX_IN_FLIGHT": "7"}, Limits(2, 7)),
        ({"WAVESPEED_LEVEL": "gold", "SUBMITS_PER_MINUTE": "7", "MAX_IN_FLIGHT": "9"}, Limits(7, 9)),
    ],
)
def test_limits_may_be_named_one_by_one(environ: dict[str, str], limits: Limits) -> None:
    """An account shared with others may use only a part."""
    assert loaded(**environ).limits == limits


@pytest.mark.parametrize(
    ("given", "secrets"),
    [
        ("whsec_a", ["whsec_a"]),
        ("whsec_a,whsec_b", ["whsec_a", "whsec_b"]),
        (" whsec_a , , whsec_b, ", ["whsec_a", "whsec_b"]),
        (",", []),
    ],
)
def test_webhook_secrets_are_separated_by_commas(given: str, secrets: list[str]) -> None:
    """Two while one is being rotated; an empty one would be a key that anybody knows."""
    found = loaded(WAVESPEED_WEBHOOK_SECRET=given).wavespeed_webhook_secret
    assert [secret.get_secret_value() for secret in found] == secrets


def test_a_secret_is_more_than_its_prefix() -> None:
    """`whsec_` alone is the empty key: everybody could sign with it."""
    assert names(refused(WAVESPEED_WEBHOOK_SECRET="whsec_a,whsec_")) == ["WAVESPEED_WEBHOOK_SECRET"]


@pytest.mark.parametrize("name", [name.upper() for name in Settings.model_fields if name != "database_url"])
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_is_unset(name: str, empty: str) -> None:
    """Platforms and shells leave such behind."""
    assert loaded(**{name: empty}) == load(GOOD)


@pytest.mark.parametrize(
    ("environ", "first_poll_s"),
    [({}, 2), ({"PUBLIC_URL": "https://jobs.example.com"}, 30), ({"POLL_AFTER_S": "7"}, 7)],
)
def test_without_webhooks_polls_come_quickly(environ: dict[str, str], first_poll_s: float) -> None:
    """Nobody else brings the news then."""
    assert loaded(**environ).first_poll_s == first_poll_s


@pytest.mark.parametrize("name", ["LEASE_S", "POLL_AFTER_S", "DEADLINE_S", "UNKNOWN_PATIENCE_S", "SUBMIT_WINDOW_S"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e300"])
def test_a_duration_is_one_that_postgres_can_add(name: str, value: str) -> None:
    """Every job would be refused with a crash, long after the start that should have said so."""
    assert names(refused(**{name: value})) == [name]


@settings(max_examples=200, deadline=None)
@given(
    environ=st.dictionaries(
        st.sampled_from([name.upper() for name in Settings.model_fields] + ["REDIS_URL", "CLOUDAMQP_URL"]),
        st.text(st.characters(min_codepoint=33), min_size=1, max_size=40).map(lambda words: f"~{words}~"),
        max_size=6,
    )
)
def test_nonsense_is_a_config_error_that_shows_none_of_it(environ: dict[str, Any]) -> None:
    """Never a traceback: it would print the value."""
    message = ""
    try:
        load(GOOD | environ)
    except ConfigError as error:
        message = str(error)
    assert [value for value in environ.values() if value in message] == []
