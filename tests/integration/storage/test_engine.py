"""Tests of database connections: transactions, SQLite files, PostgreSQL servers, outages and cancellation."""

import asyncio
import os
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from integration_server.domain.associated_data import AssociatedData
from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.storage.async_engine import AsyncEngine
from integration_server.storage.driver_queries import ConstraintViolated, DriverQuery
from integration_server.storage.engine import Database, open_database
from integration_server.storage.key_encryption import KeyEncryptionKeys, LocalKey
from integration_server.storage.keyring import open_keyring
from integration_server.storage.pools import RollingBackConnection
from integration_server.storage.schema import migrate
from integration_server.storage.tables import integrations
from tests.contracts.integration_rows import NOW, SqlRows, account, create_connected, new_credentials, new_integration
from tests.postgres import PostgresServer, run_postgres

COUNT = text("SELECT count(*) FROM integrations")
COUNT_QUERY = DriverQuery(select(func.count()).select_from(integrations))
PID_QUERY = DriverQuery(select(func.pg_backend_pid()))
UNUSED_PORT = 1  # tcpmux: no server listens on it


async def count(database: Database) -> int:
    """The number of integrations."""
    async with database.read_connection() as connection:
        return int(await connection.scalar(COUNT) or 0)


def count_checkouts(engine: AsyncEngine) -> list[object]:
    """Grows with each connection that the pool lends."""
    lent: list[object] = []
    event.listen(engine.sync_engine, "checkout", lambda connection, *_: lent.append(connection))
    return lent


class TestTransactions:
    async def test_an_exception_rolls_back(self, database: Database) -> None:
        await create_connected(SqlRows(database))

        async def delete_and_fail() -> None:
            async with database.write_transaction() as connection:
                await connection.execute(text("DELETE FROM integrations"))
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await delete_and_fail()
        assert await count(database) == 1

    async def test_a_cancelled_writer_is_rolled_back(self, database: Database) -> None:
        await create_connected(SqlRows(database))
        deleted = asyncio.Event()

        async def delete_and_wait() -> None:
            async with database.write_transaction() as connection:
                await connection.execute(text("DELETE FROM integrations"))
                deleted.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(delete_and_wait())
        await deleted.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await count(database) == 1
        await create_connected(SqlRows(database))

    async def test_readers_see_committed_rows_and_do_not_wait(self, database: Database) -> None:
        await create_connected(SqlRows(database))
        async with database.write_transaction() as connection:
            await connection.execute(text("DELETE FROM integrations"))
            assert await count(database) == 1
        assert await count(database) == 0

    async def test_many_writers_queue(self, database: Database, database_url: str) -> None:
        async with open_database(database_url, pool_size=2) as other:
            stores = [SqlRows(database), SqlRows(other)]
            await asyncio.gather(*(create_connected(stores[number % 2]) for number in range(50)))
        assert await count(database) == 50

    async def test_statement_errors_are_not_converted(self, database: Database) -> None:
        for statement in ("SELECT nothing FROM nowhere", "no SQL"):
            with pytest.raises(DBAPIError):
                async with database.read_connection() as connection:
                    await connection.execute(text(statement))

    async def test_constraint_violations_are_not_converted(self, database: Database) -> None:
        integrations = SqlRows(database)
        new = new_integration()
        await integrations.add_connected(new, account(None), new_credentials(), NOW)
        with pytest.raises(ConstraintViolated):
            await integrations.add_connected(new, account(None), new_credentials(), NOW)

    async def test_errors_do_not_contain_the_values(self, database: Database) -> None:
        with pytest.raises(DBAPIError) as caught:
            async with database.read_connection() as connection:
                await connection.execute(text("SELECT :value FROM nowhere"), {"value": "confidential"})
        assert "confidential" not in str(caught.value)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    async def test_numbers_without_json_representation_are_rejected(self, database: Database, value: float) -> None:
        with pytest.raises(ValueError, match="JSON"):
            await create_connected(SqlRows(database), config={"value": value})


def make_folder_a_file(path: Path) -> None:
    path.parent.parent.mkdir()
    path.parent.touch()


def make_file_a_folder(path: Path) -> None:
    path.mkdir(parents=True)


