"""Refreshes at django-oauth-toolkit, an independent implementation of rotation and reuse protection."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from integrations.v1 import integration_pb2
from tests.end_to_end.commands import Command
from tests.end_to_end.dot.server import DotServer, running_dot
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.processes import server_environment
from tests.end_to_end.replicas import LEASE, force_refresh, status_of, wait_until
from tests.end_to_end.system import RETURN_URL, Clients, callback_url, clients_of
from tests.end_to_end.variants import AT_THE_COMMIT

pytestmark = pytest.mark.slow

CALLERS = 50
EXPIRIES = 3
LIFETIME = 2  # seconds
GRACE = 600


@dataclass(frozen=True, slots=True)
class Pair:
    """Two servers that are clients of one django-oauth-toolkit, and an integration."""

    dot: DotServer
    commands: list[Command]
    clients: list[Clients]
    integration_id: int


@asynccontextmanager
async def run_pair(
    prefork: PreforkServer,
    directory: Path,
    database_url: str,
    variants: tuple[str, str] = ("", ""),
    *,
    lease: int = LEASE,
    **options: Any,
) -> AsyncIterator[Pair]:
    """Run a pair; the account is connected at the second server."""
    async with AsyncExitStack() as stack:
        dot = stack.enter_context(running_dot(directory, callback_url("acme"), **options))
        providers = directory / "providers"
        providers.mkdir()
        (providers / "acme.toml").write_text(dot.declaration("acme"))
        environment = server_environment(
            database_url,
            PROVIDERS_DIR=str(providers),
            ACME_CLIENT_ID=dot.options.client_id,
            ACME_CLIENT_SECRET=dot.options.client_secret,
            REFRESH_LEASE_SECONDS=str(lease),
            REFRESH_JOURNAL_DIR=str(directory / "refresh-journal"),
        )
        commands, clients = [], []
        for variant in variants:
            command = await stack.enter_async_context(prefork.serving(directory, environment, variant))
            commands.append(command)
            clients.append(
                await stack.enter_async_context(clients_of(command.serving["grpc"], command.serving["sidecar"]))
            )
        connect_response = await clients[1].begin("ada", "acme", return_url=RETURN_URL)
        await clients[1].follow(await dot.sign_in_and_decide(connect_response.authorization_url))
        yield Pair(dot, commands, clients, connect_response.integration_id)


async def test_a_grant_with_reuse_protection_survives_concurrent_refreshes(
    prefork: PreforkServer, tmp_path: Path, sqlite_url: str
) -> None:
    async with run_pair(prefork, tmp_path, sqlite_url, lease=30, access_token_expire_seconds=LIFETIME) as pair:
        tokens: set[str] = set()
        for _ in range(EXPIRIES):
            await asyncio.sleep(LIFETIME)  # the access token expires
            got = await asyncio.gather(
                *(pair.clients[number % 2].bearer_token(pair.integration_id) for number in range(CALLERS)),
                return_exceptions=True,
            )
            new = {token for token in got if isinstance(token, str)}
            assert not tokens & new
            tokens |= new
            for error in (error for error in got if isinstance(error, BaseException)):
                assert isinstance(error, grpc.aio.AioRpcError)
                assert (
                    error.code() is grpc.StatusCode.UNAVAILABLE
                )  # on a machine so busy that a token expires before its use
        assert tokens
        await force_refresh(pair.clients[0], pair.integration_id)
        assert await status_of(pair.clients[0], pair.integration_id) == integration_pb2.STATUS_ACTIVE


@pytest.mark.parametrize(
    "grace", [pytest.param(GRACE, id="grace"), pytest.param(0, id="strict", marks=pytest.mark.slow)]
)
async def test_a_lost_refresh_is_repeated_within_the_grace_period(
    prefork: PreforkServer, tmp_path: Path, sqlite_url: str, grace: int
) -> None:
    """Without a grace period a second use could end the grant, and with it the access token that still works."""
    options = {"refresh_token_grace_period_seconds": grace}
    async with run_pair(prefork, tmp_path, sqlite_url, ("never committing", ""), **options) as pair:
        before = await pair.clients[1].bearer_token(pair.integration_id)
        interrupted_call = asyncio.create_task(force_refresh(pair.clients[0], pair.integration_id))
        await pair.commands[0].wait_for_output(AT_THE_COMMIT)  # so the provider has responded
        pair.commands[0].send(signal.SIGKILL)
        await asyncio.gather(interrupted_call, return_exceptions=True)

        async def is_repeated() -> bool:
            try:
                await force_refresh(pair.clients[1], pair.integration_id)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False
            return True

        if grace:
            await wait_until(is_repeated)
        else:
            assert not await is_repeated()
        assert await status_of(pair.clients[1], pair.integration_id) == integration_pb2.STATUS_ACTIVE
        token = await pair.clients[1].bearer_token(pair.integration_id)
        assert await pair.dot.accepts_token(token) == bool(grace)
        assert (token == before) == (not grace)
