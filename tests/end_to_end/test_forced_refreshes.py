"""Forced refreshes by every path over three servers make one call to the provider per minimum interval."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from integration_server.sandbox.behaviour import Fault
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.replicas import Replicas, force_refresh, run_replicas
from tests.end_to_end.system import Clients

CALLS = 40
TEN_THOUSAND_YEARS = Duration(seconds=315_000_000_000)
LONG_INTERVAL = "3600"  # longer than any test

RefreshPath = Callable[[Clients, int], Awaitable[object]]


async def ask_for_ten_thousand_years(clients: Clients, integration_id: int) -> str:
    return await clients.bearer_token(integration_id, min_ttl=TEN_THOUSAND_YEARS)


async def call_api_that_rejects_tokens(clients: Clients, integration_id: int) -> pb.CallProviderResponse:
    request = pb.CallProviderRequest(integration_id=integration_id, user_id="ada", method="GET", path="/userinfo")
    response = await clients.service.CallProvider(request)
    assert response.status_code == 401
    return response


PATHS: tuple[RefreshPath, ...] = (force_refresh, ask_for_ten_thousand_years, call_api_that_rejects_tokens)


@pytest.fixture
async def replicas(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str, prefork: PreforkServer
) -> AsyncIterator[Replicas]:
    """Three servers with the minimum interval that the test states, and an API that rejects every token."""
    interval = {"FORCED_REFRESH_MIN_INTERVAL_SECONDS": request.param}
    async with run_replicas(tmp_path, database_url, 3, lease=10, start=prefork.serving, **interval) as running:
        yield running


async def connected(replicas: Replicas) -> int:
    """A connected integration whose API rejects its tokens from now on."""
    replicas.change_behaviour(faults={})
    integration_id = await replicas.clients[0].connect()
    replicas.change_behaviour(faults={"userinfo": Fault(status=401)})
    return integration_id


async def call_forty_times(replicas: Replicas, integration_id: int, *paths: RefreshPath) -> int:
    """Call the paths and the servers in turn, half of the calls at once and half one by one. Returns the refreshes."""
    before = len(replicas.refreshes())
    calls = [(paths[number % len(paths)], replicas.clients[number % 3]) for number in range(CALLS)]
    await asyncio.gather(*(path(clients, integration_id) for path, clients in calls[: CALLS // 2]))
    for path, clients in calls[CALLS // 2 :]:
        await path(clients, integration_id)
    return len(replicas.refreshes()) - before


@pytest.mark.slow  # on fakes: tests/unit/service/credentials/test_forced_refreshes.py
@pytest.mark.parametrize("replicas", [LONG_INTERVAL], indirect=True)
async def test_every_path_and_all_paths_together_refresh_once(replicas: Replicas) -> None:
    for paths in (*((path,) for path in PATHS), PATHS):
        integration_id = await connected(replicas)
        assert await call_forty_times(replicas, integration_id, *paths) == 1
        assert replicas.refreshes()[-1] == "ok"
        await disconnect(replicas.clients[0], integration_id)
    integration_id = await connected(replicas)
    replicas.sandbox.revoke_grants("ada")
    before = len(replicas.refreshes())
    for number in range(CALLS):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await force_refresh(replicas.clients[number % 3], integration_id)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert replicas.refreshes()[before:] == ["invalid_grant"]  # a grant that has ended is not retried either


@pytest.mark.slow
@pytest.mark.parametrize("replicas", ["0"], indirect=True)
async def test_negative_control_without_an_interval_every_call_refreshes(replicas: Replicas) -> None:
    integration_id = await connected(replicas)
    for path in PATHS:
        before = len(replicas.refreshes())
        for _ in range(10):
            await path(replicas.clients[0], integration_id)  # another server may serve the previous token for a second
        assert len(replicas.refreshes()) - before == 10


async def disconnect(clients: Clients, integration_id: int) -> None:
    await clients.service.DisconnectIntegration(
        pb.DisconnectIntegrationRequest(integration_id=integration_id, user_id="ada")
    )
