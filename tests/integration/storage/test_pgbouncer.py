"""The SQL stores behind PgBouncer in transaction mode, in which successive transactions may use different sessions."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from integration_server.domain.audit import Action, AuditEntry
from integration_server.storage.audit import SqlAuditLog
from integration_server.storage.audit_verification import AuditVerification
from integration_server.storage.change_feed import SqlChangeFeed
from integration_server.storage.connections import SqlAuthorizationAttempts
from integration_server.storage.engine import Database, open_database
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.refresh_leases import SqlRefreshLeases
from integration_server.storage.schema import check_schema, migrate
from integration_server.wiring.system import random_token
from tests.contracts.connection_contract import AttemptStoreContract, ConnectionStoreContract
from tests.contracts.integration_rows import (
    ANN,
    LATER,
    SqlRows,
    create_connected,
    list_connected,
    new_credentials,
)
from tests.contracts.integration_store_contract import IntegrationStoreContract
from tests.keyrings import open_test_keyring
from tests.pgbouncer import requires_pgbouncer, run_pgbouncer
from tests.postgres import PostgresServer

pytestmark = [requires_pgbouncer, pytest.mark.postgres]


@pytest.fixture
async def database(pooled_url: str) -> AsyncIterator[Database]:
    async with open_database(pooled_url) as database:
        yield database


class _PgbouncerStores:
    @pytest.fixture
    def integrations(self, database: Database) -> SqlRows:
        return SqlRows(database)

    @pytest.fixture
    def history(self, database: Database) -> SqlHealthHistory:
        return SqlHealthHistory(database)

    @pytest.fixture
    def attempts(self, database: Database) -> SqlAuthorizationAttempts:
        return SqlAuthorizationAttempts(database)


class TestSqlIntegrations(_PgbouncerStores, IntegrationStoreContract):
    pass


class TestSqlConnections(_PgbouncerStores, ConnectionStoreContract):
    pass


class TestSqlAuthorizationAttempts(_PgbouncerStores, AttemptStoreContract):
    pass


async def exercise_stores(database: Database) -> None:
    """Connect, read and remove an integration, concurrently with others."""
    store, leases = SqlRows(database), SqlRefreshLeases(database, timedelta(seconds=30), timedelta(0))
    integration = await create_connected(store)
    lease = await leases.claim(integration, "owner")
    assert lease is not None
    assert await store.commit_refresh(integration, new_credentials(), LATER) is not None
    assert await store.find(integration.integration_id, ANN) is not None
    await store.remove(integration.integration_id, ANN)


async def test_stores_work_concurrently(pooled_url: str) -> None:
    async with open_database(pooled_url) as first, open_database(pooled_url) as second:
        await open_test_keyring(first)
        begin = await SqlChangeFeed(first).poll(None, 1000)
        await asyncio.gather(*(exercise_stores(database) for database in (first, second) for _ in range(10)))
        assert len((await SqlChangeFeed(first).poll(begin.cursor, 1000)).changed_ids or ()) == 20
        assert not first.change_notified.is_set()  # no LISTEN: PgBouncer may give the session to another client


async def test_audit_entries_are_copied_concurrently(pooled_url: str) -> None:
    async with open_database(pooled_url) as first, open_database(pooled_url) as second:
        keyring = await open_test_keyring(first)
        logs = [
            SqlAuditLog(database, keyring, part_size=1, min_copy=1) for database in (first, second) for _ in range(5)
        ]
        for _ in range(5):
            entries = [AuditEntry(LATER, "billing", Action.UPDATE, integration_id=number) for number in range(10)]
            await asyncio.gather(*(log.append(entries) for log in logs))
        verification = AuditVerification(first, keyring)
        assert [problem async for problem in verification.problems()] == []
        assert (verification.chains, verification.entries) == (10, 500)


async def test_negative_control_named_prepared_statements_fail(pooled_url: str) -> None:
    """Prepared statements with the options that `open_database` uses without a pooler fail behind one."""
    url = make_url(pooled_url).set(drivername="postgresql+asyncpg")
    options = {"statement_cache_size": 0, "prepared_statement_name_func": random_token}
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT", connect_args=options)

    async def run_query() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT count(*) FROM integrations"))

    responses = set[str]()
    try:
        for _ in range(20):  # until PgBouncer has given a client the session of another
            found = await asyncio.gather(*(run_query() for _ in range(200)), return_exceptions=True)
            responses |= set(map(str, found))
            if any("prepared statement" in response for response in responses):
                return
    finally:
        await engine.dispose()
    pytest.fail(f"no statement failed: {responses}")


@pytest.fixture
def empty_pooled_url(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.new_database() as empty, run_pgbouncer(empty) as url:
        yield url


async def test_the_schema_is_migrated_through_pgbouncer(empty_pooled_url: str) -> None:
    async with open_database(empty_pooled_url) as database:
        await migrate(empty_pooled_url)
        await check_schema(database)
        assert await list_connected(SqlRows(database)) == []
