"""Migration of the schema, and the check that this code runs on the schema of a database.

Replicas of the previous version keep running during and after a migration, and a new replica may start before it:

- Each revision declares its `phase`: "expand" (the code of the previous revision runs on the new schema too) or
  "contract" (it does not). A migration stores the last contract revision as `oldest_compatible_revision`. Older code,
  which does not know the newest revisions, runs on the schema if it knows that revision.
- Code declares the oldest schema on which it runs: `OLDEST_SUPPORTED_REVISION`.

The baseline's SQL may change until the first release tag. A migration therefore stores the SQL's fingerprint, and a
database with another fingerprint is refused.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, insert, inspect, select, text

from integration_server.storage.engine import Database, open_database
from integration_server.storage.tables import schema_compatibility

OLDEST_SUPPORTED_REVISION = "0001"
"""The oldest schema on which this code runs. Raise it when code begins to need what a later revision adds."""

_MIGRATION_LOCK = 0x696E7465_67726174
"""The key of PostgreSQL's advisory lock, which one migration holds at a time ("integrat": any constant number)."""

_MIGRATE = "`python -m integration_server migrate`"


class SchemaError(Exception):
    """This code does not run on the schema of the database. The message is one sentence that says what to do."""


async def migrate(database_url: str, *, versions: Path | None = None) -> None:
    """Upgrade the schema to the newest revision, in one transaction. Concurrent migrations wait for each other.

    Leaves a newer schema unchanged if this code runs on it. Raises `SchemaError` if it cannot be upgraded,
    `StoreUnavailable`, and `ValueError` for an invalid URL. `versions`: another folder of revisions.
    """
    # No timeout: altering a large table takes long, and so does waiting for another migration.
    async with (
        open_database(database_url, command_timeout=None) as database,
        database.write_transaction() as connection,
    ):
        await connection.run_sync(_upgrade, _config(versions))


async def check_schema(
    database: Database, *, versions: Path | None = None, oldest_supported: str = OLDEST_SUPPORTED_REVISION
) -> None:
    """Raise `SchemaError` if this code does not run on the database's schema. Raises `StoreUnavailable`."""
    script = ScriptDirectory.from_config(_config(versions))
    async with database.read_connection() as connection:
        current = await connection.run_sync(_current_revision, script)
    if current is None:
        raise SchemaError(f"The database has no schema yet: run {_MIGRATE}.")
    known = _known_revisions(script)
    if current in known and known.index(current) < known.index(oldest_supported):
        raise SchemaError(f"The database's schema is older than this version supports: run {_MIGRATE}.")


def lock_migrations(connection: Connection) -> None:
    """Wait until no other migration runs. The lock ends with the transaction."""
    if connection.dialect.name == "postgresql":  # SQLite's transaction already holds the write lock
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})


def record_compatibility(context: MigrationContext, script: ScriptDirectory, revision: str) -> None:
    """Store which code runs on the schema, after a migration to the revision."""
    oldest_compatible = next(
        step.revision for step in script.iterate_revisions(revision, "base") if step.module.phase == "contract"
    )
    context.execute(delete(schema_compatibility))
    context.execute(
        insert(schema_compatibility).values(
            oldest_compatible_revision=oldest_compatible,
            baseline_fingerprint=_baseline_fingerprint(script, context.dialect.name),
        )
    )


def _upgrade(connection: Connection, config: Config) -> None:
    lock_migrations(connection)
    script = ScriptDirectory.from_config(config)
    current = _current_revision(connection, script)
    if current is None or current in _known_revisions(script):
        config.attributes["connection"] = connection  # env.py uses it
        command.upgrade(config, "head")


def _current_revision(connection: Connection, script: ScriptDirectory) -> str | None:
    """The schema's revision, None without a schema. Raises `SchemaError` for a schema that no supported code left."""
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return None
    compatibility = None
    if inspect(connection).has_table(schema_compatibility.name):
        compatibility = connection.execute(select(schema_compatibility)).one_or_none()
    if compatibility is None or compatibility.baseline_fingerprint != _baseline_fingerprint(
        script, connection.dialect.name
    ):
        raise SchemaError(
            "The database was created from another baseline schema, which may change until the first release: "
            f"set DATABASE_URL to a new database and run {_MIGRATE}."
        )
    known = _known_revisions(script)
    if current not in known and compatibility.oldest_compatible_revision not in known:
        raise SchemaError("The database's schema is newer than this version supports: start a newer version.")
    return current


def _known_revisions(script: ScriptDirectory) -> Sequence[str]:
    """Oldest first."""
    return [revision.revision for revision in script.walk_revisions()][::-1]


def _baseline_fingerprint(script: ScriptDirectory, dialect_name: str) -> str:
    (baseline,) = script.get_bases()
    sql: str = script.get_revision(baseline).module.read_sql(dialect_name)
    return hashlib.sha256(sql.encode()).hexdigest()


def _config(versions: Path | None) -> Config:
    config = Config()
    config.set_main_option("script_location", "integration_server.storage:migrations")
    if versions is not None:
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", str(versions))
    return config
