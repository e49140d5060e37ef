"""The way to the database: reads its URL, opens connection pools, and says when it is away.

SQLite is served by one writing connection a process, for which writers queue, and several reading ones. PostgreSQL is
served by one pool; what reads does so in autocommit, which saves the two round trips of a transaction. Beside them, one
connection is for watching the database: however busy, stuck or exhausted the others are, it tells whether the database
answers.
"""

import asyncio
import json
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from integration_server.domain.errors import StoreUnavailable
from integration_server.service.background.call_deadline import waiting_for_store

DEFAULT_DATABASE_URL = "sqlite:///./data/integrations.db"

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_POSTGRES_PARAMETERS = frozenset(
    {
        "application_name", "host", "options", "port", "sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation",
        "sslrootcert", "target_session_attrs",
    }
)  # fmt: skip
"""Those of libpq's connection parameters that asyncpg knows as well."""

_UNAVAILABLE_SQLSTATES = ("08", "25006", "28", "3D000", "40", "53", "55P03", "57", "58")
"""Beginnings of the SQLSTATEs that trying again later may cure: connection, read-only standby, login, no such database,
rolled back, resources, lock, operator's intervention, system (PostgreSQL, appendix A)."""

_UNAVAILABLE_SQLITE_CODES = frozenset(
    {
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_READONLY,
    }
)  # fmt: skip
"""What tells of the file, the disk or a lock, and not of a wrong statement (sqlite.org/rescode.html)."""


# --- URL ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A database in a file."""

    path: Path


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A database on a server. `url` hides its password in `repr`; `parameters` are libpq's, as a URL's query."""

    url: URL
    parameters: str = field(repr=False)


def parse_database_url(text: str) -> SqliteFile | PostgresServer:
    """Read a `DATABASE_URL`: `sqlite:///path`, `postgresql://…` or `postgres://…`; a `+driver` is ignored.

    Raises `ValueError` that says what is wrong, and quotes nothing: a password may be anywhere in a bad URL.
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
            return _sqlite_file(url)
        case "postgresql" | "postgres":
            return _postgres_server(url)
        case _:
            raise ValueError("has an unknown scheme: expected sqlite:// or postgresql://")


def _sqlite_file(url: URL) -> SqliteFile:
    if url.host or url.username:
        raise ValueError("needs three slashes for a relative SQLite path, four for an absolute one: sqlite:///path")
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise ValueError("must name a file: an SQLite database in memory is not kept")
    if url.query:
        raise ValueError("takes no parameters after an SQLite path")
    return SqliteFile(Path(url.database))


def _postgres_server(url: URL) -> PostgresServer:
    if "@" in (url.host or ""):
        raise ValueError("has more than one @: percent-encode the one in the password as %40")
    if not url.query.keys() <= _POSTGRES_PARAMETERS:
        raise ValueError(f"has a parameter that is not known: expected {', '.join(sorted(_POSTGRES_PARAMETERS))}")
    if url.query.get("sslmode", "prefer") not in _SSL_MODES:
        raise ValueError(f"has an unknown sslmode: expected {', '.join(_SSL_MODES)}")
    return PostgresServer(
        url=url.set(drivername="postgresql+asyncpg", query={}), parameters=urlencode(url.query, doseq=True)
    )


# --- connections -------------------------------------------------------------------------------------------------


