"""What one user uses up, or a provider does to one account, never affects another user: quotas, streams, rate limits
that were learned, and connections to providers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from integration_server.bootstrap import running_server
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.fake_api import FakeApi, declare_api, run_fake_api
from tests.end_to_end.rpc_errors import expect_rpc_error
from tests.end_to_end.system import Clients, clients_of, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="function")

QUOTAS = {
    "USER_MAX_INTEGRATIONS": "3",
    "USER_MAX_AUTHORIZATION_ATTEMPTS": "3",
    "CALLER_MAX_STREAMS_PER_USER": "2",
}


class HostileApi(FakeApi):
    """Rejects the calls of Eve's keys for a day, and sends a second response after each response to them."""

    is_splitting = False

    def _respond(self, head: bytes, key: str) -> bytes:
        response = super()._respond(head, key)
        if b"/v1/" not in head or "eve" not in key:
            return response
        if self.is_splitting:
            return response + b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"
        return b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 86400\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A server with small quotas, and the API."""

    api: HostileApi
    clients: Clients

    async def connect(self, user_id: str, number: int = 1) -> int:
        """An integration with a key that contains the user."""
        key = f"key-{number}-of-{user_id}"
        request = pb.ConnectWithApiKeyRequest(user_id=user_id, integration_type="acme", api_key=key)
        return int((await self.clients.service.ConnectWithApiKey(request)).integration.integration_id)

    async def call(self, user_id: str, integration_id: int) -> pb.CallProviderResponse:
        """A call to the provider."""
        request = pb.CallProviderRequest(user_id=user_id, integration_id=integration_id, method="GET", path="/things")
        return await self.clients.service.CallProvider(request, timeout=30)


@asynccontextmanager
async def scenario(folder: Path, database_url: str) -> AsyncIterator[Scenario]:
    async with AsyncExitStack() as stack:
        api = HostileApi()
        await stack.enter_async_context(run_fake_api(api))
        declare_api(folder, api)
        settings = settings_for(database_url, PROVIDERS_DIR=str(folder), **QUOTAS)
        running = await stack.enter_async_context(running_server(settings, {}))
        yield Scenario(api, await stack.enter_async_context(clients_of(running.grpc_address, running.sidecar_url)))


async def test_one_users_quotas_leave_those_of_others(sqlite_url: str, tmp_path: Path) -> None:
    async with scenario(tmp_path, sqlite_url) as given:
        for number in range(3):
            await given.connect("eve", number)
        refused = await expect_rpc_error(
            given.clients.service.ConnectWithApiKey(
                pb.ConnectWithApiKeyRequest(user_id="eve", integration_type="acme", api_key="key-4-of-eve")
            )
        )
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        assert await given.connect("ada") > 0


async def test_one_users_streams_leave_those_of_others(sqlite_url: str, tmp_path: Path) -> None:
    async with scenario(tmp_path, sqlite_url) as given:

        def watch(user_id: str) -> Any:
            return given.clients.service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id=user_id))

        streams = [watch("eve"), watch("eve")]
        for stream in streams:
            await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await watch("eve").read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        of_ada = watch("ada")
        await of_ada.read()
        for number in range(3):
            await given.connect("eve", number)
        integration_id = await given.connect("ada")
        assert (await of_ada.read()).event.integration_id == integration_id
        for stream in (*streams, of_ada):
            stream.cancel()


async def test_one_users_rate_limit_leaves_those_of_others(sqlite_url: str, tmp_path: Path) -> None:
    """Whatever the provider tells one user's accounts, however many they are."""
    async with scenario(tmp_path, sqlite_url) as given:
        ada = await given.connect("ada")
        for number in range(3):
            refused = await expect_rpc_error(given.call("eve", await given.connect("eve", number)))
            assert refused.reason == "PROVIDER_UNAVAILABLE"
            assert refused.retry_delay is not None
            assert refused.retry_delay.total_seconds() <= 3600
        assert (await given.call("ada", ada)).status_code == 200


async def test_one_users_responses_are_never_given_to_others(sqlite_url: str, tmp_path: Path) -> None:
    async with scenario(tmp_path, sqlite_url) as given:
        given.api.is_splitting = True
        eve, ada = await given.connect("eve"), await given.connect("ada")
        for _ in range(3):
            assert [(await given.call("eve", eve)).body, (await given.call("ada", ada)).body] == [b"ok", b"ok"]
        bodies = await asyncio.gather(*(given.call(*which) for which in [("eve", eve), ("ada", ada)] * 10))
        assert {response.body for response in bodies} == {b"ok"}