def write_other_content(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database" * 1000)


class TestSqlite:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "new" / "folder" / "it.db"

    @pytest.fixture
    async def sqlite(self, path: Path) -> AsyncIterator[Database]:
        async with open_database(f"sqlite:///{path}", connect_timeout=2) as database:
            yield database
        for thread in threading.enumerate():
            if "_connection_worker_thread" in thread.name:
                # aiosqlite does not wait for the thread of a connection that failed. When the thread ends it calls the
                # loop, which must still be open.
                await asyncio.to_thread(thread.join, 5)

    async def test_files_are_private(self, sqlite: Database, path: Path) -> None:
        async with sqlite.write_transaction() as connection:
            await connection.execute(text("CREATE TABLE rows (n INTEGER)"))
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        assert modes == {"it.db": 0o600, "it.db-wal": 0o600, "it.db-shm": 0o600}
        assert path.parent.stat().st_mode & 0o777 == 0o700

    async def test_commits_are_durable_and_references_hold(self, sqlite: Database) -> None:
        for block in (sqlite.read_connection, sqlite.write_transaction):
            async with block() as connection:
                found = [
                    await connection.scalar(text(f"PRAGMA {name}"))
                    for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
                ]
            assert found == ["wal", 2, 1, 2000]

    async def test_a_writer_takes_the_lock_before_it_reads(self, sqlite: Database, path: Path) -> None:
        async with sqlite.write_transaction():
            with (
                closing(sqlite3.connect(path, timeout=0)) as other,
                pytest.raises(sqlite3.OperationalError, match="database is locked"),
            ):
                other.execute("BEGIN IMMEDIATE")

    @pytest.mark.slow
    async def test_a_lock_that_is_never_released_raises_store_unavailable(self, sqlite: Database, path: Path) -> None:
        async with sqlite.write_transaction() as connection:
            await connection.execute(text("CREATE TABLE rows (n INTEGER)"))
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable) as caught:
                async with sqlite.write_transaction():
                    pass
        assert "locked" in str(caught.value.__cause__)
        async with sqlite.write_transaction() as connection:
            await connection.execute(text("INSERT INTO rows VALUES (1)"))

    @pytest.mark.slow
    async def test_a_writer_that_never_ends_blocks_the_others(self, sqlite: Database) -> None:
        async with sqlite.write_transaction():
            with pytest.raises(StoreUnavailable):
                async with sqlite.write_transaction():
                    pass

    @pytest.mark.parametrize("make_unusable", [make_folder_a_file, make_file_a_folder, write_other_content])
    async def test_an_unusable_path_raises_store_unavailable(
        self, sqlite: Database, path: Path, make_unusable: Callable[[Path], object]
    ) -> None:
        make_unusable(path)
        for block in (sqlite.read_connection, sqlite.write_transaction):
            with pytest.raises(StoreUnavailable) as caught:
                async with block() as connection:
                    await connection.execute(text("SELECT 1"))
            assert caught.value.__cause__ is not None


@pytest.mark.postgres
class TestPostgres:
    @pytest.mark.parametrize("address", [f"127.0.0.1:{UNUSED_PORT}", "nowhere.invalid"])
    async def test_an_unreachable_server_raises_store_unavailable(self, address: str) -> None:
        async with open_database(f"postgresql://ann:confidential@{address}/it") as database:
            with pytest.raises(StoreUnavailable) as caught:
                await count(database)
        assert caught.value.__cause__ is not None
        assert "confidential" not in f"{caught.value.__cause__!r} {caught.value.__cause__}"

    async def test_a_missing_database_raises_store_unavailable(self, postgres_server: PostgresServer) -> None:
        async with open_database(postgres_server.url("nothing")) as database:
            with pytest.raises(StoreUnavailable):
                await count(database)

    @pytest.mark.slow
    async def test_an_exhausted_pool_raises_store_unavailable(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1, connect_timeout=2) as database:
            async with database.write_transaction():
                with pytest.raises(StoreUnavailable):
                    await count(database)
            assert await count(database) == 0

    @pytest.mark.slow
    async def test_a_statement_that_hangs_is_cancelled_and_the_next_works(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1, command_timeout=2) as database:
            for block in (database.read_connection, database.write_transaction):
                with pytest.raises(StoreUnavailable):
                    async with block() as connection:
                        await connection.execute(text("SELECT pg_sleep(60)"))
                assert await count(database) == 0

    async def test_connections_that_the_server_closed_are_replaced(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=2) as database, open_database(postgres_url) as other:
            await asyncio.gather(*(count(database) for _ in range(4)))
            async with other.read_connection() as connection:
                await connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
                await connection.execute(text("SELECT 1"))  # when it returns, the client has seen the sockets close
            assert await asyncio.gather(*(count(database) for _ in range(4))) == [0] * 4

    async def test_names_of_prepared_statements_are_random(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1) as database:
            integrations = SqlRows(database)
            for _ in range(3):
                await integrations.find(IntegrationId(1), UserId("ann"))
            async with database.read_connection() as connection:
                prepared = await connection.execute(text("SELECT name, statement FROM pg_prepared_statements"))
                names = {row.statement: row.name for row in prepared}
        store_statements = [name for statement, name in names.items() if "FROM integrations" in statement]
        assert len(store_statements) == 1  # prepared once for three executions
        assert all(re.fullmatch(r"s_[0-9a-f]{32}", name) for name in names.values())

    async def test_libpq_parameters_are_passed_on(self, postgres_url: str) -> None:
        url = f"{postgres_url}&application_name=over%20there&sslmode=disable&options=-c%20work_mem%3D1234kB"
        async with open_database(url) as database, database.read_connection() as connection:
            assert await connection.scalar(text("SHOW application_name")) == "over there"
            assert await connection.scalar(text("SHOW work_mem")) == "1234kB"


