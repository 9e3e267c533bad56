from collections.abc import Iterator

import pytest

from tests.postgresql_server import PostgresqlServer, running_postgresql


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql: PostgresqlServer) -> Iterator[str]:
    """An empty database of the test's own."""
    url = postgresql.new_database()
    yield url
    postgresql.drop_database(url)
