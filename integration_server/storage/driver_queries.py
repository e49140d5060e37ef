"""Queries that the database's driver runs: lends connections of the pools, and converts values and errors.

SQLAlchemy's execution and its rows cost more than a short query does (docs/decisions/0014-queries-by-the-driver.md).
Here a query is compiled once, PostgreSQL prepares it once per connection, and rows are sequences of values in the order
of the columns.
"""

import asyncio
import json
import sqlite3
import time
import uuid
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import asyncpg
from pydantic_core import from_json
from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    DateTime,
    Float,
    Select,
    Table,
    UpdateBase,
)
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.exc import DBAPIError, MissingGreenlet
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlalchemy.util import greenlet_spawn

from integration_server.domain.call_budget import waiting_for_store
from integration_server.domain.errors import StoreUnavailable
from integration_server.observability.spans import AddSpan
from integration_server.service.common_types import Record, record_nothing
from integration_server.storage.async_engine import AsyncEngine, run_to_completion
from integration_server.storage.pools import KeepingPool
from integration_server.storage.statement_spans import attributes_of, trace_statements

# --- queries ---------------------------------------------------------------------------------------------------------

Values = Sequence[Any]
"""The values of a row, in the order of the query's columns."""

_Convert = Callable[[Any], Any]

# Of prepared statements, after changes of the schema or of the session. They are prepared again.
_OUTDATED = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
    asyncpg.InvalidSQLStatementNameError,
)


class ConstraintViolated(Exception):
    """A statement violates a constraint of its table."""


@dataclass(frozen=True, eq=False)
class DriverQuery:
    """A statement with named parameters, none of which is expanded: a list is one parameter (`is_one_of`)."""

    statement: Select[Any] | CompoundSelect[Any] | UpdateBase

    def as_records(self, rows: Sequence[Values]) -> Sequence[Any]:
        """Rows of this query whose values are attributes, named as the columns."""
        return list(map(self._row_type._make, rows))

    @cached_property
    def _row_type(self) -> Any:  # noqa: ANN401  # a named tuple
        return namedtuple("Row", [str(column.key) for column in _columns_of(self.statement)])


