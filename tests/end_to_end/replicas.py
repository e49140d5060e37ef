"""Several servers, each a process of its own, on one database and beside one sandbox."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from integration_server.sandbox import Behaviour, Sandbox, run_sandbox
from tests.end_to_end.processes import Command, server_environment, serving
from tests.end_to_end.sandbox_files import declare_sandbox
from tests.end_to_end.system import CLIENT_ID, Clients, clients_of, own_callback

LEASE = 1  # second; soon over


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


async def eventually(look: Callable[[], Awaitable[bool]], within: float = 20) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(within):
        while True:
            if await look():
                return
            await asyncio.sleep(0.05)
