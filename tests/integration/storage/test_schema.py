"""The migrations create the schema that `tables.py` declares, and code runs only on schemas that it supports."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

import integration_server
from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.engine import Database, open_database
from integration_server.storage.schema import OLDEST_SUPPORTED_REVISION, SchemaError, check_schema, migrate
from integration_server.storage.tables import metadata
from tests.contracts.integration_rows import SqlRows, create_connected, reload
from tests.postgres import PostgresServer
from tests.releases import CONTRACT, EXPAND, newer_versions

PROJECT = Path(integration_server.__file__).parents[1]


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/empty.db"


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.new_database() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest) -> str:
    """An empty database of either kind."""
    return str(request.getfixturevalue(f"empty_{request.param}_url"))


async def run(*arguments: str, directory: Path = PROJECT, **environment: str) -> str:
    """Run Python with the arguments. Returns the output."""
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=directory,
        env={**inherited, "PYTHONPATH": str(PROJECT), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def alembic(*arguments: str, directory: Path = PROJECT, **environment: str) -> str:
    """Run the command `alembic` with this project's configuration. Returns the output."""
    return await run(
        "-m", "alembic", "-c", str(PROJECT / "pyproject.toml"), *arguments, directory=directory, **environment
    )


async def schema_problem(
    url: str, versions: Path | None = None, oldest_supported: str = OLDEST_SUPPORTED_REVISION
) -> str:
    """The reason why code with those revisions does not run on the database; empty if it does."""
    async with open_database(url) as database:
        try:
            await check_schema(database, versions=versions, oldest_supported=oldest_supported)
        except SchemaError as error:
            return str(error)
        return ""


# SQLAlchemy cannot reflect expression-based indexes of SQLite, so they are not compared there.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
async def test_the_migrated_schema_equals_the_declared_tables(database: Database) -> None:
    def differences(connection: Connection) -> object:
        has_identities = connection.dialect.name == "postgresql"
        options = {"compare_server_default": has_identities}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    def references(connection: Connection) -> set[str | None]:
        inspector = inspect(connection)
        return {key["name"] for table in metadata.tables for key in inspector.get_foreign_keys(table)}

    async with database.read_connection() as connection:
        assert await connection.run_sync(differences) == []
        assert await connection.run_sync(references) == {  # compare_metadata does not compare their names
            "fk_authorization_attempts_integration_id",
            "fk_health_checks_integration_id",
            "fk_refresh_leases_integration_id",
            "fk_webhook_events_integration_id",
            "fk_webhook_consumer_offsets_integration_id",
            "fk_webhook_routes_integration_id",
            "fk_webhook_secrets_integration_id",
        }


async def test_an_empty_database_is_rejected_until_it_is_migrated(empty_url: str) -> None:
    assert (
        await schema_problem(empty_url)
        == "DATABASE_URL: the database has no schema yet: run `python -m integration_server migrate`."
    )
    async with open_database(empty_url) as database:
        with pytest.raises(StoreUnavailable):
            await SqlRows(database).ping()
        for _ in range(2):
            await migrate(empty_url)
            assert not await schema_problem(empty_url)
            await SqlRows(database).ping()


@pytest.mark.slow
@pytest.mark.quick_on("postgres")
async def test_concurrent_migrations_wait_for_each_other(empty_url: str) -> None:
    script = (
        "import asyncio, sys\n"
        "from integration_server.storage.schema import migrate\n"
        "asyncio.run(migrate(sys.argv[1]))\n"
    )
    await asyncio.gather(*(run("-c", script, empty_url) for _ in range(3)))
    assert not await schema_problem(empty_url)


@pytest.mark.quick_on("sqlite")
async def test_the_alembic_command_migrates_the_schema(empty_url: str) -> None:
    await alembic("upgrade", "head", DATABASE_URL=empty_url)
    assert not await schema_problem(empty_url)


@pytest.mark.quick_on("sqlite")
async def test_the_alembic_command_prints_the_sql_without_running_it(empty_url: str) -> None:
    script = await alembic("upgrade", "head", "--sql", DATABASE_URL=empty_url)
    assert "CREATE TABLE integrations" in script
    assert "INSERT INTO schema_compatibility" in script
    assert ("BIGINT GENERATED BY DEFAULT AS IDENTITY" in script) == empty_url.startswith("postgresql")
    assert await schema_problem(empty_url)


