"""What Alembic runs for each of its commands.

`storage/schema.py` hands it a connection. On the command line it finds the database as the server does: `DATABASE_URL`
in the environment, else in `./.env`, else the default.
"""

import asyncio
import os
from typing import Literal

from alembic import context
from dotenv import dotenv_values
from sqlalchemy import Connection, text

from integration_server.storage.engine import (
    DEFAULT_DATABASE_URL,
    SqliteFile,
    open_database,
    parse_database_url,
)
from integration_server.storage.tables import UtcDateTime, metadata

_LOCK = 0x696E7465_67726174
"""PostgreSQL's name for the lock that one migration at a time holds ("integrat"): any number, always the same."""


def _database_url() -> str:
    return os.environ.get("DATABASE_URL") or dotenv_values(".env").get("DATABASE_URL") or DEFAULT_DATABASE_URL


def _render_item(kind: str, item: object, _context: object) -> str | Literal[False]:
    # A revision must not change when our types do.
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def _run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # on SQLite, the transaction has the write lock already
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    context.configure(connection=connection, target_metadata=metadata, render_item=_render_item)
    with context.begin_transaction():
        context.run_migrations()


async def _run_on_own_connection() -> None:
    async with (
        open_database(_database_url(), command_timeout=None) as database,
        database.write_transaction() as connection,
    ):
        await connection.run_sync(_run)


def _write_script() -> None:
    """Print the SQL instead of running it (`--sql`)."""
    is_sqlite = isinstance(parse_database_url(_database_url()), SqliteFile)
    context.configure(dialect_name="sqlite" if is_sqlite else "postgresql", target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _write_script()
elif (given := context.config.attributes.get("connection")) is not None:
    _run(given)
else:
    asyncio.run(_run_on_own_connection())
