"""Database connections of SQLAlchemy: lends them, runs statements, and opens the database.

One connection monitors the database: it works, or reports that the database is unavailable, while those of the pools
are busy, blocked or exhausted.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Row,
    UpdateBase,
    bindparam,
    event,
    select,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from integration_server.domain.call_budget import waiting_for_store
from integration_server.observability.spans import AddSpan
from integration_server.service.common_types import Record, record_nothing
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.driver_queries import ConnectionErrors, DriverQueries, UtcDateTime, parse_json
from integration_server.storage.pools import make_pools, parse_database_url

T = TypeVar("T")


class Database(DriverQueries):
    """Lends connections, each for an `async with` block, or for one statement of the other methods.

    In a block, errors of the connection become `StoreUnavailable`. Wrong statements and violated constraints pass as
    SQLAlchemy raises them.
    """

    def read_connection(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for reads. Each statement sees what is committed when it begins."""
        return _lend(self._readers.connect(), self.record_wait)

    def write_transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection in a transaction: committed at the end of the block, rolled back by an exception."""
        return _lend(self._writers.begin(), self.record_wait)

    def write_statement(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for one statement that writes: one round trip to PostgreSQL instead of three."""
        return _lend(self._autocommit_writers.begin(), self.record_wait)

    @asynccontextmanager
    async def monitor_connection(self) -> AsyncIterator[AsyncConnection]:
        """The monitoring connection. It only reads, and fails within two seconds."""
        async with self._monitor_turn():
            await self._return_monitor()
            async with _lend(self._monitors.connect()) as connection:
                yield connection

    @property
    def has_one_writer(self) -> bool:
        """Whether one write transaction at a time runs in the whole database (SQLite)."""
        return self._writers.dialect.name == "sqlite"

    async def fetch(self, query: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """The rows of a query."""
        async with self.read_connection() as connection:
            return (await connection.execute(query, parameters)).all()

    async def fetch_one(self, query: Executable, parameters: Mapping[str, Any] | None = None) -> Row[Any] | None:
        """The only row of a query, if there is one."""
        async with self.read_connection() as connection:
            return (await connection.execute(query, parameters)).one_or_none()

    async def fetch_value(self, query: Executable, parameters: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
        """The first column of the first row of a query, if there is one."""
        async with self.read_connection() as connection:
            return await connection.scalar(query, parameters)

    async def current_time(self) -> datetime:
        """The database's time."""
        time: datetime = await self.fetch_value(select(DatabaseTime()))
        return time

    async def write(self, statement: UpdateBase, parameters: Mapping[str, Any] | None = None) -> int:
        """Commit one statement. Returns the number of rows that it changed."""
        async with self.write_statement() as connection:
            return (await connection.execute(statement, parameters)).rowcount

    async def write_one(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Row[Any] | None:
        """Commit one statement. Returns the only row that it returns, if there is one."""
        async with self.write_statement() as connection:
            return (await connection.execute(statement, parameters)).one_or_none()

    async def data_version(self, connection: AsyncConnection) -> tuple[object, int] | None:
        """On SQLite a value that is equal until another connection commits; on other engines None.

        It compares on one connection only (sqlite.org/pragma.html#pragma_data_version).
        """
        if connection.dialect.name != "sqlite":
            return None
        raw_connection = await connection.get_raw_connection()
        return raw_connection.driver_connection, await connection.scalar(text("PRAGMA data_version")) or 0

    async def aclose(self) -> None:
        """Close every connection."""
        await self._return_monitor()
        for engine in (self._readers, self._writers, self._monitors):
            await engine.dispose()


@asynccontextmanager
async def _lend(
    context: AbstractAsyncContextManager[AsyncConnection], record_wait: Record = record_nothing
) -> AsyncIterator[AsyncConnection]:
    begin = time.perf_counter()
    with waiting_for_store(), ConnectionErrors():
        async with context as connection:
            record_wait(time.perf_counter() - begin)
            yield connection


@asynccontextmanager
async def open_database(
    url: str,
    *,
    pool_size: int = 5,
    connect_timeout: float = 5,  # most callers have given up by then
    command_timeout: float | None = 10,  # statements take milliseconds: after this time none returns
    monitor_timeout: float = 1,  # a database that is available again is noticed within two seconds
    record_wait: Record = record_nothing,
    add_span: AddSpan | None = None,
) -> AsyncIterator[Database]:
    """Open the database at `url`. Connections are made on demand.

    `pool_size` is the number of connections (with SQLite, for reads) beside the monitoring connection. The timeouts are
    in seconds: `connect_timeout` to get a connection or SQLite's lock, `command_timeout` for a statement (PostgreSQL),
    `monitor_timeout` for both on the monitoring connection. `record_wait` gets the seconds of each wait for
    a connection. `add_span` adds a span for each statement; None without traces. Raises `ValueError` for a bad URL.
    """
    change_notified = asyncio.Event()
    pools = await make_pools(
        parse_database_url(url),
        pool_size,
        parse_json,
        change_notified,
        connect_timeout=connect_timeout,
        command_timeout=command_timeout,
        monitor_timeout=monitor_timeout,
    )
    if pools.writers.dialect.name == "sqlite":
        event.listen(pools.writers.sync_engine, "begin", _begin_immediate)
    database = Database(
        pools.readers,
        pools.writers,
        pools.autocommit_writers,
        pools.monitors,
        change_notified,
        record_wait,
        _keeps_statements=pools.keeps_statements,
        _monitor_timeout=monitor_timeout,
    )
    event.listen(pools.monitors.sync_engine, "connect", database.count_monitor_connection)
    if add_span is not None:
        database.trace_statements(add_span)
    async with aclosing(database):
        yield database


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock at once: a transaction that reads first fails if another one writes before its own write."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class DatabaseTime(FunctionElement[datetime]):
    """The current time of the database plus `offset`; not the start of the transaction.

    `offset` may be an expression, in seconds: NULL makes the time NULL.
    """

    name = "database_time"
    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, offset: timedelta | ColumnElement[float] = timedelta(0)) -> None:
        is_fixed = isinstance(offset, timedelta)
        super().__init__(bindparam(None, offset.total_seconds(), unique=True) if is_fixed else offset)


@compiles(DatabaseTime, "postgresql")
def _postgresql(element: DatabaseTime, compiler: SQLCompiler, **options: object) -> str:
    (seconds,) = element.clauses
    # Not now(), which is constant within a transaction.
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(seconds, **options)}))"


@compiles(DatabaseTime, "sqlite")
def _sqlite(element: DatabaseTime, compiler: SQLCompiler, **options: object) -> str:
    (seconds,) = element.clauses
    # The text format of `UtcDateTime` in SQLite, so that times compare as text.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', ({compiler.process(seconds, **options)}) || ' seconds')"


def from_row(value_type: type[T], row: Any, **converted: object) -> T:  # noqa: ANN401  # columns as attributes
    """A value of a dataclass: fields that are not in `converted` come from the columns of the same name."""
    names = [field.name for field in fields(value_type) if field.name not in converted]  # type: ignore[arg-type]
    return value_type(**converted, **{name: getattr(row, name) for name in names})