class Database:
    """Connections to the database, lent for the length of a block.

    In these blocks, whatever says that the database is away becomes `StoreUnavailable`. Mistakes of ours and violated
    constraints pass as SQLAlchemy raises them.
    """

    def __init__(
        self,
        readers: AsyncEngine,
        writers: AsyncEngine,
        autocommit_writers: AsyncEngine,
        monitors: AsyncEngine,
        change_notified: asyncio.Event,
    ) -> None:
        self._readers = readers
        self._writers = writers
        self._autocommit_writers = autocommit_writers
        self._monitors = monitors
        self.change_notified = change_notified

    @asynccontextmanager
    async def read_connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading only. Each statement sees what is committed when it begins."""
        with waiting_for_store(), _convert_connection_errors():
            async with self._readers.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write_transaction(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction, committed at the end of the block and rolled back by an exception."""
        with waiting_for_store(), _convert_connection_errors():
            async with self._writers.begin() as connection:
                yield connection

    @asynccontextmanager
    async def write_statement(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one statement that writes. PostgreSQL commits that by itself: one round trip, not three."""
        with waiting_for_store(), _convert_connection_errors():
            async with self._autocommit_writers.begin() as connection:
                yield connection

    @asynccontextmanager
    async def monitor_connection(self) -> AsyncIterator[AsyncConnection]:
        """The connection for looking at the database itself: only reads, and gives up within a second or two."""
        with waiting_for_store(), _convert_connection_errors():
            async with self._monitors.connect() as connection:
                yield connection

    async def data_version(self, connection: AsyncConnection) -> tuple[object, int] | None:
        """On SQLite a value that is equal until another connection commits; on other engines None.

        It compares on one connection only (sqlite.org/pragma.html#pragma_data_version).
        """
        if connection.dialect.name != "sqlite":
            return None
        raw_connection = await connection.get_raw_connection()
        return raw_connection.driver_connection, await connection.scalar(text("PRAGMA data_version")) or 0

    async def close(self) -> None:
        """Close every connection."""
        for engine in (self._readers, self._writers, self._monitors):
            await engine.dispose()


@asynccontextmanager
async def open_database(
    url: str,
    *,
    pool_size: int = 5,
    connect_timeout: float = 5,  # callers have mostly given up by then
    command_timeout: float | None = 10,  # our statements take milliseconds: one that takes this long is never answered
    monitor_timeout: float = 1,  # so that it is noticed within two seconds that the database is back
) -> AsyncIterator[Database]:
    """The database at `url` until the block ends; connections are made when they are needed.

    `pool_size` is the number of connections (with SQLite, of reading ones); one more is for watching. The timeouts are
    in seconds: `connect_timeout` for what has to be waited for before a statement (a free connection, a new one,
    SQLite's lock), `command_timeout` for the statement (with PostgreSQL), `monitor_timeout` for either where the
    database
    is watched. Raises `ValueError` for a bad URL.
    """
    target = parse_database_url(url)
    if isinstance(target, SqliteFile):
        database = _sqlite_database(target, pool_size, connect_timeout, monitor_timeout)
    else:
        database = await _postgres_database(target, pool_size, connect_timeout, command_timeout, monitor_timeout)
    try:
        yield database
    finally:
        await database.close()


def _engine(
    url: URL, pool_size: int, timeout: float, connect_args: Mapping[str, Any], *, only_reads: bool = False
) -> AsyncEngine:
    return create_async_engine(
        url,
        connect_args={"timeout": timeout, **connect_args},
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout,
        hide_parameters=True,
        skip_autocommit_rollback=only_reads,  # there is nothing to roll back, and SQLite's thread would be woken for it
        json_serializer=partial(json.dumps, allow_nan=False),  # PostgreSQL refuses NaN, and SQLite should not differ
    )


async def _postgres_database(
    target: PostgresServer,
    pool_size: int,
    connect_timeout: float,
    command_timeout: float | None,
    monitor_timeout: float,
) -> Database:
    is_pooled = await _is_pooled(_postgres_engine(target, 1, connect_timeout, connect_timeout, _UNPREPARED_STATEMENTS))
    statements = _UNPREPARED_STATEMENTS if is_pooled else _PREPARED_STATEMENTS
    engine = _postgres_engine(target, pool_size, connect_timeout, command_timeout, statements)
    monitors = _postgres_engine(target, 1, monitor_timeout, monitor_timeout, statements)
    autocommit_engine = _autocommit(engine)
    change_notified = asyncio.Event()
    if not is_pooled:  # a pooler's session listens for whoever has it next
        event.listen(monitors.sync_engine, "connect", partial(_listen, change_notified))
    return Database(autocommit_engine, engine, autocommit_engine, _autocommit(monitors), change_notified)


def _listen(change_notified: asyncio.Event, connection: AdaptedConnection, _record: object) -> None:
    """Have the trigger `notify_change` set the event."""
    connection.run_async(lambda driver: driver.add_listener("integration_changes", lambda *_: change_notified.set()))


def _statement_name() -> str:
    return f"s_{uuid.uuid4().hex}"


def _empty_statement_name() -> str:
    return ""


# SQLAlchemy keeps prepared statements; names that are unique can't clash with those of clients that had the session
# before.
_PREPARED_STATEMENTS: Mapping[str, Any] = {"prepared_statement_name_func": _statement_name}

# Statements that follow each other may reach different sessions, none of which has what another has prepared. One
# without a name is parsed again, by asyncpg, in the message that runs it.
_UNPREPARED_STATEMENTS: Mapping[str, Any] = {
    "prepared_statement_name_func": _empty_statement_name,
    "prepared_statement_cache_size": 0,
}


def _postgres_engine(
    target: PostgresServer,
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
            "statement_cache_size": 0,  # asyncpg's own cache would number the statements
            **statements,
        },
    )
    event.listen(engine.sync_engine, "checkout", _discard_closed_connection)
    return engine


def _autocommit(engine: AsyncEngine) -> AsyncEngine:
    return engine.execution_options(isolation_level="AUTOCOMMIT")


async def _is_pooled(engine: AsyncEngine) -> bool:
    """Whether the session that answers is another than the one that was opened.

    Also if nobody answers: what a pooler can do, every server can.
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
    """Have the pool replace a connection that the server closed meanwhile; costs no round trip, unlike a ping."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _sqlite_database(target: SqliteFile, pool_size: int, connect_timeout: float, monitor_timeout: float) -> Database:
    url = URL.create("sqlite+aiosqlite", database=str(target.path))
    readers = _engine(url, pool_size, connect_timeout, {}, only_reads=True)
    writers = _engine(url, 1, connect_timeout, {})
    monitors = _engine(url, 1, monitor_timeout, {}, only_reads=True)
    for engine in (readers, writers, monitors):
        event.listen(engine.sync_engine, "do_connect", partial(_make_private_file, target.path))
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(writers.sync_engine, "begin", _begin_immediate)
    return Database(readers, writers, writers, monitors, asyncio.Event())


def _make_private_file(path: Path, *_connect_arguments: object) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only ever a new file: to close one that is open elsewhere in this process would drop the process's locks on it
    # (sqlite.org/howtocorrupt.html §2.2), and the next process to leave would take the WAL away with it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # SQLite gives the WAL the same mode


def _configure_sqlite(connection: AsyncAdapt_aiosqlite_connection, _record: object) -> None:
    connection.isolation_level = None  # `sqlite3` begins no transaction by itself
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # with WAL, NORMAL loses commits in a power cut (sqlite.org/wal.html)
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    """Take the write lock at once: a transaction that reads first cannot get it later if another wrote meanwhile."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


# --- errors ------------------------------------------------------------------------------------------------------


@contextmanager
def _convert_connection_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, PoolTimeoutError) as error:  # built-in timeouts are OSErrors
        raise StoreUnavailable from error
    except DBAPIError as error:
        if _is_unavailable(error):
            raise StoreUnavailable from error
        raise


def _is_unavailable(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    sqlite_code = getattr(error.orig, "sqlite_errorcode", 0)
    return (
        sqlstate.startswith(_UNAVAILABLE_SQLSTATES) or sqlite_code & 0xFF in _UNAVAILABLE_SQLITE_CODES
    )  # low byte: primary code
