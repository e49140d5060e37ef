"""The migrations make what the tables say, from code and from the command line."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect

import integration_server
from integration_server.domain.errors import StoreUnavailable
from integration_server.storage.engine import Database, open_database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.schema import migrate, schema_is_current
from integration_server.storage.tables import metadata
from tests.postgres import PostgresServer

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
    """What a Python of its own prints; fails with its errors if it fails."""
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
    """What `alembic` prints, with this project's configuration."""
    return await run(
        "-m", "alembic", "-c", str(PROJECT / "pyproject.toml"), *arguments, directory=directory, **environment
    )


async def is_current(url: str) -> bool:
    async with open_database(url) as database:
        return await schema_is_current(database)


# SQLAlchemy does not read such indexes out of SQLite, so that they are not compared there.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
async def test_the_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    def differences(connection: Connection) -> object:
        has_identities = connection.dialect.name == "postgresql"
        options = {"compare_server_default": has_identities}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    def references(connection: Connection) -> set[str | None]:
        inspector = inspect(connection)
        return {key["name"] for table in metadata.tables for key in inspector.get_foreign_keys(table)}

    async with database.read_connection() as connection:
        assert await connection.run_sync(differences) == []
        assert await connection.run_sync(references) == {  # whose names are not compared
            "fk_authorization_attempts_integration_id",
            "fk_health_checks_integration_id",
            "fk_refresh_leases_integration_id",
            "fk_webhook_events_integration_id",
            "fk_webhook_consumer_offsets_integration_id",
            "fk_webhook_secrets_integration_id",
        }


async def test_an_empty_database_is_not_current_until_it_is_migrated(empty_url: str) -> None:
    async with open_database(empty_url) as database:
        assert not await schema_is_current(database)
        with pytest.raises(StoreUnavailable):
            await SqlIntegrations(database).ping()
        for _ in range(2):
            await migrate(empty_url)
            assert await schema_is_current(database)
            await SqlIntegrations(database).ping()


async def test_replicas_that_migrate_at_once_wait_for_each_other(empty_url: str) -> None:
    script = (
        "import asyncio, sys\n"
        "from integration_server.storage.schema import migrate\n"
        "asyncio.run(migrate(sys.argv[1]))\n"
    )
    await asyncio.gather(*(run("-c", script, empty_url) for _ in range(3)))
    assert await is_current(empty_url)


async def test_alembic_does_the_same(empty_url: str) -> None:
    await alembic("upgrade", "head", DATABASE_URL=empty_url)
    assert await is_current(empty_url)


async def test_alembic_prints_the_sql_and_touches_nothing(empty_url: str) -> None:
    script = await alembic("upgrade", "head", "--sql", DATABASE_URL=empty_url)
    assert "CREATE TABLE integrations" in script
    assert ("BIGINT GENERATED BY DEFAULT AS IDENTITY" in script) == empty_url.startswith("postgresql")
    assert not await is_current(empty_url)


async def test_alembic_finds_the_database_where_the_server_does(tmp_path: Path) -> None:
    await alembic("upgrade", "head", directory=tmp_path)
    assert await is_current(f"sqlite:///{tmp_path}/data/integrations.db")
    (tmp_path / ".env").write_text(f"DATABASE_URL=sqlite:///{tmp_path}/named.db\n")
    await alembic("upgrade", "head", directory=tmp_path)
    assert await is_current(f"sqlite:///{tmp_path}/named.db")


async def test_a_server_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await migrate("postgresql://ann@127.0.0.1:1/it")
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable):
        await migrate(f"sqlite:///{tmp_path}/file/it.db")