@pytest.mark.postgres
class TestPostgresOutage:
    @pytest.fixture
    def server(self) -> Iterator[PostgresServer]:
        with run_postgres() as server:
            yield server

    @pytest.mark.slow
    async def test_the_database_works_after_a_restart_of_the_server(self, server: PostgresServer) -> None:
        async with open_database(server.url("postgres")) as database:
            await _select_one(database)
            await asyncio.to_thread(server.stop)
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await _select_one(database)
            await asyncio.to_thread(server.start)
            assert await _select_one(database) == 1

    @pytest.mark.slow
    async def test_a_frozen_server_raises_store_unavailable(self, server: PostgresServer) -> None:
        async with open_database(server.url("postgres"), connect_timeout=2, command_timeout=2) as database:
            async with database.write_transaction() as connection:
                backend = await connection.scalar(text("SELECT pg_backend_pid()"))
            pids = (backend, server.process.get_pid())
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(60):
                    with pytest.raises(StoreUnavailable):
                        await _select_one(database)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            assert await _select_one(database) == 1

    @pytest.mark.slow
    async def test_during_an_outage_an_unknown_data_key_raises_store_unavailable(self, server: PostgresServer) -> None:
        await migrate(server.url("postgres"))
        async with open_database(server.url("postgres")) as database:
            keyring, other = [await open_keyring(database, KeyEncryptionKeys(LocalKey(bytes(32)))) for _ in range(2)]
            await other.add_data_key()
            encrypted = await other.encrypt(b"secret", AssociatedData("table", "column", "uid"))
            await asyncio.to_thread(server.stop)
            with pytest.raises(StoreUnavailable):
                await keyring.decrypt(encrypted, AssociatedData("table", "column", "uid"))


async def _select_one(database: Database) -> int:
    async with database.write_transaction() as connection:
        return int(await connection.scalar(text("SELECT 1")) or 0)


@pytest.mark.slow
async def test_a_short_lived_process_does_not_lose_writes_of_a_server(sqlite_url: str) -> None:
    """A second process opens the file and exits, as `keys show` does beside a server that writes."""
    script = (
        "import asyncio, sys\n"
        "from integration_server.storage.engine import open_database\n"
        "from integration_server.storage.integration_lists import SqlIntegrationLists\n"
        "async def main():\n"
        "    async with open_database(sys.argv[1]) as database:\n"
        "        print(len((await SqlIntegrationLists(database).list('ann', None, 0, 10, 10**9)).items))\n"
        "asyncio.run(main())\n"
    )

    async def count_in_subprocess() -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, sqlite_url, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
        )
        out, _ = await process.communicate()
        return int(out)

    async with open_database(sqlite_url) as database:
        store = SqlRows(database)
        for number in range(3):
            # A new connection creates no new file.
            async with database.read_connection(), database.read_connection():
                await create_connected(store, account_id=f"account-{number}")
            assert await count_in_subprocess() == number + 1


