"""Queries that the driver runs itself: what SQLAlchemy's execution guarantees holds for them too."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import Float, String, bindparam, func, literal, select, text
from sqlalchemy.exc import DBAPIError

from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.driver_queries import DriverQuery
from integration_server.storage.engine import Database, open_database
from integration_server.storage.list_parameters import is_one_of
from integration_server.storage.tables import integrations, metadata, oauth_clients
from tests.postgres import PostgresServer, run_postgres

_T = integrations.c

COUNT = DriverQuery(select(func.count()).select_from(integrations))
BACKEND = DriverQuery(select(func.pg_backend_pid()))
SLEEP = DriverQuery(select(func.pg_sleep(60)))
LABELS = DriverQuery(select(_T.account_label).where(_T.integration_id == bindparam("integration_id")))


async def count(database: Database) -> int:
    ((number,),) = await database.read(COUNT)
    return int(number)


async def count_other_sessions(observer: Database, condition: str) -> int:
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    query = f"SELECT count(*) FROM pg_stat_activity WHERE {others} AND {condition}"
    return int(await observer.fetch_value(text(query)))


async def test_lists_are_one_parameter(database: Database) -> None:
    texts = ["plain", "it's", '"quoted" {a,b}', "NULL", "", "ü\u2028\U0001f600", "\\"]
    value = literal(None, String).label("value")
    for one in [*texts, "other"]:
        query = DriverQuery(select(value).where(is_one_of(bindparam("one", type_=String), "texts")))
        found = await database.read(query, one=one, texts=texts)
        assert len(found) == (one in texts)
        assert not await database.read(query, one=one, texts=[])


async def test_every_column_of_the_schema_can_be_read(database: Database) -> None:
    for table in metadata.sorted_tables:
        rows = await database.read(DriverQuery(select(table)))
        assert all(len(row) == len(table.columns) for row in rows)
    numbers = select(literal(2.5, Float).label("number"), literal(None, Float).label("none"))
    ((number, none),) = await database.read(DriverQuery(numbers))
    assert (number, none) == (2.5, None)


async def test_errors_of_statements_are_not_converted(database: Database) -> None:
    query = DriverQuery(select(func.no_such_function()))
    with pytest.raises(Exception, match="no_such_function") as caught:
        await database.read(query)
    assert not isinstance(caught.value, StoreUnavailable)
    assert await count(database) == 0


@pytest.mark.slow
async def test_cancellation_at_any_moment_returns_all_connections(database_url: str) -> None:
    async with open_database(database_url, pool_size=2) as database:
        for delay in range(60):
            task = asyncio.ensure_future(count(database))
            await asyncio.sleep(delay / 20_000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(60):
            assert await asyncio.gather(*(count(database) for _ in range(10))) == [0] * 10


async def test_an_unusable_file_raises_store_unavailable() -> None:
    async with open_database("sqlite:////proc/nowhere/integrations.db") as database:
        with pytest.raises(StoreUnavailable):
            await count(database)


@pytest.mark.postgres
class TestPostgres:
    async def test_a_query_is_prepared_once_for_each_connection(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1) as database:
            for _ in range(3):
                await database.read(LABELS, integration_id=1)
            prepared = await database.fetch(text("SELECT statement FROM pg_prepared_statements"))
        assert sum("integrations.account_label" in row.statement for row in prepared) == 1

    async def forget_statements(self, database: Database) -> None:
        """What a restarted pooler or a `DISCARD ALL` does to the only session."""
        async with database.read_connection() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            await driver.execute("DEALLOCATE ALL")

    async def test_a_statement_that_the_session_has_lost_is_prepared_again(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1) as database:
            assert await count(database) == 0
            await self.forget_statements(database)
            assert await count(database) == 0

    async def test_negative_control_sqlalchemy_does_not_prepare_it_again(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1) as database:
            await database.fetch(COUNT.statement)
            await self.forget_statements(database)
            with pytest.raises(DBAPIError):
                await database.fetch(COUNT.statement)

    async def test_a_statement_is_prepared_again_after_a_change_of_a_column(self, postgres_url: str) -> None:
        query = DriverQuery(select(oauth_clients.c.client_id))
        async with open_database(postgres_url, pool_size=1) as database, open_database(postgres_url) as other:
            assert not await database.read(query)
            async with other.write_transaction() as connection:
                await connection.execute(text("ALTER TABLE oauth_clients ALTER COLUMN client_id TYPE varchar(300)"))
            assert not await database.read(query)

    @pytest.mark.slow
    async def test_a_statement_that_hangs_is_cancelled_and_the_next_works(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1, command_timeout=2) as database:
            with pytest.raises(StoreUnavailable):
                await database.read(SLEEP)
            assert await count(database) == 0

    @pytest.mark.slow
    async def test_a_begin_that_times_out_leaves_no_transaction(self, postgres_url: str) -> None:
        async with (
            open_database(postgres_url, pool_size=1, command_timeout=3) as database,
            open_database(postgres_url) as observer,
        ):
            ((backend,),) = await database.read(BACKEND)
            os.kill(backend, signal.SIGSTOP)
            try:
                with pytest.raises(StoreUnavailable):
                    async with database.driver_transaction():
                        pytest.fail("the server is frozen")
            finally:
                os.kill(backend, signal.SIGCONT)
            assert await count(database) == 0
            # In a transaction, which nobody would commit, statements after it would be lost.
            assert await count_other_sessions(observer, "state LIKE 'idle in transaction%'") == 0

    async def test_the_statement_of_a_cancelled_caller_is_cancelled(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1) as database, open_database(postgres_url) as observer:
            is_asleep = "state = 'active' AND query LIKE '%pg_sleep%'"
            caller = asyncio.ensure_future(database.read(SLEEP))
            async with asyncio.timeout(60):
                while not await count_other_sessions(observer, is_asleep):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                caller.cancel()
                await asyncio.gather(caller, return_exceptions=True)
                assert await count(database) == 0
                while await count_other_sessions(observer, is_asleep):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    @pytest.mark.slow
    async def test_an_exhausted_pool_raises_store_unavailable(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1, connect_timeout=2) as database:
            async with database.write_transaction():
                with pytest.raises(StoreUnavailable):
                    await count(database)
            assert await count(database) == 0

    async def test_connections_that_the_server_closed_are_replaced(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=2) as database, open_database(postgres_url) as other:
            await asyncio.gather(*(count(database) for _ in range(4)))
            others = "datname = current_database() AND pid <> pg_backend_pid()"
            await other.fetch(text(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}"))
            await other.fetch_value(text("SELECT 1"))  # when it returns, the client has seen the sockets close
            assert await asyncio.gather(*(count(database) for _ in range(4))) == [0] * 4

    @pytest.mark.slow
    async def test_during_an_outage_reads_raise_store_unavailable(self) -> None:
        with run_postgres() as server:
            await self.outlive(server, lambda database: database.read(DriverQuery(select(literal(1)))))

    async def outlive(self, server: PostgresServer, read: Callable[[Database], Awaitable[object]]) -> None:
        async with open_database(server.url("postgres")) as database:
            await read(database)
            await asyncio.to_thread(server.stop)
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await read(database)
            await asyncio.to_thread(server.start)
            assert await read(database)
