"""The drill of docs/backup-and-restore.md: dump, lose everything, restore with the keys, and see what works."""

import asyncio
import json
import secrets
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import grpc
import pytest

from integration_server.sandbox.behaviour import Behaviour
from integration_server.sandbox.model import Account
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.commands import Command
from tests.end_to_end.faults import HeldResponse
from tests.end_to_end.processes import new_key, run, server_environment, serving
from tests.end_to_end.replicas import force_refresh, wait_until
from tests.end_to_end.rpc_errors import expect_rpc_error, parse_rpc_error
from tests.end_to_end.sandbox_declaration import declare_sandbox
from tests.end_to_end.system import CLIENT_ID, Clients, callback_url, clients_of, next_event
from tests.postgres import PostgresServer, run_postgres

pytestmark = pytest.mark.slow

ACCOUNTS = ("unchanged", "rotated", "interrupted", "disconnected", "later")


# --- the databases ---------------------------------------------------------------------------------------------------


class RestorableDatabase(Protocol):
    """A database that is dumped, lost and restored."""

    @property
    def url(self) -> str:
        """Its `DATABASE_URL`."""

    def dump(self, target: Path) -> None:
        """Copy it while servers use it."""

    def lose(self) -> AbstractAsyncContextManager[None]:
        """Nobody can use it any more, from the beginning of the block on. At its end nothing is left of it."""

    def restore(self, source: Path) -> str:
        """Make a database of a dump; its URL."""


@dataclass(frozen=True, slots=True)
class SqliteDatabase:
    """A file."""

    path: Path

    @property
    def url(self) -> str:
        """Its `DATABASE_URL`."""
        return f"sqlite:///{self.path}"

    def dump(self, target: Path) -> None:
        """Copy it while servers use it."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("VACUUM INTO ?", (str(target),))

    @asynccontextmanager
    async def lose(self) -> AsyncIterator[None]:
        """Lock it, and delete the file: processes that have opened it would still write to it."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink()

    def restore(self, source: Path) -> str:
        """Copy the dump."""
        shutil.copy(source, self.path)
        return self.url


@dataclass(frozen=True, slots=True)
class PostgresDatabase:
    """A database of a PostgreSQL server. It is restored on another one."""

    server: PostgresServer
    name: str
    other: PostgresServer

    @property
    def url(self) -> str:
        """Its `DATABASE_URL`."""
        return self.server.url(self.name)

    def dump(self, target: Path) -> None:
        """Dump it while servers use it."""
        self.server.execute_program("pg_dump", "--format=custom", f"--file={target}", f"--dbname={self.url}")

    @asynccontextmanager
    async def lose(self) -> AsyncIterator[None]:
        """Refuse connections for good, and close all."""
        connection = await asyncpg.connect(self.server.url("postgres"))
        try:
            await connection.execute(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
            ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
            await connection.execute(ending, self.name)
        finally:
            await connection.close()
        yield

    def restore(self, source: Path) -> str:
        """Restore the dump on the other server."""
        self.other.execute_program("createdb", f"--maintenance-db={self.other.url('postgres')}", "restored")
        url = self.other.url("restored")
        self.other.execute_program("pg_restore", "--exit-on-error", f"--dbname={url}", str(source))
        return url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def restorable(request: pytest.FixtureRequest) -> Iterator[RestorableDatabase]:
    """A migrated database of each kind, which the test may lose."""
    if request.param == "sqlite":
        yield SqliteDatabase(Path(request.getfixturevalue("sqlite_url").removeprefix("sqlite:///")))
    else:
        name = request.getfixturevalue("postgres_url").partition("?")[0].rpartition("/")[2]
        with run_postgres() as other:
            yield PostgresDatabase(request.getfixturevalue("postgres_server"), name, other)


# --- the drill -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Installation:
    """An installation, its provider, and what outlives its machine: the keys, the heads, the journal and the dumps."""

    sandbox: Sandbox
    environment: Mapping[str, str]
    directory: Path
    commands: list[Command] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        """The directory of the refresh journal."""
        return self.directory / "journal"

    @asynccontextmanager
    async def serving(self, **changes: str) -> AsyncIterator[Clients]:
        """Run the server."""
        async with (
            serving(self.directory, {**self.environment, **changes}) as command,
            clients_of(command.serving["grpc"], command.serving["sidecar"]) as clients,
        ):
            self.commands.append(command)
            yield clients

    async def kill(self) -> None:
        """Kill the server: its machine is lost."""
        self.commands[-1].send(signal.SIGKILL)
        await self.commands[-1].finished()

    async def heads_are_recorded(self, clients: Clients, integration_id: int) -> None:
        """Wait until the heads of what was written before are recorded: those of a further entry are."""
        path = self.directory / "heads.jsonl"

        def lines() -> int:
            return len(path.read_text().splitlines()) if path.exists() else 0

        before = lines()

        async def has_more() -> bool:
            return lines() > before

        await clients.bearer_token(integration_id)
        await wait_until(has_more)


@asynccontextmanager
async def installation(database: RestorableDatabase, directory: Path) -> AsyncIterator[Installation]:
    """An installation whose provider rotates refresh tokens and ends the grant when a used one comes again."""
    sandbox = Sandbox(accounts=[Account(name, f"{name}@example.com", name) for name in ACCOUNTS], behaviour=Behaviour())
    secret = secrets.token_urlsafe(32)
    sandbox.register_client(CLIENT_ID, secret, [callback_url("sandbox")])
    async with run_sandbox(sandbox) as sandbox_url:
        (providers := directory / "providers").mkdir()
        declare_sandbox(providers, sandbox_url)
        environment = server_environment(
            database.url,
            PROVIDERS_DIR=str(providers),
            SANDBOX_CLIENT_ID=CLIENT_ID,
            SANDBOX_CLIENT_SECRET=secret,
            REFRESH_JOURNAL_DIR=str(directory / "journal"),
            AUDIT_HEADS=str(directory / "heads.jsonl"),
            AUDIT_HEADS_INTERVAL_SECONDS="1",
        )
        yield Installation(sandbox, environment, directory)


async def state_of(clients: Clients, integration_id: int) -> str:
    """What has become of an account when its access token has expired."""
    try:
        await force_refresh(clients, integration_id)
    except grpc.aio.AioRpcError as error:
        return parse_rpc_error(error).reason
    await clients.bearer_token(integration_id)
    return "works"


async def change_after_the_dump(clients: Clients, ids: dict[str, int]) -> str:
    """A refresh, a disconnection and a connection. Returns the cursor of the last event."""
    stream: Any = clients.service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id="ada"))
    cursor = (await stream.read()).cursor
    await force_refresh(clients, ids["rotated"])
    gone = pb.DisconnectIntegrationRequest(integration_id=ids["disconnected"], user_id="ada")
    await clients.service.DisconnectIntegration(gone)
    ids["later"] = await clients.connect(account="later")
    while (response := await stream.read()).event.integration_id != ids["later"]:
        pass
    cursor = response.cursor
    stream.cancel()
    return str(cursor)