@pytest.mark.postgres
class TestKeptConnections:
    async def test_statements_of_the_driver_keep_their_connections(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=2) as database:
            lent = count_checkouts(database._readers)
            for _ in range(3):
                await database.read(COUNT_QUERY)
                await database.run(COUNT_QUERY)
            assert len(lent) == 1

    async def test_whoever_lends_otherwise_gets_a_kept_connection(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1, connect_timeout=2) as database:
            for _ in range(3):
                await database.read(COUNT_QUERY)
                assert await count(database) == 0
                async with database.driver_transaction() as connection:
                    await connection.run(COUNT_QUERY)
                async with database.write_transaction():
                    pass

    @pytest.mark.parametrize("waiter", [count, lambda database: database.read(COUNT_QUERY)], ids=["engine", "driver"])
    async def test_whoever_waits_gets_a_connection_that_is_returned(
        self, postgres_url: str, waiter: Callable[[Database], Awaitable[object]]
    ) -> None:
        async with open_database(postgres_url, pool_size=1, connect_timeout=60) as database:
            async with database.driver_transaction() as connection:
                await connection.run(COUNT_QUERY)
                waiting = [asyncio.ensure_future(waiter(database)) for _ in range(3)]
                await asyncio.sleep(0.05)
            async with asyncio.timeout(30):
                await asyncio.gather(*waiting)

    async def test_one_that_the_server_has_closed_is_replaced(self, postgres_url: str) -> None:
        async with open_database(postgres_url, pool_size=1) as database, open_database(postgres_url) as other:
            ((pid,),) = await database.read(PID_QUERY)
            assert await database.read(PID_QUERY) == [(pid,)]  # kept
            async with other.read_connection() as connection:
                await connection.execute(select(func.pg_terminate_backend(pid, 5000)))
                await connection.execute(text("SELECT 1"))  # when it returns, the client has seen the socket close
            ((replaced,),) = await database.read(PID_QUERY)  # without an error
            assert replaced != pid

    async def test_the_end_closes_them(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database:
            await asyncio.gather(*(database.read(COUNT_QUERY) for _ in range(3)))
            lent = await greenlet_spawn(database._readers.sync_engine.raw_connection)
            driver = lent.driver_connection
            assert isinstance(driver, asyncpg.Connection)
            lent.close()
            await database.read(COUNT_QUERY)
        assert driver.is_closed()


class TestMonitorConnection:
    @pytest.mark.slow
    async def test_the_monitor_connection_works_while_the_pool_is_exhausted(self, database_url: str) -> None:
        async with (
            open_database(database_url, pool_size=1, connect_timeout=2) as database,
            database.read_connection(),
        ):
            with pytest.raises(StoreUnavailable):
                await count(database)
            async with database.monitor_connection() as connection:
                assert await connection.scalar(COUNT) == 0

    @pytest.mark.slow
    async def test_a_second_monitor_connection_is_unavailable(self, database_url: str) -> None:
        async with open_database(database_url, monitor_timeout=2) as database, database.monitor_connection():
            with pytest.raises(StoreUnavailable):
                async with database.monitor_connection():
                    pass

    async def test_queries_of_the_monitor_keep_its_connection_and_lend_it_in_between(self, database_url: str) -> None:
        async with open_database(database_url) as database:

            async def counted() -> int:
                ((number,),) = await database.monitor(COUNT_QUERY)
                return int(number)

            lent = count_checkouts(database._monitors)
            for _ in range(3):
                assert await counted() == 0
            assert len(lent) == 1
            async with database.monitor_connection() as connection:
                assert await connection.scalar(COUNT) == 0
            assert await asyncio.gather(*(counted() for _ in range(5))) == [0] * 5
            assert len(lent) == 3

    @pytest.mark.postgres
    async def test_the_monitor_replaces_a_connection_that_the_server_has_closed(self, postgres_url: str) -> None:
        async with open_database(postgres_url, monitor_timeout=60) as database:
            ((pid,),) = await database.monitor(PID_QUERY)
            assert database._monitor is not None
            driver, closed = database._monitor.driver_connection, asyncio.Event()
            assert isinstance(driver, asyncpg.Connection)
            driver.add_termination_listener(lambda _: closed.set())
            async with database.read_connection() as connection:
                await connection.execute(select(func.pg_terminate_backend(pid, 5000)))
            async with asyncio.timeout(30):
                await closed.wait()
            ((replaced,),) = await database.monitor(PID_QUERY)  # without an error
            assert replaced != pid

    @pytest.mark.postgres
    async def test_a_query_of_the_monitor_that_is_cancelled_closes_its_connection(self, postgres_url: str) -> None:
        async with open_database(postgres_url, monitor_timeout=60) as database:
            ((pid,),) = await database.monitor(PID_QUERY)
            hanging = asyncio.create_task(database.monitor(DriverQuery(select(func.pg_sleep(60)))))
            is_running = text(f"SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = {pid}")
            async with asyncio.timeout(30):
                while not await database.fetch_value(is_running):  # noqa: ASYNC110  # the state is the database's
                    await asyncio.sleep(0.01)
            hanging.cancel()
            await asyncio.gather(hanging, return_exceptions=True)
            assert await database.monitor(PID_QUERY) != [(pid,)]

    @pytest.mark.slow
    @pytest.mark.postgres
    async def test_a_query_of_the_monitor_that_hangs_is_cancelled(self, postgres_url: str) -> None:
        async with open_database(postgres_url, monitor_timeout=2) as database:
            with pytest.raises(StoreUnavailable):
                await database.monitor(DriverQuery(select(func.pg_sleep(60))))
            assert await database.monitor(PID_QUERY)

    @pytest.mark.slow
    @pytest.mark.postgres
    async def test_a_statement_that_hangs_is_cancelled(self, postgres_url: str) -> None:
        async with open_database(postgres_url, monitor_timeout=2) as database:
            with pytest.raises(StoreUnavailable):
                async with database.monitor_connection() as connection:
                    await connection.execute(text("SELECT pg_sleep(60)"))
            async with database.monitor_connection() as connection:
                assert await connection.scalar(COUNT) == 0


@pytest.mark.parametrize("factory", [RollingBackConnection, sqlite3.Connection], ids=["ours", "negative control"])
def test_a_connection_that_is_closed_in_the_middle_of_a_statement_has_no_lock(
    factory: type[sqlite3.Connection], tmp_path: Path
) -> None:
    path = tmp_path / "lock.db"
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("CREATE TABLE numbers (number)")
        closed = sqlite3.connect(path, factory=factory, isolation_level=None)
        closed.execute("BEGIN IMMEDIATE")
        unfinished = closed.execute("INSERT INTO numbers VALUES (1), (2) RETURNING number")
        closed.close()
        with nullcontext() if factory is RollingBackConnection else pytest.raises(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
            assert other.execute("SELECT count(*) FROM numbers").fetchone() == (0,)
        del unfinished


class TestCancellation:
    """After the cancellation of a caller the pool has all its connections."""

    async def cancel_after(self, operation: Callable[[], Awaitable[object]], seconds: float) -> None:
        task = asyncio.ensure_future(operation())
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @pytest.mark.slow
    async def test_cancellation_at_any_moment_returns_all_connections(self, database_url: str) -> None:
        async with open_database(database_url, pool_size=2) as database:
            store = SqlRows(database)
            for delay in range(40):
                await self.cancel_after(lambda: create_connected(store), delay / 10_000)
                await self.cancel_after(lambda: count(database), delay / 10_000)
            async with asyncio.timeout(60):
                await asyncio.gather(
                    *(count(database) for _ in range(10)), *(create_connected(store) for _ in range(10))
                )
            assert await count(database) >= 10

    @pytest.mark.postgres
    async def test_cancellation_while_waiting_for_a_lock_cancels_the_statement(self, postgres_url: str) -> None:
        async with (
            open_database(postgres_url, pool_size=2) as database,
            open_database(postgres_url, pool_size=2) as other,
        ):
            await create_connected(SqlRows(database))

            async def change() -> None:
                async with database.write_transaction() as connection:
                    await connection.execute(text("UPDATE integrations SET name = 'changed'"))

            async with other.write_transaction() as connection:
                await connection.execute(text("SELECT 1 FROM integrations FOR UPDATE"))
                await asyncio.gather(*(self.cancel_after(change, 0.1) for _ in range(20)))
                # No cancelled statement still waits for the lock in the database.
                waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                async with asyncio.timeout(60), other.read_connection() as observer:
                    while await observer.scalar(waiting):  # noqa: ASYNC110  # the database sets no event
                        await asyncio.sleep(0.01)
            async with asyncio.timeout(60):
                await asyncio.gather(*(count(database) for _ in range(5)))
            async with database.read_connection() as connection:
                assert await connection.scalar(text("SELECT name FROM integrations")) == ""


@pytest.mark.postgres
async def test_a_monitoring_connection_that_the_server_has_closed_is_replaced_without_an_error_but_counted(
    postgres_url: str,
) -> None:
    """As in a failover between two polls: the number is all that tells."""
    async with open_database(postgres_url) as database:
        ((pid,),) = await database.monitor(PID_QUERY)
        assert [tuple(row) for row in await database.monitor(PID_QUERY)] == [(pid,)]
        assert database.monitor_connections == 1
        async with database.read_connection() as connection:
            await connection.execute(text(f"SELECT pg_terminate_backend({pid}, 30000)"))
        new_pid = pid
        async with asyncio.timeout(60):
            while new_pid == pid:
                with suppress(StoreUnavailable):  # until the end of the connection has been read
                    ((new_pid,),) = await database.monitor(PID_QUERY)
        assert new_pid != pid
        assert database.monitor_connections == 2
