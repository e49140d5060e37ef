"""`WatchCredentials`: each credential at once, after a refresh, before it expires, and when it is gone."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import grpc
import pytest
from google.rpc import error_details_pb2

from integration_server.sandbox.behaviour import Behaviour
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.rpc_errors import expect_rpc_error
from tests.end_to_end.system import System, next_event, run_system

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.quick_on("sqlite")]

_DEADLINE = 30.0  # seconds for one response


class Watch:
    """A stream, the results that were read and not used yet, and the last cursor."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.cursor = ""
        self._results: deque[pb.WatchedCredentials] = deque()

    async def read(self) -> pb.WatchCredentialsResponse:
        """The next response."""
        async with asyncio.timeout(_DEADLINE):
            read: pb.WatchCredentialsResponse = await self.call.read()
        self.cursor = read.cursor or self.cursor
        self._results.extend(read.results)
        return read

    async def result(self) -> pb.WatchedCredentials:
        """The next result."""
        while not self._results:
            await self.read()
        return self._results.popleft()

    async def until_cursor(self) -> str:
        """Read until everything was sent, and there is a cursor."""
        while not self.cursor:
            await self.read()
        return self.cursor

    async def is_silent(self) -> bool:
        """Whether nothing but cursors arrives for a moment."""
        try:
            async with asyncio.timeout(1):
                await self.result()
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def watching(system: System, ids: Sequence[int], user_id: str = "ada", **fields: Any) -> AsyncIterator[Watch]:
    """A stream of the credentials of these integrations."""
    request = pb.WatchCredentialsRequest(integration_ids=ids, user_id=user_id, **fields)
    call: Any = system.service.WatchCredentials(request)
    try:
        yield Watch(call)
    finally:
        call.cancel()


def reason(response: pb.WatchedCredentials) -> str:
    """The reason of an error."""
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in response.result.error.details)
    return info.reason


async def test_each_credential_is_sent_at_once_and_after_each_refresh(system: System) -> None:
    ids = [await system.connect(account=account) for account in ("ada", "grace")]
    async with watching(system, [*ids, ids[0]]) as watch:
        first = {response.integration_id: response for response in [await watch.result(), await watch.result()]}
        assert set(first) == set(ids)
        await watch.until_cursor()
        token = first[ids[0]].result.credentials.bearer_token
        assert token == await system.bearer_token(ids[0])
        await system.service.RefreshToken(pb.RefreshTokenRequest(integration_id=ids[0], user_id="ada", force=True))
        again = await watch.result()
        assert again.integration_id == ids[0]
        assert again.result.credentials.bearer_token == await system.bearer_token(ids[0]) != token


async def test_a_credential_that_is_gone_is_reported_at_once(system: System) -> None:
    number = await system.connect()
    async with watching(system, [number]) as watch:
        await watch.result()
        await watch.until_cursor()
        which = pb.DisconnectIntegrationRequest(integration_id=number, user_id="ada")
        await system.service.DisconnectIntegration(which)
        gone = await watch.result()
        assert gone.result.error.code == grpc.StatusCode.NOT_FOUND.value[0]
        assert reason(gone) == "INTEGRATION_NOT_FOUND"


async def test_an_inactive_integration_has_no_credentials_until_it_is_active_again(system: System) -> None:
    number = await system.connect()
    async with watching(system, [number]) as watch:
        await watch.result()
        await watch.until_cursor()
        for is_active in (False, True):
            update = pb.UpdateIntegrationRequest(integration_id=number, user_id="ada", is_active=is_active)
            await system.service.UpdateIntegration(update)
            response = await watch.result()
            assert response.result.HasField("credentials") is is_active
            assert is_active or reason(response) == "INTEGRATION_INACTIVE"


async def test_a_revoked_grant_is_reported(system: System) -> None:
    number = await system.connect()
    async with watching(system, [number]) as watch:
        await watch.result()
        await watch.until_cursor()
        system.sandbox.revoke_grants("ada")
        refresh = pb.RefreshTokenRequest(integration_id=number, user_id="ada", force=True)
        await expect_rpc_error(system.service.RefreshToken(refresh))
        assert reason(await watch.result()) == "REAUTHORIZATION_REQUIRED"


@pytest.mark.slow
async def test_a_credential_is_sent_again_before_it_expires(system: System) -> None:
    """The stream reads what is due, and a refresh makes the next token."""
    system.sandbox.behaviour = Behaviour(access_token_lifetime=3)
    number = await system.connect()
    async with watching(system, [number]) as watch:
        tokens = [(await watch.result()).result.credentials.bearer_token for _ in range(3)]
    assert len(set(tokens)) == 3


async def test_a_stream_resumes_after_its_cursor(system: System) -> None:
    ids = [await system.connect(account=account) for account in ("ada", "grace")]
    async with watching(system, ids) as watch:
        cursor = await watch.until_cursor()
    await system.service.RefreshToken(pb.RefreshTokenRequest(integration_id=ids[1], user_id="ada", force=True))
    async with watching(system, ids, cursor=cursor) as watch:
        assert (await watch.result()).integration_id == ids[1]
        assert await watch.is_silent()
    async with watching(system, ids, cursor="not one of ours") as watch:  # everything again
        assert {(await watch.result()).integration_id for _ in ids} == set(ids)


