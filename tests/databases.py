"""Databases for tests: a PostgreSQL server for the whole run, and a new, migrated database for each test."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from integration_server.storage.engine import Database, open_database
from integration_server.storage.schema import migrate
from tests.postgres import PostgresServer, run_postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The PostgreSQL server of this run. A test that stops a server uses `run_postgres` instead."""
    with run_postgres() as server:
        server.run("ALTER SYSTEM SET fsync = off")  # durability is not needed, and creating databases is faster
        server.run("SELECT pg_reload_conf()")
        yield server


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: PostgresServer) -> str:
    name = "migrated"
    postgres_server.run(f"CREATE DATABASE {name}")
    asyncio.run(migrate(postgres_server.url(name)))
    return name


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a new, migrated SQLite database."""
    path = tmp_path / "data" / "integrations.db"
    path.parent.mkdir()
    shutil.copy(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    """The URL of a new, migrated PostgreSQL database."""
    with postgres_server.new_database(_postgres_template) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a new, migrated database: the test runs once on SQLite and once on PostgreSQL."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A new, migrated database, opened: the test runs once on SQLite and once on PostgreSQL."""
    async with open_database(database_url, monitor_timeout=60) as opened:
        yield opened
