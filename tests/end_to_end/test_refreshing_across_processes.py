"""Four servers on one database: a token is renewed once for all of them, however they are raced, slept or killed.

The sandbox rotates refresh tokens, and one that comes a second time kills the grant: a race that is lost once shows.
"""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import pytest

from integration_server.sandbox import Behaviour, Fault, Hang, Sandbox, run_sandbox
from integration_server.storage.schema import migrate
from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.databases import PostgresServer, run_postgres
from tests.end_to_end.leaks import assert_nothing_left, files_of, files_under, rows_of
from tests.end_to_end.processes import Command, server_environment, serving
from tests.end_to_end.sandbox_files import declare_sandbox
from tests.end_to_end.system import CLIENT_ID, Clients, clients_of, own_callback

SERVERS = 4
CALLERS = 200
ROUNDS = 3
LEASE = 1  # second; soon over
SLOW = Fault(delay=1)


@dataclass(frozen=True, slots=True)
class Replicas:
    """Servers that share a database, and the sandbox that they are clients of."""

    commands: list[Command]
    clients: list[Clients]
    sandbox: Sandbox

    def refreshes(self) -> list[str]:
        """How each refresh at the token endpoint ended."""
        return [call.outcome for call in self.sandbox.token_calls if call.grant_type == "refresh_token"]


@asynccontextmanager
async def running_replicas(
    directory: Path, database_url: str, servers: int, lease: float = LEASE, **settings: str
) -> AsyncIterator[Replicas]:
    """So many of them, with leases of so many seconds."""
    sandbox = Sandbox(behaviour=Behaviour())
    secret = secrets.token_urlsafe(32)
    sandbox.register_client(CLIENT_ID, secret, [own_callback("sandbox")])
    async with AsyncExitStack() as stack:
        sandbox_url = await stack.enter_async_context(run_sandbox(sandbox))
        providers = directory / "providers"
        providers.mkdir()
        declare_sandbox(providers, sandbox_url)
        environment = server_environment(
            database_url,
            PROVIDERS_DIR=str(providers),
            SANDBOX_CLIENT_ID=CLIENT_ID,
            SANDBOX_CLIENT_SECRET=secret,
            REFRESH_LEASE_SECONDS=str(lease),
            SPILL_DIR=str(directory / "spill"),
            **settings,
        )
        commands = [await stack.enter_async_context(serving(directory, environment)) for _ in range(servers)]
        clients = [
            await stack.enter_async_context(clients_of(command.serving["grpc"], command.serving["sidecar"]))
            for command in commands
        ]
        yield Replicas(commands, clients, sandbox)
    left = {**files_under(directory, "*.out", "*.err", "spill/*"), **files_of(database_url)}
    assert_nothing_left({"sandbox": sandbox.secrets}, {**left, "rows": await rows_of(database_url)})


@pytest.fixture
async def replicas(tmp_path: Path, database_url: str) -> AsyncIterator[Replicas]:
    """Four servers."""
    async with running_replicas(tmp_path, database_url, SERVERS, lease=10) as running:
        yield running


@pytest.fixture
async def pair(tmp_path: Path, database_url: str) -> AsyncIterator[Replicas]:
    """Two servers."""
    async with running_replicas(tmp_path, database_url, servers=2) as running:
        yield running


async def forced(clients: Clients, integration_id: int) -> pb.RefreshTokenResponse:
    return await clients.service.RefreshToken(
        pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True), timeout=30
    )


async def eventually(look: Callable[[], Awaitable[bool]], within: float = 20) -> None:
    async with asyncio.timeout(within):
        while True:
            if await look():
                return
            await asyncio.sleep(0.05)


def has_called(replicas: Replicas) -> Callable[[], Awaitable[bool]]:
    """Whether a refresh has reached the token endpoint, after the exchange of the code."""

    async def look() -> bool:
        return replicas.sandbox.calls["token"] >= 2

    return look


async def status_of(clients: Clients, integration_id: int) -> integration_pb2.Status:
    integration: integration_pb2.Integration = await clients.get(integration_id)
    return integration.status


async def test_a_token_is_renewed_once_for_all_callers_of_all_servers(replicas: Replicas) -> None:
    sandbox = replicas.sandbox
    integration_id = await replicas.clients[0].connect()
    for _ in range(ROUNDS):
        sandbox.behaviour = replace(sandbox.behaviour, access_token_lifetime=1)
        await forced(replicas.clients[0], integration_id)
        await asyncio.sleep(1)  # it expires
        sandbox.behaviour = replace(sandbox.behaviour, access_token_lifetime=3600)
        before = len(replicas.refreshes())
        tokens = await asyncio.gather(
            *(replicas.clients[number % SERVERS].bearer_token(integration_id) for number in range(CALLERS))
        )
        assert len(set(tokens)) == 1
        assert replicas.refreshes()[before:] == ["ok"]
    assert await status_of(replicas.clients[0], integration_id) == integration_pb2.STATUS_ACTIVE


async def test_a_server_that_sleeps_through_its_lease_loses_nothing(pair: Replicas) -> None:
    integration_id = await pair.clients[0].connect()
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={"token": SLOW})
    sleeping = asyncio.create_task(forced(pair.clients[0], integration_id))
    await eventually(has_called(pair))
    pair.commands[0].send(signal.SIGSTOP)
    await asyncio.sleep(LEASE + 1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await forced(pair.clients[1], integration_id)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    pair.commands[0].send(signal.SIGCONT)
    assert (await sleeping).refreshed
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={})
    assert (await forced(pair.clients[1], integration_id)).refreshed
    assert pair.refreshes() == ["ok", "ok"]


async def test_a_refresh_lost_in_a_crash_is_told_and_not_tried_in_a_loop(pair: Replicas) -> None:
    integration_id = await pair.clients[0].connect()
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={"token": Hang(work_first=True)})
    lost = asyncio.create_task(forced(pair.clients[0], integration_id))
    await eventually(has_called(pair))
    pair.commands[0].send(signal.SIGKILL)
    await asyncio.gather(lost, return_exceptions=True)
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={})

    async def is_told() -> bool:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await forced(pair.clients[1], integration_id)
        return refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    await eventually(is_told)
    assert await status_of(pair.clients[1], integration_id) == integration_pb2.STATUS_EXPIRED
    assert pair.refreshes() == ["ok"]


@pytest.fixture
def own_postgres() -> Iterator[tuple[PostgresServer, str]]:
    """A server to be stopped, with a database in it."""
    with run_postgres() as server, server.new_database() as url:
        asyncio.run(migrate(url))
        yield server, url


async def test_an_answer_that_comes_while_the_database_is_gone_survives_a_crash(
    tmp_path: Path, own_postgres: tuple[PostgresServer, str]
) -> None:
    postgres, url = own_postgres
    async with running_replicas(tmp_path, url, servers=2) as pair:
        integration_id = await pair.clients[0].connect()
        pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={"token": SLOW})
        refreshing = asyncio.create_task(forced(pair.clients[0], integration_id))
        await eventually(has_called(pair))
        await asyncio.to_thread(postgres.stop)
        assert (await refreshing).refreshed
        pair.commands[0].send(signal.SIGKILL)
        await asyncio.to_thread(postgres.start)
        pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={})

        async def is_recovered() -> bool:
            try:
                return (await forced(pair.clients[1], integration_id)).refreshed
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:  # above all not that the user has to come again
                    raise
                return False

        await eventually(is_recovered)
        assert set(pair.refreshes()) == {"ok"}
        assert await status_of(pair.clients[1], integration_id) == integration_pb2.STATUS_ACTIVE