async def test_an_integration_of_another_user_does_not_exist(system: System) -> None:
    number = await system.connect("grace", account="grace")
    async with watching(system, [number, 4711]) as watch:
        responses = [await watch.result(), await watch.result()]
        assert {reason(response) for response in responses} == {"INTEGRATION_NOT_FOUND"}
        await system.service.RefreshToken(pb.RefreshTokenRequest(integration_id=number, user_id="grace", force=True))
        assert await watch.is_silent()


@pytest.mark.parametrize(
    ("ids", "field"),
    [
        ([], "integration_ids"),
        ([1, 0], "integration_ids[1]"),
        ([-1], "integration_ids[0]"),
        (range(1, 5002), "integration_ids"),
    ],
    ids=["none", "zero", "negative", "too-many"],
)
async def test_bad_input_has_the_field(ids: Sequence[int], field: str, system: System) -> None:
    async with watching(system, ids) as watch:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.result()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (caught.value.details() or "")


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="function")
async def test_a_stream_of_a_server_that_stops_resumes_at_another_server(sqlite_url: str) -> None:
    async with AsyncExitStack() as stopping:
        first = await stopping.enter_async_context(run_system(sqlite_url))
        ids = [await first.connect(account=account) for account in ("ada", "grace")]
        # The channel of the system is closed before its server stops.
        async with grpc.aio.insecure_channel(first.grpc_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            request = pb.WatchCredentialsRequest(integration_ids=ids, user_id="ada")
            watch = Watch(IntegrationServiceStub(channel).WatchCredentials(request))
            await watch.until_cursor()
            end = asyncio.create_task(expect_rpc_error(read_to_the_end(watch)))
            await stopping.aclose()
            async with asyncio.timeout(_DEADLINE):
                error = await end
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
    async with run_system(sqlite_url) as second:
        which = pb.DisconnectIntegrationRequest(integration_id=ids[1], user_id="ada")
        await second.service.DisconnectIntegration(which)
        async with watching(second, ids, cursor=watch.cursor) as resumed:
            assert reason(await resumed.result()) == "INTEGRATION_NOT_FOUND"
            assert await resumed.is_silent()


async def read_to_the_end(watch: Watch) -> None:
    """Read until the stream ends with an error."""
    while True:
        await watch.read()


class TestTransactionOfAnotherClient:
    """Another client of the database has a transaction open, so that the order of the events is not final."""

    @pytest.fixture
    async def system(self, postgres_url: str) -> AsyncIterator[System]:
        async with run_system(postgres_url) as system:
            yield system

    @pytest.mark.slow
    @pytest.mark.postgres
    @pytest.mark.asyncio(loop_scope="function")
    async def test_does_not_delay_a_rotation_or_a_revocation(self, system: System, postgres_url: str) -> None:
        number = await system.connect()
        other: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(postgres_url)
        events: Any = system.service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id="ada"))
        try:
            await events.read()  # the cursor
            async with watching(system, [number]) as watch, other.transaction():
                await other.execute("SELECT pg_current_xact_id()")
                first = await watch.result()
                refresh = pb.RefreshTokenRequest(integration_id=number, user_id="ada", force=True)
                await system.service.RefreshToken(refresh)
                rotated = await watch.result()
                disconnect = pb.DisconnectIntegrationRequest(integration_id=number, user_id="ada")
                await system.service.DisconnectIntegration(disconnect)
                gone = await watch.result()
                # Negative control: the event stream, which follows the horizon, waits for the transaction.
                event = asyncio.create_task(next_event(events))
                await asyncio.wait({event}, timeout=1)
                assert not event.done()
            assert rotated.result.credentials.bearer_token != first.result.credentials.bearer_token
            assert reason(gone) == "INTEGRATION_NOT_FOUND"
            async with asyncio.timeout(_DEADLINE):
                assert (await event).integration_id == number
        finally:
            events.cancel()
            await other.close()

    @pytest.mark.slow
    @pytest.mark.postgres
    @pytest.mark.asyncio(loop_scope="function")
    async def test_does_not_hide_what_has_changed_before_a_stream_resumes(
        self, system: System, postgres_url: str
    ) -> None:
        ids = [await system.connect(account=account) for account in ("ada", "grace")]
        other: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(postgres_url)
        try:
            async with other.transaction():
                await other.execute("SELECT pg_current_xact_id()")
                async with watching(system, ids) as watch:
                    cursor = await watch.until_cursor()
                refresh = pb.RefreshTokenRequest(integration_id=ids[1], user_id="ada", force=True)
                await system.service.RefreshToken(refresh)
                async with watching(system, ids, cursor=cursor) as watch:
                    assert (await watch.result()).integration_id == ids[1]
        finally:
            await other.close()
