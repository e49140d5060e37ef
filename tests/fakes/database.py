"""A SQLite database in memory for unit tests of the SQL stores and the service; its clock is the test's."""

import asyncio
import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, Executable, NullPool, Row, create_engine
from sqlalchemy.exc import IntegrityError

from integration_server.domain.errors import StoreUnavailable
from integration_server.service.common_types import Clock
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.driver_queries import ConstraintViolated, DriverConnection, DriverQuery, Values
from integration_server.storage.engine import Database
from integration_server.storage.schema import migrate


class InMemoryDatabase(Database):
    """A migrated database with `clock` as its clock. While `is_unavailable`, every call raises `StoreUnavailable`.

    Each block yields to other tasks once before it begins. SQLite runs on the event loop's thread, so that a block
    is then atomic for other tasks.
    """

    dialect_name = "sqlite"
    monitor_connections = 1

    def __init__(self, clock: Clock) -> None:
        self.is_unavailable = False
        self.change_notified = asyncio.Event()
        self._connection = _engine().connect()
        raw = cast("sqlite3.Connection", self._connection.connection.driver_connection)
        raw.isolation_level = None
        raw.deserialize(_migrated_image())
        raw.execute("PRAGMA foreign_keys = ON")
        raw.create_function("strftime", -1, partial(_format_time, clock))

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        await asyncio.sleep(0)
        if self.is_unavailable:
            raise StoreUnavailable
        with self._connection.begin():
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield cast("AsyncConnection", _SynchronousConnection(self._connection))

    read_connection = write_transaction = write_statement = monitor_connection = _transaction

    async def read(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:
        """The rows of a query, which SQLAlchemy runs here."""
        return await self.fetch(query.statement, parameters)

    monitor = read

    async def run(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:
        """Commit a statement, which SQLAlchemy runs here."""
        async with self.write_statement() as connection:
            result = await connection.execute(query.statement, parameters)
            return result.all() if result.returns_rows else ()

    @asynccontextmanager
    async def driver_transaction(self) -> AsyncIterator[DriverConnection]:
        """A transaction, whose statements SQLAlchemy runs here."""
        async with self.write_transaction() as connection:
            yield cast("DriverConnection", _SynchronousDriver(connection))

    async def data_version(self, connection: AsyncConnection) -> None:
        """None: SQLite's version says nothing about commits of the same connection, which is the only one here."""

    async def aclose(self) -> None:
        """Discard the database."""
        self._connection.close()

    def execute(self, statement: Executable) -> None:
        """Run a statement of the test, also while the database is unavailable to the server."""
        with self._connection.begin():
            self._connection.execute(statement)

    def rows(self, query: Executable) -> Sequence[Row[Any]]:
        """The rows of a query of the test."""
        with self._connection.begin():
            return self._connection.execute(query).all()


class _SynchronousConnection:
    """The methods of `AsyncConnection` over a synchronous connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._connection, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return call

    async def run_sync(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self._connection, *args)


class _SynchronousDriver:
    """The statements of `DriverConnection` over a synchronous connection."""

    dialect_name = "sqlite"

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def run(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:
        result = await self._execute(query, parameters)
        return result.all() if result.returns_rows else ()

    async def run_many(self, query: DriverQuery, rows: Sequence[Mapping[str, Any]]) -> None:
        await self._execute(query, rows)

    async def _execute(self, query: DriverQuery, parameters: Any) -> Any:
        try:
            return await self._connection.execute(query.statement, parameters)
        except IntegrityError as error:
            raise ConstraintViolated from error.orig


def _format_time(clock: Clock, time_format: str, time: str, *modifiers: str | None) -> str | None:
    """SQLite's `strftime` as `DatabaseTime` and the triggers call it, on the test's clock and to the microsecond."""
    assert (time_format, time) == ("%Y-%m-%d %H:%M:%f000", "now")
    if None in modifiers:
        return None
    offset = sum(float(modifier.removesuffix(" seconds")) for modifier in modifiers if modifier is not None)
    return (clock() + timedelta(seconds=offset)).strftime("%Y-%m-%d %H:%M:%S.%f")


@cache
def _engine() -> Engine:
    """One engine for all databases: it keeps the compiled statements."""
    return create_engine(
        "sqlite://", poolclass=NullPool, json_serializer=partial(json.dumps, allow_nan=False), hide_parameters=True
    )


@cache
def _migrated_image() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "migrated.db"
        with ThreadPoolExecutor(1) as thread:  # an event loop already runs in this thread
            thread.submit(lambda: asyncio.run(migrate(f"sqlite:///{path}"))).result()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = DELETE")  # a database in memory has no write-ahead log
        image = connection.serialize()
        connection.close()
        return image
