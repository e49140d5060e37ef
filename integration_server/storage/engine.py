"""Database connections: parses the database URL, opens connection pools, and converts connection errors and times.

SQLite has one connection for writes per process, for which writers queue, and several for reads. PostgreSQL has one
pool; reads use autocommit, which saves the two round trips of a transaction. One more connection monitors the database:
it works, or reports that the database is unavailable, while the others are busy, blocked or exhausted.
"""

import asyncio
import json
import os
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import asyncpg
from pydantic_core import from_json
from sqlalchemy import (
    URL,
    Connection,
    DateTime,
    Executable,
    Row,
    UpdateBase,
    bindparam,
    event,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.engine import AdaptedConnection, Dialect
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, MissingGreenlet
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from integration_server.domain.errors import StoreUnavailable
from integration_server.observability.spans import OpenSpan
from integration_server.service.background.detached_tasks import waiting_for_store
from integration_server.service.common_types import Record, record_nothing
from integration_server.storage.driver_queries import CompiledQuery, DriverConnection, DriverQuery, Values
from integration_server.storage.statement_spans import TracedConnection, trace_statements

T = TypeVar("T")

DEFAULT_DATABASE_URL = "sqlite:///./data/integrations.db"

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_POSTGRES_PARAMETERS = frozenset(
    {
        "application_name", "host", "options", "port", "sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation",
        "sslrootcert", "target_session_attrs",
    }
)  # fmt: skip
"""The connection parameters of libpq that asyncpg supports."""

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


# --- URL ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SqliteLocation:
    """The location of an SQLite database."""

    path: Path


@dataclass(frozen=True, slots=True)
class PostgresLocation:
    """The location of a PostgreSQL database. `repr` hides the password; `parameters` is a URL query for libpq."""

    url: URL
    parameters: str = field(repr=False)


def parse_database_url(text: str) -> SqliteLocation | PostgresLocation:
    """Parse a `DATABASE_URL`: `sqlite:///path`, `postgresql://…` or `postgres://…`; a `+driver` is ignored.

    Raises `ValueError`. Its message quotes nothing of the URL, because a password may be anywhere in it.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(
            "is not a database URL: expected sqlite:///path or postgresql://user:password@host:port/database, "
            "with special characters in the password percent-encoded"
        ) from None
    match url.get_backend_name():
        case "sqlite":
            return _sqlite_location(url)
        case "postgresql" | "postgres":
            return _postgres_location(url)
        case _:
            raise ValueError("has an unknown scheme: expected sqlite:// or postgresql://")


def _sqlite_location(url: URL) -> SqliteLocation:
    if url.host or url.username:
        raise ValueError("needs three slashes for a relative SQLite path, four for an absolute one: sqlite:///path")
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise ValueError("must name a file: an SQLite database in memory is lost")
    if url.query:
        raise ValueError("takes no parameters after an SQLite path")
    return SqliteLocation(Path(url.database))


def _postgres_location(url: URL) -> PostgresLocation:
    if "@" in (url.host or ""):
        raise ValueError("has more than one @: percent-encode the one in the password as %40")
    if not url.query.keys() <= _POSTGRES_PARAMETERS:
        raise ValueError(f"has an unknown parameter: expected {', '.join(sorted(_POSTGRES_PARAMETERS))}")
    if url.query.get("sslmode", "prefer") not in _SSL_MODES:
        raise ValueError(f"has an unknown sslmode: expected {', '.join(_SSL_MODES)}")
    return PostgresLocation(
        url=url.set(drivername="postgresql+asyncpg", query={}), parameters=urlencode(url.query, doseq=True)
    )


# --- connections -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Database:
    """Lends connections, each for an `async with` block, or for one statement of the other methods.

    In a block, errors of the connection become `StoreUnavailable`. Wrong statements and violated constraints pass as
    SQLAlchemy raises them. `change_notified` is set when another process notifies of a change (PostgreSQL, without a
    transaction pooler).
    """

    _readers: AsyncEngine
    _writers: AsyncEngine
    _autocommit_writers: AsyncEngine
    _monitors: AsyncEngine
    change_notified: asyncio.Event = field(default_factory=asyncio.Event)
    record_wait: Record = record_nothing  # seconds until a connection was lent
    open_span: OpenSpan | None = None  # of each statement
    _keeps_statements: bool = True  # False behind a transaction pooler
    _driver_queries: dict[DriverQuery, CompiledQuery] = field(default_factory=dict)
    _monitor: PoolProxiedConnection | None = None
    _monitor_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _monitor_timeout: float = 1.0  # seconds

    @property
    def dialect_name(self) -> str:
        """The name of SQLAlchemy's dialect: `postgresql` or `sqlite`."""
        return self._readers.dialect.name

    async def read(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:  # noqa: ANN401
        """The rows of a query that the driver runs, as it is prepared on the connection."""
        async with self._driver_connection(self._readers) as connection:
            return await connection.run(query, **parameters)

    async def run(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:  # noqa: ANN401
        """Commit one statement that the driver runs. Returns the rows that it returns."""
        async with self._driver_connection(self._autocommit_writers) as connection:
            return await connection.run(query, **parameters)

    async def monitor(self, query: DriverQuery, **parameters: Any) -> Sequence[Values]:  # noqa: ANN401
        """As `read`, on the monitoring connection.

        It stays lent from one of these queries to the next: they run several times a second, and lending it costs
        more than they do.
        """
        async with self._monitor_turn():
            with waiting_for_store(), _convert_connection_errors():
                if self._monitor is not None and _is_closed(self._monitor):
                    await self._return_monitor()
                lent, self._monitor = self._monitor or await _lend_raw(self._monitors), None
                async with _given_back_after_errors(self._monitors, lent):
                    rows = await self._over_driver(self._monitors, lent).run(query, **parameters)
                self._monitor = lent
                return rows

    @asynccontextmanager
    async def driver_transaction(self) -> AsyncIterator[DriverConnection]:
        """A connection in a transaction whose statements the driver runs; otherwise as `write_transaction`."""
        async with self._driver_connection(self._writers) as connection:
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
    async def _driver_connection(self, engine: AsyncEngine) -> AsyncIterator[DriverConnection]:
        begin = time.perf_counter()
        with waiting_for_store(), _convert_connection_errors():
            lent = await _lend_raw(engine)
            self.record_wait(time.perf_counter() - begin)
            async with _given_back_after_errors(engine, lent):
                yield self._over_driver(engine, lent)
            await _return_raw(engine, lent)

    def trace_statements(self, open_span: OpenSpan) -> None:
        """Open a span for each statement from now on."""
        self.open_span = open_span
        for engine in {one.sync_engine for one in (self._readers, self._writers, self._autocommit_writers)}:
            trace_statements(engine, open_span)

    def _over_driver(self, engine: AsyncEngine, lent: PoolProxiedConnection) -> DriverConnection:
        compiled = partial(self._compiled, engine, lent)
        if self.open_span is not None:
            return TracedConnection(lent, compiled, self.open_span, keeps_statements=self._keeps_statements)
        return DriverConnection(lent, compiled, keeps_statements=self._keeps_statements)

    def _compiled(self, engine: AsyncEngine, lent: PoolProxiedConnection, query: DriverQuery) -> CompiledQuery:
        compiled = self._driver_queries.get(query)
        if compiled is None:
            compiled = self._driver_queries[query] = CompiledQuery(query, engine.dialect)
        if listeners := engine.sync_engine.dispatch.before_cursor_execute:
            listeners(lent, None, compiled.sql, (), None, False)
        return compiled

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
            await _return_raw(self._monitors, lent)

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


def _is_closed(lent: PoolProxiedConnection) -> bool:
    """Whether the server has closed a connection; SQLite closes none."""
    driver: Any = lent.driver_connection
    return isinstance(driver, asyncpg.Connection) and driver.is_closed()


@asynccontextmanager
async def _given_back_after_errors(engine: AsyncEngine, lent: PoolProxiedConnection) -> AsyncIterator[None]:
    """Give a connection back to its pool after an error; close it if its state is not known."""
    try:
        yield
    except _TransactionNotEnded as error:
        await _discard(lent)
        raise StoreUnavailable from error
    except Exception:
        await _return_raw(engine, lent)
        raise
    except BaseException:  # in the middle of a statement, or of a transaction
        await _discard(lent)
        raise


class _TransactionNotEnded(Exception):
    """A transaction could not be rolled back: its connection is closed."""


async def _lend_raw(engine: AsyncEngine) -> PoolProxiedConnection:
    """A connection of the pool. A greenlet costs more than the pool does, and is needed only to wait."""
    if not _waits_for_thread(engine):
        with suppress(MissingGreenlet):  # no connection is free, or it was closed
            return engine.sync_engine.raw_connection()
    return await engine.raw_connection()


async def _return_raw(engine: AsyncEngine, lent: PoolProxiedConnection) -> None:
    """Return a connection without a transaction, for which nothing has to be rolled back."""
    if _waits_for_thread(engine):
        await greenlet_spawn(lent.close)
    else:
        lent.close()


def _waits_for_thread(engine: AsyncEngine) -> bool:
    return engine.dialect.name == "sqlite"


async def _discard(lent: PoolProxiedConnection) -> None:
    """Close a connection, also if the caller is cancelled again meanwhile."""
    await asyncio.shield(asyncio.ensure_future(greenlet_spawn(lent.invalidate)))


@asynccontextmanager
async def _lend(
    context: AbstractAsyncContextManager[AsyncConnection], record_wait: Record = record_nothing
) -> AsyncIterator[AsyncConnection]:
    begin = time.perf_counter()
    with waiting_for_store(), _convert_connection_errors():
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
    open_span: OpenSpan | None = None,
) -> AsyncIterator[Database]:
    """Open the database at `url`. Connections are made on demand.

    `pool_size` is the number of connections (with SQLite, for reads) beside the monitoring connection. The timeouts are
    in seconds: `connect_timeout` to get a connection or SQLite's lock, `command_timeout` for a statement (PostgreSQL),
    `monitor_timeout` for both on the monitoring connection. `record_wait` gets the seconds of each wait for
    a connection. `open_span` opens a span for each statement; None without traces. Raises `ValueError` for a bad URL.
    """
    target = parse_database_url(url)
    if isinstance(target, SqliteLocation):
        database = _sqlite_database(target, pool_size, connect_timeout, monitor_timeout)
    else:
        database = await _postgres_database(target, pool_size, connect_timeout, command_timeout, monitor_timeout)
    database.record_wait = record_wait
    if open_span is not None:
        database.trace_statements(open_span)
    async with aclosing(database):
        yield database


def _engine(
    url: URL, pool_size: int, timeout: float, connect_args: Mapping[str, Any], *, read_only: bool = False
) -> AsyncEngine:
    return create_async_engine(
        url,
        connect_args={"timeout": timeout, **connect_args},
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout,
        hide_parameters=True,
        skip_autocommit_rollback=read_only,  # saves a switch to SQLite's thread
        json_serializer=partial(json.dumps, allow_nan=False),  # PostgreSQL has no NaN in JSON
        json_deserializer=parse_json,
    )


def parse_json(text: str) -> Any:  # noqa: ANN401  # what JSON can have
    """The value of a text that the database has checked. pydantic's parser takes a tenth of the time of Python's.

    It rejects some texts that Python's accepts, such as those with half of a surrogate pair.
    """
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:
        return json.loads(text)


async def _postgres_database(
    target: PostgresLocation,
    pool_size: int,
    connect_timeout: float,
    command_timeout: float | None,
    monitor_timeout: float,
) -> Database:
    is_pooled = await _is_pooled(_postgres_engine(target, 1, connect_timeout, connect_timeout, _UNPREPARED_STATEMENTS))
    statements = _UNPREPARED_STATEMENTS if is_pooled else _PREPARED_STATEMENTS
    engine = _postgres_engine(target, pool_size, connect_timeout, command_timeout, statements)
    monitors = _postgres_engine(target, 1, monitor_timeout, monitor_timeout, statements)
    database = Database(
        _autocommit(engine),
        engine,
        _autocommit(engine),
        _autocommit(monitors),
        _keeps_statements=not is_pooled,
        _monitor_timeout=monitor_timeout,
    )
    if not is_pooled:  # a pooler gives the session to other clients
        event.listen(monitors.sync_engine, "connect", partial(_listen, database.change_notified))
    return database


def _listen(change_notified: asyncio.Event, connection: AdaptedConnection, _record: object) -> None:
    """Set the event for each notification of the trigger `notify_change`.

    Without LISTEN, as on distributed engines and standbys, the reader polls. A lost connection fails at the next
    statement.
    """

    async def listen(driver: "asyncpg.Connection[asyncpg.Record]") -> None:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):  # SQLAlchemy converts errors of statements only
            await driver.add_listener("integration_changes", lambda *_: change_notified.set())

    connection.run_async(listen)


# SQLAlchemy keeps prepared statements. Random names do not clash with those of an earlier client of the session.
_PREPARED_STATEMENTS: Mapping[str, Any] = {"prepared_statement_name_func": lambda: f"s_{uuid.uuid4().hex}"}

# Behind a pooler the next statement may reach another session, which lacks prepared statements. A statement without a
# name (`str()` is empty) is parsed again by asyncpg, in the message that executes it.
_UNPREPARED_STATEMENTS: Mapping[str, Any] = {"prepared_statement_name_func": str, "prepared_statement_cache_size": 0}


def _postgres_engine(
    target: PostgresLocation,
    pool_size: int,
    connect_timeout: float,
    command_timeout: float | None,
    statements: Mapping[str, Any],
) -> AsyncEngine:
    engine = _engine(
        target.url,
        pool_size,
        connect_timeout,
        {
            "dsn": f"postgresql://?{target.parameters}",
            "command_timeout": command_timeout,
            "statement_cache_size": 0,  # asyncpg's own cache numbers the statements
            **statements,
        },
    )
    event.listen(engine.sync_engine, "checkout", _discard_closed_connection)
    event.listen(engine.sync_engine, "do_connect", _require_greenlet)
    return engine


def _autocommit(engine: AsyncEngine) -> AsyncEngine:
    return engine.execution_options(isolation_level="AUTOCOMMIT")


async def _is_pooled(engine: AsyncEngine) -> bool:
    """Whether a transaction pooler is in between: another session responds than was opened.

    True also if none responds: what works behind a pooler works everywhere.
    """
    try:
        async with engine.connect() as connection:
            opened = (await connection.get_raw_connection()).driver_connection
            serving_pid = await connection.scalar(text("SELECT pg_backend_pid()"))
    except (OSError, DBAPIError, PoolTimeoutError):
        return True
    finally:
        await engine.dispose()
    return opened is None or opened.get_server_pid() != serving_pid


def _discard_closed_connection(connection: AdaptedConnection, _record: object, _proxy: object) -> None:
    """Have the pool replace a connection that the server closed. Unlike a ping it costs no round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _require_greenlet(*_connect_arguments: object) -> None:
    """End a call of `_lend_raw` that would have to open a connection, before it creates a coroutine for it."""
    if not in_greenlet():
        raise MissingGreenlet


def _sqlite_database(
    target: SqliteLocation, pool_size: int, connect_timeout: float, monitor_timeout: float
) -> Database:
    url = URL.create("sqlite+aiosqlite", database=str(target.path))
    readers = _engine(url, pool_size, connect_timeout, {}, read_only=True)
    writers = _engine(url, 1, connect_timeout, {"factory": RollingBackConnection})
    monitors = _engine(url, 1, monitor_timeout, {}, read_only=True)
    for engine in (readers, writers, monitors):
        event.listen(engine.sync_engine, "do_connect", partial(_make_private_file, target.path))
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(writers.sync_engine, "begin", _begin_immediate)
    return Database(readers, writers, writers, monitors, _monitor_timeout=monitor_timeout)


class RollingBackConnection(sqlite3.Connection):
    """Ends its transaction when it is closed.

    A statement whose caller was cancelled may not be finalized yet. SQLite would then keep the transaction, and with it
    the lock, until it is (sqlite.org/c3ref/close.html).
    """

    def close(self) -> None:
        """Roll back and close."""
        with suppress(sqlite3.Error):
            self.rollback()
        super().close()


def _make_private_file(path: Path, *_connect_arguments: object) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only a new file: closing one that is open elsewhere in this process drops the process's locks on it
    # (sqlite.org/howtocorrupt.html §2.2), and the next process that exits would remove the WAL.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # SQLite gives the WAL the same mode


def _configure_sqlite(connection: AsyncAdapt_aiosqlite_connection, _record: object) -> None:
    connection.isolation_level = None  # `sqlite3` begins no implicit transaction
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # with WAL, NORMAL loses commits in a power cut (sqlite.org/wal.html)
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock at once: a transaction that reads first fails if another one writes before its own write."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


# --- times -------------------------------------------------------------------------------------------------------


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


class DatabaseTime(FunctionElement[datetime]):
    """The current time of the database plus `offset`; not the start of the transaction."""

    name = "database_time"
    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, offset: timedelta = timedelta(0)) -> None:
        super().__init__(bindparam(None, offset.total_seconds(), unique=True))


@compiles(DatabaseTime, "postgresql")
def _postgresql(element: DatabaseTime, compiler: SQLCompiler, **options: object) -> str:
    (seconds,) = element.clauses
    # Not now(), which is constant within a transaction.
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(seconds, **options)}))"


@compiles(DatabaseTime, "sqlite")
def _sqlite(element: DatabaseTime, compiler: SQLCompiler, **options: object) -> str:
    (seconds,) = element.clauses
    # The text format of `UtcDateTime` in SQLite, so that times compare as text.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(seconds, **options)} || ' seconds')"


# --- rows ------------------------------------------------------------------------------------------------------------


def from_row(value_type: type[T], row: Any, **converted: object) -> T:  # noqa: ANN401  # columns as attributes
    """A value of a dataclass: fields that are not in `converted` come from the columns of the same name."""
    names = [field.name for field in fields(value_type) if field.name not in converted]  # type: ignore[arg-type]
    return value_type(**converted, **{name: getattr(row, name) for name in names})


# --- errors ------------------------------------------------------------------------------------------------------


@contextmanager
def _convert_connection_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, PoolTimeoutError) as error:  # TimeoutError is an OSError
        raise StoreUnavailable from error
    except DBAPIError as error:
        if error.connection_invalidated or _is_unavailable(error.orig):
            raise StoreUnavailable from error
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, sqlite3.Error) as error:  # of the driver itself
        # Those of arguments are ValueErrors too.
        is_lost = isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError)
        if is_lost or _is_unavailable(error):
            raise StoreUnavailable from error
        raise


def _is_unavailable(error: object) -> bool:
    primary_code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    sqlstate = getattr(error, "sqlstate", None) or ""
    return sqlstate.startswith(_UNAVAILABLE_SQLSTATES) or primary_code in _UNAVAILABLE_SQLITE_CODES
