"""Fixtures: a server in this process on either database, databases without a schema, and the prefork process."""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.end_to_end.databases import wipe
from tests.end_to_end.prefork import PREFORK_SOCKET, PreforkServer
from tests.end_to_end.system import System, run_system
from tests.postgres import PostgresServer


@pytest.fixture(scope="session", autouse=True)
def _prefork_commands(prefork: PreforkServer) -> Iterator[None]:
    """`processes.started` uses the prefork process of this test worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PREFORK_SOCKET, prefork.socket_path)
        yield


BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(scope="module", params=BOTH)
def shared_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database for the tests of a module: they run once on SQLite and once on PostgreSQL."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            path = tmp_path_factory.mktemp("shared") / "integrations.db"
            shutil.copy(request.getfixturevalue("_sqlite_template"), path)
            yield f"sqlite:///{path}"
        else:
            server: PostgresServer = request.getfixturevalue("postgres_server")
            yield stack.enter_context(server.new_database(request.getfixturevalue("_postgres_template")))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_system(shared_database_url: str) -> AsyncIterator[System]:
    """A server with its sidecar and a sandbox. Its scope is the module, because a start is slow."""
    async with run_system(shared_database_url) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def system(shared_system: System, shared_database_url: str) -> AsyncIterator[System]:
    """The module's system, reset. Tests run in the module's loop; a leaked secret fails the test."""
    await wipe(shared_database_url)
    shared_system.reset()
    yield shared_system
    await shared_system.assert_no_secrets(shared_database_url)


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'empty' / 'integrations.db'}"


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database without a schema."""
    with postgres_server.new_database() as url:
        yield url


@pytest.fixture(params=BOTH)
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """A database without a schema: the test runs once on SQLite and once on PostgreSQL."""
    return str(request.getfixturevalue(f"empty_{request.param}_url"))
