"""The SQL stores behind PgBouncer in transaction mode: statements that follow each other may reach other sessions."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.changes import SqlChanges
from integration_server.storage.engine import Database, open_database
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.leases import SqlRefreshLeases
from integration_server.storage.schema import migrate
from integration_server.wiring.world import random_name
from tests.contracts.store_contract import (
    ANN,
    LATER,
    AttemptStoreContract,
    IntegrationStoreContract,
    connected,
    new_credentials,
)
from tests.keyrings import opened
from tests.pgbouncer import needs_pgbouncer, pooled
from tests.postgres import PostgresServer

pytestmark = [needs_pgbouncer, pytest.mark.postgres]


@pytest.fixture
async def database(pooled_url: str) -> AsyncIterator[Database]:
    async with open_database(pooled_url) as opened:
        yield opened


class _ThroughPgbouncer:
    @pytest.fixture
    def integrations(self, database: Database) -> SqlIntegrations:
        return SqlIntegrations(database)

    @pytest.fixture
    def history(self, database: Database) -> SqlHealthHistory:
        return SqlHealthHistory(database)

    @pytest.fixture
    def attempts(self, database: Database) -> SqlAttempts:
        return SqlAttempts(database)


class TestSqlIntegrations(_ThroughPgbouncer, IntegrationStoreContract):
    pass


class TestSqlAttempts(_ThroughPgbouncer, AttemptStoreContract):
    pass


async def use_everything(database: Database) -> None:
    """A connection's life, as one of many at once."""
    store, leases = SqlIntegrations(database), SqlRefreshLeases(database, timedelta(seconds=30))
    integration = await connected(store)
    lease = await leases.claim(integration, "me")
    assert lease is not None
    assert await store.commit_refresh(integration, new_credentials(), LATER) is not None
    assert await store.find(integration.integration_id, ANN) is not None
    assert await store.remove(integration.integration_id, ANN) is not None


async def test_many_at_once(pooled_url: str) -> None:
    async with open_database(pooled_url) as one, open_database(pooled_url) as other:
        await opened(one)
        begin = await SqlChanges(one).since(None)
        await asyncio.gather(*(use_everything(database) for database in (one, other) for _ in range(10)))
        assert len((await SqlChanges(one).since(begin.place)).integration_ids) == 20


async def test_statements_that_are_prepared_once_fail_there(pooled_url: str) -> None:
    """As `open_database` has them where it finds no pooler."""
    url = make_url(pooled_url).set(drivername="postgresql+asyncpg")
    options = {"statement_cache_size": 0, "prepared_statement_name_func": random_name}
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT", connect_args=options)

    async def ask() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT count(*) FROM integrations"))

    answers = await asyncio.gather(*(ask() for _ in range(200)), return_exceptions=True)
    assert any("prepared statement" in str(answer) for answer in answers), set(map(str, answers))
    await engine.dispose()


@pytest.fixture
def empty_pooled_url(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.new_database() as empty, pooled(empty) as url:
        yield url


async def test_the_schema_is_migrated_through_it(empty_pooled_url: str) -> None:
    async with open_database(empty_pooled_url) as database:
        await migrate(empty_pooled_url)
        await SqlIntegrations(database).ping()
