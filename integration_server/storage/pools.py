"""Pools of connections to the database: parses its URL, and configures the connections.

SQLite has one connection for writes per process, for which writers queue, and several for reads. PostgreSQL has one
pool; reads use autocommit, which saves the two round trips of a transaction. One more connection monitors the database.
"""

import asyncio
import errno
import json
import os
import sqlite3
import stat
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
from sqlalchemy import URL, event, make_url, text
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, MissingGreenlet
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util.concurrency import in_greenlet

from integration_server.storage.async_engine import AsyncEngine

ReadJson = Callable[[str], Any]
"""Reads a JSON column."""

DEFAULT_DATABASE_URL = "sqlite:///./data/integrations.db"

_PARAMETER_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
}

_MAX_PORT = 65_535

_POSTGRES_PARAMETERS = frozenset(
    {
        "application_name", "host", "options", "port", "sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation",
        "sslrootcert", "target_session_attrs",
    }
)  # fmt: skip
"""The connection parameters of libpq that asyncpg supports."""

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
    if "@" in f"{url.host}{url.database}":
        raise ValueError("has more than one @: percent-encode those in the password as %40, and a / as %2F")
    if url.port is not None and not 0 < url.port <= _MAX_PORT:
        raise ValueError(f"has an impossible port: expected 1 to {_MAX_PORT}")
    if not url.query.keys() <= _POSTGRES_PARAMETERS:
        raise ValueError(f"has an unknown parameter: expected {', '.join(sorted(_POSTGRES_PARAMETERS))}")
    for parameter, choices in _PARAMETER_CHOICES.items():
        if url.query.get(parameter, choices[0]) not in choices:
            raise ValueError(f"has an unknown {parameter}: expected {', '.join(choices)}")
    return PostgresLocation(
        url=url.set(drivername="postgresql+asyncpg", query={}), parameters=urlencode(url.query, doseq=True)
    )


# --- pools ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pools:
    """The pools of a database. `keeps_statements` is False behind a transaction pooler."""

    readers: AsyncEngine
    writers: AsyncEngine
    autocommit_writers: AsyncEngine
    monitors: AsyncEngine
    keeps_statements: bool = True


async def make_pools(
    target: SqliteLocation | PostgresLocation,
    pool_size: int,
    read_json: ReadJson,
    change_notified: asyncio.Event,
    *,
    connect_timeout: float,
    command_timeout: float | None,
    monitor_timeout: float,
) -> Pools:
    """Make the pools of a database. Connections are made on demand; times are in seconds.

    `change_notified` is set by notifications of other processes (PostgreSQL, without a transaction pooler).
    """
    if isinstance(target, SqliteLocation):
        url = URL.create("sqlite+aiosqlite", database=str(target.path))
        readers = _engine(url, pool_size, connect_timeout, read_json, {}, read_only=True)
        writers = _engine(url, 1, connect_timeout, read_json, {"factory": RollingBackConnection})
        monitors = _engine(url, 1, monitor_timeout, read_json, {}, read_only=True)
        for engine in (readers, writers, monitors):
            event.listen(engine.sync_engine, "do_connect", partial(_make_private_file, target.path))
            event.listen(engine.sync_engine, "connect", _configure_sqlite)
        return Pools(readers, writers, writers, monitors)
    make = partial(_postgres_engine, target)
    is_pooled = await _is_pooled(make(1, connect_timeout, connect_timeout, read_json, _UNPREPARED_STATEMENTS))
    statements = _UNPREPARED_STATEMENTS if is_pooled else _PREPARED_STATEMENTS
    engine = make(pool_size, connect_timeout, command_timeout, read_json, statements)
    monitors = make(1, monitor_timeout, monitor_timeout, read_json, statements)
    if not is_pooled:  # a pooler gives the session to other clients
        event.listen(monitors.sync_engine, "connect", partial(_listen, change_notified))
    return Pools(
        _autocommit(engine), engine, _autocommit(engine), _autocommit(monitors), keeps_statements=not is_pooled
    )


class KeepingPool(AsyncAdaptedQueuePool):
    """A pool that keeps returned connections lent, for the next statements of the driver: lending one costs more than
    a short statement does.

    Whoever takes a connection in SQLAlchemy's way, or waits for one, gets those that are kept: they delay nobody.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # those of the base class
        super().__init__(*arguments, **options)
        self._idle: list[PoolProxiedConnection] = []
        self._takers = 0

    def take_idle(self) -> PoolProxiedConnection | None:
        """A connection that is kept, if there is one that the server has not closed."""
        while self._idle:
            lent = self._idle.pop()
            driver: Any = lent.driver_connection
            if not driver.is_closed():
                return lent
            lent.close()
        return None

    def keep(self, lent: PoolProxiedConnection) -> None:
        """Take back a lent connection that has no transaction."""
        if self._takers:
            lent.close()
        else:
            self._idle.append(lent)

    def _do_get(self) -> ConnectionPoolEntry:
        self._return_idle()
        self._takers += 1
        try:
            return super()._do_get()
        finally:
            self._takers -= 1

    def dispose(self) -> None:
        """Close all connections that are not in use."""
        self._return_idle()
        super().dispose()

    def _return_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _engine(
    url: URL,
    pool_size: int,
    timeout: float,
    read_json: ReadJson,
    connect_args: Mapping[str, Any],
    *,
    read_only: bool = False,
    pool_class: type[AsyncAdaptedQueuePool] = AsyncAdaptedQueuePool,
) -> AsyncEngine:
    return AsyncEngine.create(
        url,
        connect_args={"timeout": timeout, **connect_args},
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout,
        hide_parameters=True,
        skip_autocommit_rollback=read_only,  # saves a switch to SQLite's thread
        json_serializer=partial(json.dumps, allow_nan=False),  # PostgreSQL has no NaN in JSON
        json_deserializer=read_json,
        poolclass=pool_class,
    )


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
    read_json: ReadJson,
    statements: Mapping[str, Any],
) -> AsyncEngine:
    engine = _engine(
        target.url,
        pool_size,
        connect_timeout,
        read_json,
        {
            "dsn": f"postgresql://?{target.parameters}",
            "command_timeout": command_timeout,
            "statement_cache_size": 0,  # asyncpg's own cache numbers the statements
            **statements,
        },
        pool_class=KeepingPool,
    )
    event.listen(engine.sync_engine, "checkout", _discard_closed_connection)
    event.listen(engine.sync_engine, "do_connect", _require_greenlet)
    return engine


def _autocommit(engine: AsyncEngine) -> AsyncEngine:
    return engine.with_options(isolation_level="AUTOCOMMIT")


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
    """Make the file unless it exists. Raises `OSError` if it is unusable: SQLite's own error does not say why."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only a new file: closing one that is open elsewhere in this process drops the process's locks on it
    # (sqlite.org/howtocorrupt.html §2.2), and the next process that exits would remove the WAL.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # SQLite gives the WAL the same mode
    if stat.S_ISDIR(path.stat().st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _configure_sqlite(connection: AsyncAdapt_aiosqlite_connection, _record: object) -> None:
    connection.isolation_level = None  # `sqlite3` begins no implicit transaction
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # with WAL, NORMAL loses commits in a power cut (sqlite.org/wal.html)
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
