"""Alembic's environment, which Alembic runs for each command.

`storage/schema.py` passes a connection. The command line `alembic` finds the database as the server does: in
`DATABASE_URL` of the environment, else of `./.env`, else the default.
"""

import asyncio
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from alembic import context
from alembic.migration import MigrationContext, MigrationInfo
from sqlalchemy import Connection

from integration_server.env_file import read_env_file
from integration_server.storage.driver_queries import UtcDateTime
from integration_server.storage.engine import open_database
from integration_server.storage.pools import DEFAULT_DATABASE_URL, SqliteLocation, parse_database_url
from integration_server.storage.schema import lock_migrations, record_compatibility
from integration_server.storage.tables import metadata


def _database_url() -> str:
    return os.environ.get("DATABASE_URL") or read_env_file(Path.cwd()).get("DATABASE_URL") or DEFAULT_DATABASE_URL


def _render_item(kind: str, item: object, _context: object) -> str | Literal[False]:
    # A revision must not change when our column types do.
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def _on_version_apply(
    ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]
) -> None:
    record_compatibility(ctx, Path(context.script.versions), str(step.up_revision_id))


def _run(connection: Connection) -> None:
    lock_migrations(connection)
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_item=_render_item,
        on_version_apply=_on_version_apply,
    )
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
    is_sqlite = isinstance(parse_database_url(_database_url()), SqliteLocation)
    context.configure(
        dialect_name="sqlite" if is_sqlite else "postgresql",
        target_metadata=metadata,
        literal_binds=True,
        on_version_apply=_on_version_apply,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _write_script()
elif (open_connection := context.config.attributes.get("connection")) is not None:
    _run(open_connection)
else:
    asyncio.run(_run_on_own_connection())