@pytest.mark.slow
async def test_the_alembic_command_reads_database_url_as_the_server_does(tmp_path: Path) -> None:
    await alembic("upgrade", "head", directory=tmp_path)
    assert not await schema_problem(f"sqlite:///{tmp_path}/data/integrations.db")
    (tmp_path / ".env").write_text(f"DATABASE_URL=sqlite:///{tmp_path}/named.db\n")
    await alembic("upgrade", "head", directory=tmp_path)
    assert not await schema_problem(f"sqlite:///{tmp_path}/named.db")


async def test_an_unreachable_database_raises_store_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await migrate("postgresql://ann@127.0.0.1:1/it")
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable):
        await migrate(f"sqlite:///{tmp_path}/file/it.db")


# --- upgrades beside running replicas --------------------------------------------------------------------------------


async def write_and_read_an_integration(url: str) -> str:
    """Use the schema as running code does. Returns the name that was read."""
    async with open_database(url) as database:
        store = SqlRows(database)
        created = await create_connected(store, name="Work")
        return (await reload(store, created)).name


async def test_old_code_runs_on_an_expanded_schema_and_leaves_it_unchanged(empty_url: str, tmp_path: Path) -> None:
    versions = newer_versions(tmp_path / "newer", ("expand", EXPAND))
    await migrate(empty_url)
    async with open_database(empty_url) as running:  # a replica of the old version, with open connections
        await SqlRows(running).ping()
        await migrate(empty_url, versions=versions)
        assert not await schema_problem(empty_url)
        await SqlRows(running).ping()
    assert await write_and_read_an_integration(empty_url) == "Work"
    await migrate(empty_url)
    assert not await schema_problem(empty_url, versions, oldest_supported="next1")


async def test_new_code_runs_on_an_older_schema_that_it_supports(empty_url: str, tmp_path: Path) -> None:
    versions = newer_versions(tmp_path / "newer", ("expand", EXPAND))
    await migrate(empty_url)
    assert not await schema_problem(empty_url, versions, oldest_supported="0001")
    assert await schema_problem(empty_url, versions, oldest_supported="next1") == (
        "The database's schema is older than this version supports: run `python -m integration_server migrate`."
    )
    await migrate(empty_url, versions=versions)
    assert not await schema_problem(empty_url, versions, oldest_supported="next1")


@pytest.mark.parametrize(
    "revisions",
    [[("contract", CONTRACT)], [("contract", CONTRACT), ("expand", EXPAND)]],
    ids=["contract", "contract-then-expand"],
)
async def test_old_code_rejects_a_contracted_schema(
    empty_url: str, tmp_path: Path, revisions: list[tuple[str, str]]
) -> None:
    versions = newer_versions(tmp_path / "newer", *revisions)
    await migrate(empty_url, versions=versions)
    expected = "The database's schema is newer than this version supports: start a newer version."
    assert await schema_problem(empty_url) == expected
    with pytest.raises(SchemaError, match="newer than this version supports"):
        await migrate(empty_url)
    # Negative control: old code fails on this schema.
    with pytest.raises((asyncpg.UndefinedColumnError, sqlite3.OperationalError), match="name"):
        await write_and_read_an_integration(empty_url)
    assert not await schema_problem(empty_url, versions)


ANOTHER_BASELINE = [
    "UPDATE schema_compatibility SET baseline_fingerprint = 'another'",
    "DELETE FROM schema_compatibility",
    "DROP TABLE schema_compatibility",
]


@pytest.mark.parametrize("change", ANOTHER_BASELINE, ids=["fingerprint", "row", "table"])
@pytest.mark.parametrize("revision", ["0001", "unknown"])
async def test_a_schema_of_another_baseline_is_rejected(database_url: str, change: str, revision: str) -> None:
    async with open_database(database_url) as database, database.write_transaction() as connection:
        await connection.execute(text(change))
        await connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    expected = (
        "The database was created from another baseline schema, which may change until the first release: "
        "set DATABASE_URL to a new database and run `python -m integration_server migrate`."
    )
    assert await schema_problem(database_url) == expected
    with pytest.raises(SchemaError) as caught:
        await migrate(database_url)
    assert str(caught.value) == expected