class CompiledQuery:
    """A query in the SQL of a dialect, with the conversions of its parameters and of its columns."""

    def __init__(self, query: DriverQuery, dialect: Dialect) -> None:
        statement = query.statement
        compiled: Any = statement.compile(dialect=dialect)  # declares no SQL compiler
        if isinstance(statement, UpdateBase) and (*compiled.insert_prefetch, *compiled.update_prefetch):
            raise TypeError("a driver's query has no column with a default that Python computes")
        self.sql: str = compiled.string
        self._constants: Mapping[str, Any] = compiled.params
        self._parameters: Sequence[tuple[str, _Convert | None]] = [
            (name, compiled._bind_processors.get(name)) for name in compiled.positiontup or ()
        ]
        converters = [_result_converter(column.type, dialect) for column in _columns_of(statement)]
        self._converters = [(index, convert) for index, convert in enumerate(converters) if convert is not None]

    def arguments(self, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The values of the parameters in the order in which the SQL has them."""
        arguments = []
        for name, convert in self._parameters:
            value = parameters[name] if name in parameters else self._constants[name]
            arguments.append(value if convert is None else convert(value))
        return arguments

    def rows(self, found: Sequence[Values]) -> Sequence[Values]:
        """The rows as the types of the columns define them."""
        if not self._converters:
            return found
        rows = []
        for values in found:
            row = list(values)
            for index, convert in self._converters:
                value = row[index]
                if value is not None:  # the conversions leave NULL as it is
                    row[index] = convert(value)
            rows.append(row)
        return rows


def _columns_of(statement: Select[Any] | CompoundSelect[Any] | UpdateBase) -> Iterable[ColumnElement[Any]]:
    return statement.exported_columns if isinstance(statement, UpdateBase) else statement.selected_columns


def _result_converter(column_type: TypeEngine[Any], dialect: Dialect) -> _Convert | None:
    if isinstance(column_type, Float):  # both drivers return floats; SQLAlchemy would decide by the type of each result
        return None
    convert: _Convert | None = column_type.dialect_impl(dialect).result_processor(dialect, None)
    return convert


class DriverConnection:
    """A lent connection on which the driver runs statements. Raises the errors of the driver, or `ConstraintViolated`.

    Without `keeps_statements` the next statement may reach another session, behind a transaction pooler: a statement
    without a name is parsed again in the message that executes it. `compiled` returns the text of a statement.
    """

    def __init__(
        self,
        connection: PoolProxiedConnection,
        compiled: Callable[[DriverQuery], CompiledQuery],
        *,
        keeps_statements: bool,
    ) -> None:
        self._driver: Any = connection.driver_connection  # of asyncpg or aiosqlite
        self._is_postgres = isinstance(self._driver, asyncpg.Connection)
        self.dialect_name = "postgresql" if self._is_postgres else "sqlite"
        # Of this connection to the database: a new one has a new dictionary.
        self._statements: dict[Any, Any] | None = connection.info if keeps_statements else None
        self._compiled = compiled
        self._is_in_transaction = False

    async def run(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:  # noqa: ANN401
        """The rows of a statement."""
        compiled = self._compiled(query)
        return compiled.rows(await self._execute(compiled, "fetch", compiled.arguments(parameters)))

    async def run_many(self, query: DriverQuery, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each of these rows of parameters."""
        compiled = self._compiled(query)
        await self._execute(compiled, "executemany", list(map(compiled.arguments, rows)))

    async def copy_rows(
        self, table: Table, columns: Sequence[str], parts: AsyncIterator[Sequence[tuple[Any, ...]]]
    ) -> None:
        """Insert rows by PostgreSQL's COPY, in a transaction. `parts` may await between them.

        The values are the driver's: the types of the columns do not convert them.
        """

        async def rows() -> AsyncIterator[tuple[Any, ...]]:
            async for part in parts:
                for row in part:
                    yield row

        await self._driver.copy_records_to_table(table.name, columns=columns, records=rows())

    async def begin(self) -> None:
        """Begin a transaction, in SQLite with the lock of writers."""
        await self._control("BEGIN" if self._is_postgres else "BEGIN IMMEDIATE")
        self._is_in_transaction = True

    async def commit(self) -> None:
        """Commit the transaction."""
        await self._control("COMMIT")

    async def rollback(self) -> None:
        """Roll the transaction back, if there is one. SQLite ends it itself after some errors."""
        if self._is_postgres or self._driver.in_transaction:
            await self._control("ROLLBACK")

    async def _control(self, sql: str) -> None:
        await (self._driver.execute(sql) if self._is_postgres else self._driver.execute_fetchall(sql))

    async def _execute(self, compiled: CompiledQuery, method: str, arguments: Sequence[Any]) -> Sequence[Values]:
        try:
            if not self._is_postgres:
                return await self._execute_sqlite(compiled.sql, method, arguments)
            return await self._execute_postgres(compiled, method, arguments) or ()
        except (asyncpg.IntegrityConstraintViolationError, sqlite3.IntegrityError) as error:
            raise ConstraintViolated from error

    async def _execute_sqlite(self, sql: str, method: str, arguments: Sequence[Any]) -> Sequence[Values]:
        if method == "fetch":
            rows: Sequence[Values] = await self._driver.execute_fetchall(sql, arguments)
            return rows
        cursor = await self._driver.executemany(sql, arguments)
        await cursor.close()
        return ()

    async def _execute_postgres(self, compiled: CompiledQuery, method: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401
        if self._statements is None:
            statement = await self._driver.prepare(compiled.sql, name="")
            return await self._call(statement, method, arguments)
        statement = self._statements.get(compiled)
        if statement is not None:
            try:
                return await self._call(statement, method, arguments)
            except _OUTDATED as error:
                del self._statements[compiled]
                if self._is_in_transaction:  # which the error has ended
                    raise StoreUnavailable from error
        statement = await self._driver.prepare(compiled.sql, name=f"s_{uuid.uuid4().hex}")
        self._statements[compiled] = statement
        return await self._call(statement, method, arguments)

    async def _call(self, statement: Any, method: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401  # asyncpg's
        return await (statement.fetch(*arguments) if method == "fetch" else statement.executemany(arguments))


class TracedConnection(DriverConnection):
    """A connection that adds a span for each statement that the driver runs."""

    def __init__(
        self,
        connection: PoolProxiedConnection,
        compiled: Callable[[DriverQuery], CompiledQuery],
        add_span: AddSpan,
        *,
        keeps_statements: bool,
    ) -> None:
        super().__init__(connection, compiled, keeps_statements=keeps_statements)
        self._add_span = add_span

    async def _execute(self, compiled: CompiledQuery, method: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401
        begin = time.time_ns()
        try:
            rows = await super()._execute(compiled, method, arguments)
        except BaseException as error:
            self._add_span(*attributes_of(self.dialect_name, compiled.sql), begin, error)
            raise
        self._add_span(*attributes_of(self.dialect_name, compiled.sql), begin, None)
        return rows


# --- connections -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class DriverQueries:
    """Runs queries, each on a connection that is lent for it, or in a transaction.

    `change_notified` is set when another process notifies of a change (PostgreSQL, without a transaction pooler).
    """

    _readers: AsyncEngine
    _writers: AsyncEngine
    _autocommit_writers: AsyncEngine
    _monitors: AsyncEngine
    change_notified: asyncio.Event = field(default_factory=asyncio.Event)
    record_wait: Record = record_nothing  # seconds until a connection was lent
    add_span: AddSpan | None = None  # of each statement
    _keeps_statements: bool = True  # False behind a transaction pooler
    _driver_queries: dict[DriverQuery, CompiledQuery] = field(default_factory=dict)
    _monitor: PoolProxiedConnection | None = None
    _monitor_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _monitor_timeout: float = 1.0  # seconds
    monitor_connections: int = 0
    """How many connections to the database were opened for monitoring: each may lead to another database."""

    @property
    def dialect_name(self) -> str:
        """The name of SQLAlchemy's dialect: `postgresql` or `sqlite`."""
        return self._readers.sync_engine.dialect.name

    async def read(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:  # noqa: ANN401
        """The rows of a query that the driver runs, as it is prepared on the connection."""
        return await self._run_once(self._readers.sync_engine, query, parameters)

    async def run(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:  # noqa: ANN401
        """Commit one statement that the driver runs. Returns the rows that it returns."""
        return await self._run_once(self._autocommit_writers.sync_engine, query, parameters)

    async def _run_once(self, engine: Engine, query: DriverQuery, parameters: Mapping[str, Any]) -> Sequence[Values]:
        # As with `_driver_connection`, which is a generator: those cost as much as lending does.
        begin = time.perf_counter()
        with waiting_for_store(), ConnectionErrors():
            lent = await _lend_raw(engine)
            self.record_wait(time.perf_counter() - begin)
            async with _ReleaseAfterErrors(engine, lent):
                rows = await self._over_driver(engine, lent).run(query, **parameters)
            await _return_raw(engine, lent)
            return rows

    def count_monitor_connection(self, *_: object) -> None:
        """Note that a connection was opened for monitoring: a listener of its pool."""
        self.monitor_connections += 1

    async def monitor(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:  # noqa: ANN401
        """As `read`, on the monitoring connection.

        It stays lent from one of these queries to the next: they run several times a second, and lending it costs
        more than they do.
        """
        async with self._monitor_turn():
            with waiting_for_store(), ConnectionErrors():
                if self._monitor is not None and _is_closed(self._monitor):
                    await self._return_monitor()
                lent, self._monitor = self._monitor or await _lend_raw(self._monitors.sync_engine), None
                async with _ReleaseAfterErrors(self._monitors.sync_engine, lent):
                    rows = await self._over_driver(self._monitors.sync_engine, lent).run(query, **parameters)
                self._monitor = lent
                return rows

    @asynccontextmanager
    async def driver_transaction(self) -> AsyncIterator[DriverConnection]:
        """A connection in a transaction whose statements the driver runs; otherwise as `write_transaction`."""
        async with self._driver_connection(self._writers.sync_engine) as connection:
            try:
                await connection.begin()  # after an error the server may have begun it
                yield connection
                await connection.commit()
            except Exception:
                try:
                    await connection.rollback()
                except Exception as error:
                    raise _TransactionNotEnded from error
                raise

    @asynccontextmanager
    async def _driver_connection(self, engine: Engine) -> AsyncIterator[DriverConnection]:
        begin = time.perf_counter()
        with waiting_for_store(), ConnectionErrors():
            lent = await _lend_raw(engine)
            self.record_wait(time.perf_counter() - begin)
            async with _ReleaseAfterErrors(engine, lent):
                yield self._over_driver(engine, lent)
            await _return_raw(engine, lent)

    def trace_statements(self, add_span: AddSpan) -> None:
        """Add a span for each statement from now on."""
        self.add_span = add_span
        for engine in {engine.sync_engine for engine in (self._readers, self._writers, self._autocommit_writers)}:
            trace_statements(engine, add_span)

    def _over_driver(self, engine: Engine, lent: PoolProxiedConnection) -> DriverConnection:
        compiled = partial(self._compiled, engine, lent)
        if self.add_span is not None:
            return TracedConnection(lent, compiled, self.add_span, keeps_statements=self._keeps_statements)
        return DriverConnection(lent, compiled, keeps_statements=self._keeps_statements)

    def _compiled(self, engine: Engine, lent: PoolProxiedConnection, query: DriverQuery) -> CompiledQuery:
        compiled = self._driver_queries.get(query)
        if compiled is None:
            compiled = self._driver_queries[query] = CompiledQuery(query, engine.dialect)
        if listeners := engine.dispatch.before_cursor_execute:
            listeners(lent, None, compiled.sql, (), None, False)
        return compiled

    @asynccontextmanager
    async def _monitor_turn(self) -> AsyncIterator[None]:
        """A turn on the one monitoring connection."""
        try:
            async with asyncio.timeout(self._monitor_timeout):
                await self._monitor_lock.acquire()
        except TimeoutError as error:
            raise StoreUnavailable from error
        try:
            yield
        finally:
            self._monitor_lock.release()

    async def _return_monitor(self) -> None:
        """Give the monitoring connection back to its pool."""
        lent, self._monitor = self._monitor, None
        if lent is not None:
            await _return_raw(self._monitors.sync_engine, lent)


def _is_closed(lent: PoolProxiedConnection) -> bool:
    """Whether the server has closed a connection; SQLite closes none."""
    driver: Any = lent.driver_connection
    return isinstance(driver, asyncpg.Connection) and driver.is_closed()


class _ReleaseAfterErrors:
    """Gives a connection back to its pool after an error of the block; closes it if its state is not known."""

    __slots__ = ("_engine", "_lent")

    def __init__(self, engine: Engine, lent: PoolProxiedConnection) -> None:
        self._engine = engine
        self._lent = lent

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        if isinstance(error, Exception) and not isinstance(error, _TransactionNotEnded):
            await _return_raw(self._engine, self._lent)
            return
        await _discard(self._lent)  # others come in the middle of a statement, or of a transaction
        if isinstance(error, _TransactionNotEnded):
            raise StoreUnavailable from error


class _TransactionNotEnded(Exception):
    """A transaction could not be rolled back: its connection is closed."""


async def _lend_raw(engine: Engine) -> PoolProxiedConnection:
    """A connection of the pool. A greenlet costs more than the pool does, and is needed only to wait."""
    pool = engine.pool
    if isinstance(pool, KeepingPool) and (idle := pool.take_idle()) is not None:
        return idle
    if not _waits_for_thread(engine):
        with suppress(MissingGreenlet):  # no connection is free, or it was closed
            return engine.raw_connection()
    return await greenlet_spawn(engine.raw_connection)


async def _return_raw(engine: Engine, lent: PoolProxiedConnection) -> None:
    """Return a connection without a transaction, for which nothing has to be rolled back."""
    pool = engine.pool
    if isinstance(pool, KeepingPool):
        pool.keep(lent)
    elif _waits_for_thread(engine):
        await greenlet_spawn(lent.close)
    else:
        lent.close()


def _waits_for_thread(engine: Engine) -> bool:
    return engine.dialect.name == "sqlite"


async def _discard(lent: PoolProxiedConnection) -> None:
    """Close a connection, also if the caller is cancelled again meanwhile."""
    await run_to_completion(greenlet_spawn(lent.invalidate))


# --- values ----------------------------------------------------------------------------------------------------------


def parse_json(text: str) -> Any:  # noqa: ANN401  # what JSON can have
    """The value of a text that the database has checked. pydantic's parser takes a tenth of the time of Python's.

    It rejects some texts that Python's accepts, such as those with half of a surrogate pair.
    """
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:
        return json.loads(text)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, to the microsecond. SQLite has no time zones: there it is stored in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Reject a naive datetime: its zone is unknown."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        """The conversion into a time in UTC."""
        return _with_zone if dialect.name == "postgresql" else _utc_of_text


def _with_zone(time: datetime | None) -> datetime | None:
    """The time, which the driver returns in UTC: only the last one that there is has no zone (`infinity` in SQL)."""
    return time if time is None or time.tzinfo is not None else time.replace(tzinfo=UTC)


def _utc_of_text(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(f"{text}+00:00")


# --- errors ----------------------------------------------------------------------------------------------------------

_UNAVAILABLE_SQLSTATES = ("08", "25006", "28", "3D000", "40", "53", "55P03", "57", "58")
"""Prefixes of the SQLSTATEs of errors that a later attempt may not have: connection, read-only standby, login, missing
database, rollback, resources, lock, operator intervention, system (PostgreSQL, appendix A)."""

_UNAVAILABLE_SQLITE_CODES = frozenset(
    {
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_READONLY,
    }
)  # fmt: skip
"""Errors of the file, the disk or a lock, not of a statement (sqlite.org/rescode.html)."""


class ConnectionErrors:
    """Converts the errors of the block that the connection has caused into `StoreUnavailable`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and _is_connection_error(error):
            raise StoreUnavailable from error


def _is_connection_error(error: BaseException) -> bool:
    if isinstance(error, (OSError, PoolTimeoutError)):  # TimeoutError is an OSError
        return True
    if isinstance(error, DBAPIError):
        is_misconfigured = isinstance(getattr(error.orig, "__cause__", None), asyncpg.ClientConfigurationError)
        return error.connection_invalidated or is_misconfigured or _is_unavailable(error.orig)
    if isinstance(error, (asyncpg.PostgresError, asyncpg.InterfaceError, sqlite3.Error)):  # of the driver itself
        # Those of arguments are ValueErrors too.
        is_lost = isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError)
        return is_lost or _is_unavailable(error)
    return False


def _is_unavailable(error: object) -> bool:
    primary_code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    sqlstate = getattr(error, "sqlstate", None) or ""
    return sqlstate.startswith(_UNAVAILABLE_SQLSTATES) or primary_code in _UNAVAILABLE_SQLITE_CODES
