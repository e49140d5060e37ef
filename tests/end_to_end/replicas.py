"""Replicas that share a database, and a sandbox that rotates refresh tokens and revokes a grant on reuse."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from integration_server.sandbox.behaviour import Behaviour
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.commands import Command
from tests.end_to_end.processes import server_environment, serving
from tests.end_to_end.sandbox_declaration import declare_sandbox
from tests.end_to_end.secret_scanner import assert_no_secrets, dump_rows, read_database_files, read_files
from tests.end_to_end.system import CLIENT_ID, Clients, callback_url, clients_of

LEASE = 1  # second

Start = Callable[[Path, Mapping[str, str]], AbstractAsyncContextManager[Command]]
"""Starts a server in a directory with environment variables: `processes.serving` or `PreforkServer.serving`."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One server and its clients."""

    command: Command
    clients: Clients


@dataclass(frozen=True, slots=True)
class Replicas:
    """The servers, their sandbox, and the environment of a further server."""

    commands: list[Command]
    clients: list[Clients]
    sandbox: Sandbox
    directory: Path
    environment: Mapping[str, str]

    def refreshes(self) -> list[str]:
        """The outcome of each refresh at the token endpoint."""
        return [call.outcome for call in self.sandbox.token_calls if call.grant_type == "refresh_token"]

    def change_behaviour(self, **changes: Any) -> None:
        """Change the sandbox's behaviour."""
        self.sandbox.behaviour = replace(self.sandbox.behaviour, **changes)

    @asynccontextmanager
    async def start_replica(self, start: Start) -> AsyncIterator[Replica]:
        """Start a further server."""
        async with (
            start(self.directory, self.environment) as command,
            clients_of(command.serving["grpc"], command.serving["sidecar"]) as clients,
        ):
            yield Replica(command, clients)


@asynccontextmanager
async def run_replicas(
    directory: Path,
    database_url: str,
    servers: int,
    *,
    lease: float = LEASE,
    grace: int = 0,
    start: Start = serving,
    **settings: str,
) -> AsyncIterator[Replicas]:
    """Run this many servers, with leases of `lease` seconds; a used refresh token stays valid for `grace` seconds."""
    sandbox = Sandbox(behaviour=Behaviour(refresh_grace=grace))
    secret = secrets.token_urlsafe(32)
    sandbox.register_client(CLIENT_ID, secret, [callback_url("sandbox")])
    async with AsyncExitStack() as stack:
        sandbox_url = await stack.enter_async_context(run_sandbox(sandbox))
        providers = directory / "providers"
        providers.mkdir()
        declare_sandbox(providers, sandbox_url, refresh_token_grace_seconds=grace)
        environment = server_environment(
            database_url,
            PROVIDERS_DIR=str(providers),
            SANDBOX_CLIENT_ID=CLIENT_ID,
            SANDBOX_CLIENT_SECRET=secret,
            REFRESH_LEASE_SECONDS=str(lease),
            REFRESH_JOURNAL_DIR=str(directory / "refresh-journal"),
            **settings,
        )
        replicas = Replicas([], [], sandbox, directory, environment)
        for _ in range(servers):
            replica = await stack.enter_async_context(replicas.start_replica(start))
            replicas.commands.append(replica.command)
            replicas.clients.append(replica.clients)
        yield replicas
    left = {**read_files(directory, "*.out", "*.err", "refresh-journal/*"), **read_database_files(database_url)}
    assert_no_secrets({"sandbox": sandbox.secrets}, {**left, "rows": await dump_rows(database_url)})


async def force_refresh(clients: Clients, integration_id: int, user_id: str = "ada") -> pb.RefreshTokenResponse:
    """Refresh now, regardless of the backoff."""
    return await clients.service.RefreshToken(
        pb.RefreshTokenRequest(integration_id=integration_id, user_id=user_id, force=True), timeout=60
    )


async def expire_access_token(replicas: Replicas, integration_id: int) -> None:
    """Replace the integration's access token by one that has expired already."""
    replicas.change_behaviour(access_token_lifetime=0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await force_refresh(replicas.clients[0], integration_id)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE  # it is stored, and cannot be used
    await asyncio.sleep(1)  # by then no server serves the cached token
    replicas.change_behaviour(access_token_lifetime=3600)


async def wait_until(condition: Callable[[], Awaitable[bool]], within: float = 60) -> None:
    """Poll until the condition holds."""
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110  # a server in another process sets no event of ours
            await asyncio.sleep(0.05)


def has_called(replicas: Replicas, calls: int = 2) -> Callable[[], Awaitable[bool]]:
    """A condition: this many calls have reached the token endpoint. The first is the exchange of the code."""

    async def condition() -> bool:
        return replicas.sandbox.calls["token"] >= calls

    return condition


async def status_of(clients: Clients, integration_id: int, user_id: str = "ada") -> integration_pb2.Status:
    """An integration's status."""
    integration: integration_pb2.Integration = await clients.get(integration_id, user_id)
    return integration.status