async def lose_during_a_refresh(
    installed: Installation, database: RestorableDatabase, clients: Clients, number: int
) -> None:
    """The database goes away while the provider rotates a token, and does not come back."""
    held = HeldResponse(handle_first=True)
    installed.sandbox.behaviour = replace(installed.sandbox.behaviour, faults={"token": held})
    refreshing = asyncio.ensure_future(force_refresh(clients, number))
    await held.wait_for_requests(1)
    async with database.lose():
        held.released.set()

        async def is_journaled() -> bool:
            return any(installed.journal.glob("*.refresh"))

        await wait_until(is_journaled)
        await installed.kill()
    await asyncio.gather(refreshing, return_exceptions=True)
    installed.sandbox.behaviour = replace(installed.sandbox.behaviour, faults={})


@pytest.mark.parametrize("keeps_journal", [True, False], ids=["journal-kept", "journal-lost"])
async def test_the_drill(restorable: RestorableDatabase, keeps_journal: bool, tmp_path: Path) -> None:
    """The journal is on a disk of its own. Without it (negative control) one more account has to be connected again."""
    dump = tmp_path / "dump"
    async with installation(restorable, tmp_path) as installed:
        async with installed.serving() as clients:
            ids = {name: await clients.connect(account=name) for name in ACCOUNTS if name != "later"}
            key = installed.sandbox.api_key.key
            request = pb.ConnectWithApiKeyRequest(user_id="ada", integration_type="sandbox_api_key", api_key=key)
            key_id = (await clients.service.ConnectWithApiKey(request)).integration.integration_id
            await asyncio.to_thread(restorable.dump, dump)
            cursor = await change_after_the_dump(clients, ids)
            await installed.heads_are_recorded(clients, ids["rotated"])
            await lose_during_a_refresh(installed, restorable, clients, ids["interrupted"])
        if not keeps_journal:
            shutil.rmtree(installed.journal)

        environment = {**installed.environment, "DATABASE_URL": await asyncio.to_thread(restorable.restore, dump)}
        refused = await run(tmp_path, {**environment, "ENCRYPTION_KEY": new_key()}, "serve")
        assert refused.code == 1
        assert "set ENCRYPTION_KEY or KMS_KEY_ID to that key again" in refused.err

        declared = await run(tmp_path, environment, "restored", "--json")
        assert (declared.code, json.loads(declared.out)) == (0, {"database": "restored"})

        async with installed.serving(**environment) as clients:
            read = pb.GetCredentialsRequest(integration_id=key_id, user_id="ada")
            assert (await clients.service.GetCredentials(read)).credentials.api_key.api_key == key
            for number in range(3):  # positions that are those of the lost database too
                await clients.service.UpdateIntegration(
                    pb.UpdateIntegrationRequest(user_id="ada", integration_id=key_id, name=f"name {number}")
                )
            expired = await expect_rpc_error(read_from(clients, cursor))
            assert expired.reason == "CURSOR_EXPIRED"
            stream: Any = clients.service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id="ada"))
            await stream.read()
            states = {name: await state_of(clients, number) for name, number in ids.items()}
            assert states == {
                "unchanged": "works",
                "rotated": "REAUTHORIZATION_REQUIRED",
                "interrupted": "works" if keeps_journal else "REAUTHORIZATION_REQUIRED",
                "disconnected": "REAUTHORIZATION_REQUIRED",  # it exists again, without its grant
                "later": "INTEGRATION_NOT_FOUND",
            }
            assert (await next_event(stream)).integration_id in ids.values()  # events and caches work
            again = await clients.connect(account="rotated")
            assert again == ids["rotated"]
            assert await state_of(clients, again) == "works"
            await installed.kill()

        verified = await run(tmp_path, environment, "audit", "verify")
        assert verified.code == 1
        assert "it was set back to" in verified.err
        new_heads = {**environment, "AUDIT_HEADS": str(tmp_path / "new-heads.jsonl")}
        for arguments in (["--record-heads"], []):
            accepted = await run(tmp_path, new_heads, "audit", "verify", *arguments)
            assert accepted.code == 0, accepted.err


async def read_from(clients: Clients, cursor: str) -> None:
    """Resume the stream of events."""
    stream: Any = clients.service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id="ada", cursor=cursor))
    await stream.read()
    stream.cancel()
