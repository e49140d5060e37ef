"""The schema's migrations, run from code. On the command line, `alembic` does the same."""

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from integration_server.storage.engine import Database, open_database


async def migrate(database_url: str) -> None:
    """Bring the schema up to date, in one transaction. Another server may do the same at once: one waits for the other.

    Raises `StoreUnavailable`, and `ValueError` for a bad URL.
    """
    # Changing a large table takes its time, and so does waiting for another server that does.
    async with (
        open_database(database_url, command_timeout=None) as database,
        database.write_transaction() as connection,
    ):
        await connection.run_sync(_upgrade)


async def schema_is_current(database: Database) -> bool:
    """Whether every migration has run. Raises `StoreUnavailable`."""
    async with database.read_connection() as connection:
        revisions = await connection.run_sync(_revisions)
    return revisions == set(ScriptDirectory.from_config(_config()).get_heads())


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection  # env.py takes it from there
    command.upgrade(config, "head")


def _revisions(connection: Connection) -> set[str]:
    return set(MigrationContext.configure(connection).get_current_heads())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "integration_server.storage:migrations")
    return config
