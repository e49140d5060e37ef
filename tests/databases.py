"""Databases for tests: a PostgreSQL server for the whole run, and a new, migrated database for each test.

The engines of all tests share their compiled statements: to compile them again took a third of the time of the tests.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.util import LRUCache

from integration_server.storage.engine import Database, open_database
from integration_server.storage.schema import migrate
from tests.postgres import PostgresServer, run_postgres


class _SharedStatements:
    """A dialect that is equal to others of its class, by which a compiled statement is found, with one cache for all.

    All engines have the same options as far as compiled statements depend on them.
    """

    compiled: LRUCache[Any, Any]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        """Called by SQLAlchemy for each new engine."""
        engine.update_execution_options(compiled_cache=cls.compiled)


class SharedSqlite(_SharedStatements, SQLiteDialect_aiosqlite):
    """The dialect of SQLite."""

    supports_statement_cache = True
    compiled: LRUCache[Any, Any] = LRUCache(2000)


class SharedPostgres(_SharedStatements, PGDialect_asyncpg):
    """The dialect of PostgreSQL."""

    supports_statement_cache = True
    compiled: LRUCache[Any, Any] = LRUCache(2000)


registry.register("sqlite.aiosqlite", __name__, SharedSqlite.__name__)
registry.register("postgresql.asyncpg", __name__, SharedPostgres.__name__)


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
