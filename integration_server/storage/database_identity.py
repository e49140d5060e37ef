"""The identity of a database: cursors of the change log are bound to it, because positions in another one differ.

A database that was restored is another one, although it has the same name. PostgreSQL tells: a dump is restored into a
database with another id, mostly of another cluster, and recovery from an archive begins another timeline. After a
failover too there is another timeline; a standby may lack the newest transactions. What PostgreSQL does not tell (a
snapshot of a disk), and SQLite never, the operator does: `declare_restored`.
"""

import secrets
from collections.abc import Sequence

from sqlalchemy import TextClause, insert, select, text
from sqlalchemy.exc import DBAPIError

from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.tables import restores

_POSTGRES_QUERIES: Sequence[TextClause] = (
    # PostgreSQL §9.28.3, §9.28.11: every role may call these functions.
    text(
        "SELECT concat_ws(':', (SELECT system_identifier FROM pg_control_system()), "
        "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), oid) FROM pg_database WHERE datname = current_database()"
    ),
    # Engines and services without these functions.
    text("SELECT oid::text FROM pg_database WHERE datname = current_database()"),
)
_UNSUPPORTED_SQLSTATES = ("0A000", "42883", "42501")  # feature_not_supported, undefined_function, no privilege
_STANDBY_SQLSTATE = "55000"  # recovery is in progress: its timeline is not known before it is promoted


async def read_database_id(database: Database) -> str:
    """The identity of the database that the connection leads to; never empty. Raises `StoreUnavailable`.

    Read on the monitoring connection, as the change feed: after an outage those of the pools are busy.
    """
    newest = select(restores.c.uid).order_by(restores.c.restore_id.desc()).limit(1)
    async with database.monitor_connection() as connection:
        restore = await connection.scalar(newest)
    engine_id = "sqlite" if database.dialect_name == "sqlite" else await _read_postgres_id(database)
    return f"{engine_id}:{restore or ''}"


async def _read_postgres_id(database: Database) -> str:
    first, second = _POSTGRES_QUERIES
    try:
        async with database.monitor_connection() as connection:
            return str(await connection.scalar(first))
    except DBAPIError as error:
        sqlstate = getattr(error.orig, "sqlstate", None)
        if sqlstate == _STANDBY_SQLSTATE:
            raise StoreUnavailable from error
        if sqlstate not in _UNSUPPORTED_SQLSTATES:
            raise
    async with database.monitor_connection() as connection:
        return str(await connection.scalar(second))


async def declare_restored(database: Database) -> None:
    """Give the database another identity, because it was restored from a backup. Raises `StoreUnavailable`."""
    row = {"uid": secrets.token_hex(16), "restore_time": DatabaseTime()}
    async with database.write_transaction() as connection:
        await connection.execute(insert(restores).values(row))
