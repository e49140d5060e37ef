"""Lease, detached task and fence between two servers: with each of them a fault loses no token, and without it does.

Both runs of a test are equal except for the variant of the servers (`variants.py`). The sandbox rotates refresh tokens,
and revokes the grant when one is reused.
"""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from integrations.v1 import integration_pb2
from tests.end_to_end.faults import HeldResponse
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.replicas import (
    LEASE,
    Replicas,
    expire_access_token,
    force_refresh,
    run_replicas,
    status_of,
    wait_until,
)

pytestmark = pytest.mark.slow  # the tests of the refresher have these faults without processes

CALLERS = 50
GRACE = 600

Pairs = Callable[..., AbstractAsyncContextManager[Replicas]]


@pytest.fixture
def pairs(prefork: PreforkServer, tmp_path: Path) -> Pairs:
    """Runs two servers of a variant on a database."""

    def run_pair(database_url: str, variant: str, **options: Any) -> AbstractAsyncContextManager[Replicas]:
        return run_replicas(
            tmp_path, database_url, servers=2, start=partial(prefork.serving, variant=variant), **options
        )

    return run_pair


async def is_grant_valid(pair: Replicas, integration_id: int) -> bool:
    """Whether the integration can still be refreshed, once that is known."""

    async def is_rotation_complete() -> bool:
        try:
            async with asyncio.timeout(5):  # a caller that joins a cancelled refresh gets no response
                await force_refresh(pair.clients[1], integration_id)
        except TimeoutError:
            return False
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE
        return True

    await wait_until(is_rotation_complete)
    return await status_of(pair.clients[1], integration_id) == integration_pb2.STATUS_ACTIVE


@pytest.mark.quick_on("postgres")
@pytest.mark.parametrize("variant", ["", "without lease"])
async def test_the_lease_prevents_two_servers_from_using_a_refresh_token_twice(
    pairs: Pairs, database_url: str, variant: str
) -> None:
    async with pairs(database_url, variant, lease=30) as pair:
        integration_id = await pair.clients[0].connect()
        await expire_access_token(pair, integration_id)
        held = HeldResponse()
        pair.change_behaviour(faults={"token": held})
        before = len(pair.refreshes())
        waiting = [
            asyncio.create_task(pair.clients[number % 2].bearer_token(integration_id)) for number in range(CALLERS)
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(30 if variant else 2):
                await held.wait_for_requests(2)
        pair.change_behaviour(faults={})
        held.released.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        calls = pair.refreshes()[before:]
        is_valid = await is_grant_valid(pair, integration_id)
    if variant:
        assert calls == ["ok", "invalid_grant"]
        assert not is_valid
    else:
        assert calls == ["ok"]
        assert is_valid


@pytest.mark.parametrize("variant", ["", "without shield"])
async def test_the_detached_task_prevents_a_callers_deadline_from_losing_a_token(
    pairs: Pairs, sqlite_url: str, variant: str
) -> None:
    async with pairs(sqlite_url, variant) as pair:
        integration_id = await pair.clients[0].connect()
        await expire_access_token(pair, integration_id)
        held = HeldResponse(handle_first=True)
        pair.change_behaviour(faults={"token": held})
        waiting = [
            asyncio.create_task(pair.clients[number % 2].bearer_token(integration_id)) for number in range(CALLERS)
        ]
        await held.wait_for_requests(1)
        for caller in waiting:
            caller.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.sleep(2)  # the cancellation reaches the servers
        pair.change_behaviour(faults={})
        held.released.set()
        assert await is_grant_valid(pair, integration_id) == (not variant)


@pytest.mark.postgres
@pytest.mark.parametrize("variant", ["", "without fence"])
async def test_the_fence_prevents_an_old_response_from_replacing_a_newer_one(
    pairs: Pairs, postgres_url: str, variant: str
) -> None:
    async with pairs(postgres_url, variant, grace=GRACE) as pair:
        integration_id = await pair.clients[0].connect()
        held = HeldResponse(handle_first=True)
        pair.change_behaviour(faults={"token": held})
        sleeping = asyncio.create_task(force_refresh(pair.clients[0], integration_id))
        await held.wait_for_requests(1)
        pair.commands[0].send(signal.SIGSTOP)
        pair.change_behaviour(faults={})
        held.released.set()
        await asyncio.sleep(LEASE)

        async def is_refreshed() -> bool:
            try:
                await force_refresh(pair.clients[1], integration_id)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False
            return True

        await wait_until(is_refreshed)  # with the token that the suspended server has used
        await force_refresh(
            pair.clients[1], integration_id
        )  # and with the next one, so that the suspended server's is used up
        pair.change_behaviour(refresh_grace=0)
        pair.commands[0].send(signal.SIGCONT)
        await sleeping
        assert await is_grant_valid(pair, integration_id) == (not variant)
