"""Migration of the schema, and the check that this code runs on the schema of a database.

Replicas of the previous version keep running during and after a migration, and a new replica may start before it:

- Each revision declares its `phase`: "expand" (the code of the previous revision runs on the new schema too) or
  "contract" (it does not). A migration stores the last contract revision as `oldest_compatible_revision`. Older code,
  which does not know the newest revisions, runs on the schema if it knows that revision.
- Code declares the oldest schema on which it runs: `OLDEST_SUPPORTED_REVISION`.

The baseline's SQL may change until the first release tag. A migration therefore stores the SQL's fingerprint, and a
database with another fingerprint is refused.
"""

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, column, delete, insert, inspect, select, table, text

from integration_server.storage.engine import Database, open_database
from integration_server.storage.tables import schema_compatibility

if TYPE_CHECKING:  # Alembic takes 10 MB and 0.1 s, and only a migration needs it
    from alembic.config import Config
    from alembic.migration import MigrationContext

OLDEST_SUPPORTED_REVISION = "0001"
"""The oldest schema on which this code runs. Raise it when code begins to need what a later revision adds."""

_MIGRATION_LOCK = 0x696E7465_67726174
"""The key of PostgreSQL's advisory lock, which one migration holds at a time ("integrat": any constant number)."""

_ALEMBIC_VERSION = table("alembic_version", column("version_num"))
_VERSIONS = Path(__file__).with_name("migrations") / "versions"

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
        await connection.run_sync(_upgrade, versions)


async def check_schema(
    database: Database, *, versions: Path | None = None, oldest_supported: str = OLDEST_SUPPORTED_REVISION
) -> None:
    """Raise `SchemaError` if this code does not run on the database's schema. Raises `StoreUnavailable`."""
    revisions = Revisions.of_folder(versions or _VERSIONS)
    async with database.read_connection() as connection:
        current = await connection.run_sync(_current_revision, revisions)
    if current is None:
        raise SchemaError(f"DATABASE_URL: the database has no schema yet: run {_MIGRATE}.")
    known = revisions.known
    if current in known and known.index(current) < known.index(oldest_supported):
        raise SchemaError(f"The database's schema is older than this version supports: run {_MIGRATE}.")


def lock_migrations(connection: Connection) -> None:
    """Wait until no other migration runs. The lock ends with the transaction."""
    if connection.dialect.name == "postgresql":  # SQLite's transaction already holds the write lock
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})


def record_compatibility(context: "MigrationContext", versions: Path, revision: str) -> None:
    """Store which code runs on the schema, after a migration to the revision."""
    revisions = Revisions.of_folder(versions)
    context.execute(delete(schema_compatibility))
    context.execute(
        insert(schema_compatibility).values(
            oldest_compatible_revision=revisions.oldest_compatible(revision),
            baseline_fingerprint=revisions.baseline_fingerprint(context.dialect.name),
        )
    )


@dataclass(frozen=True, slots=True)
class _Revision:
    path: Path
    revision: str
    down_revision: str | None
    phase: str

    @classmethod
    def of_file(cls, path: Path) -> "_Revision | None":
        """The constants of a revision, which is not run; None for another module."""
        values: dict[str, object] = {}
        for statement in ast.parse(path.read_bytes()).body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value)):
                    values[name] = value
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                    values[name] = value
        if "revision" not in values:
            return None
        down_revision = values["down_revision"]
        return cls(
            path,
            str(values["revision"]),
            None if down_revision is None else str(down_revision),
            str(values.get("phase", "")),
        )


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revisions of a folder, the oldest first. They have no branches."""

    revisions: Sequence[_Revision]

    @classmethod
    def of_folder(cls, folder: Path) -> "Revisions":
        """Read the files of a folder."""
        found = {
            revision.down_revision: revision for path in folder.glob("*.py") if (revision := _Revision.of_file(path))
        }
        ordered: list[_Revision] = []
        while (following := found.get(ordered[-1].revision if ordered else None)) is not None:
            ordered.append(following)
        return cls(ordered)

    @property
    def known(self) -> Sequence[str]:
        """Their ids."""
        return [revision.revision for revision in self.revisions]

    def oldest_compatible(self, revision: str) -> str:
        """The last contract revision up to this one."""
        before = self.revisions[: self.known.index(revision) + 1]
        return next(revision.revision for revision in reversed(before) if revision.phase == "contract")

    def baseline_fingerprint(self, dialect_name: str) -> str:
        """The hash of the SQL of the first revision."""
        path = self.revisions[0].path
        return hashlib.sha256(path.with_name(f"{path.stem}.{dialect_name}.sql").read_bytes()).hexdigest()


def _upgrade(connection: Connection, versions: Path | None) -> None:
    lock_migrations(connection)
    revisions = Revisions.of_folder(versions or _VERSIONS)
    current = _current_revision(connection, revisions)
    if current is None or current in revisions.known[:-1]:
        from alembic import command  # noqa: PLC0415

        config = _config(versions)
        config.attributes["connection"] = connection  # env.py uses it
        command.upgrade(config, "head")


def _current_revision(connection: Connection, revisions: Revisions) -> str | None:
    """The schema's revision, None without a schema. Raises `SchemaError` for a schema that no supported code left."""
    inspector = inspect(connection)
    if not inspector.has_table(_ALEMBIC_VERSION.name):
        return None
    current: str | None = connection.execute(select(_ALEMBIC_VERSION)).scalar_one_or_none()
    if current is None:
        return None
    compatibility = None
    if inspector.has_table(schema_compatibility.name):
        compatibility = connection.execute(select(schema_compatibility)).one_or_none()
    fingerprint = revisions.baseline_fingerprint(connection.dialect.name)
    if compatibility is None or compatibility.baseline_fingerprint != fingerprint:
        raise SchemaError(
            "The database was created from another baseline schema, which may change until the first release: "
            f"set DATABASE_URL to a new database and run {_MIGRATE}."
        )
    if current not in revisions.known and compatibility.oldest_compatible_revision not in revisions.known:
        raise SchemaError("The database's schema is newer than this version supports: start a newer version.")
    return current


def _config(versions: Path | None) -> "Config":
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "integration_server.storage:migrations")
    if versions is not None:
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", str(versions))
    return config
