"""Real servers, started once for each test process: fixtures that every test module may ask for."""

from collections.abc import Iterator

import pytest

from pipeline.embedded import postgres as embedded_postgres
from pipeline.embedded import valkey as embedded_valkey
from pipeline.embedded.processes import Server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Give a Postgres server of this test process; `.url` is its superuser's."""
    with embedded_postgres.running() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """Give a Valkey server of this test process."""
    with embedded_valkey.running() as server:
        yield server
