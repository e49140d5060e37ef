"""`WatchCredentials`: each credential at once, after a refresh, before it expires, and when it is gone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from integration_server.sandbox.behaviour import Behaviour
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.rpc_errors import expect_rpc_error
from tests.end_to_end.system import System

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.quick_on("sqlite")]

_DEADLINE = 30.0  # seconds for one response


class Watch:
    """A stream, and the last cursor that was read."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.cursor = ""

    async def response(self) -> pb.WatchCredentialsResponse:
        """The next response with a result."""
        while True:
            async with asyncio.timeout(_DEADLINE):
                read: pb.WatchCredentialsResponse = await self._call.read()
            self.cursor = read.cursor
            if read.integration_id:
                return read

    async def until_cursor(self) -> str:
        """Read until everything was sent, and there is a cursor."""
        while not self.cursor:
            async with asyncio.timeout(_DEADLINE):
                read = await self._call.read()
            self.cursor = read.cursor
        return self.cursor

    async def is_silent(self) -> bool:
        """Whether nothing but cursors arrives for a moment."""
        try:
            async with asyncio.timeout(1):
                await self.response()
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


def reason(response: pb.WatchCredentialsResponse) -> str:
    """The reason of an error."""
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in response.result.error.details)
    return info.reason


async def test_each_credential_is_sent_at_once_and_after_each_refresh(system: System) -> None:
    ids = [await system.connect(account=account) for account in ("ada", "grace")]
    async with watching(system, [*ids, ids[0]]) as watch:
        first = {response.integration_id: response for response in [await watch.response(), await watch.response()]}
        assert set(first) == set(ids)
        assert all(response.cursor == "" for response in first.values())  # until everything was sent once
        await watch.until_cursor()
        token = first[ids[0]].result.credentials.bearer_token
        assert token == await system.bearer_token(ids[0])
        await system.service.RefreshToken(pb.RefreshTokenRequest(integration_id=ids[0], user_id="ada", force=True))
        again = await watch.response()
        assert again.integration_id == ids[0]
        assert again.result.credentials.bearer_token == await system.bearer_token(ids[0]) != token


async def test_a_credential_that_is_gone_is_reported_at_once(system: System) -> None:
    number = await system.connect()
    async with watching(system, [number]) as watch:
        await watch.response()
        await watch.until_cursor()
        which = pb.DisconnectIntegrationRequest(integration_id=number, user_id="ada")
        await system.service.DisconnectIntegration(which)
        gone = await watch.response()
        assert gone.result.error.code == grpc.StatusCode.NOT_FOUND.value[0]
        assert reason(gone) == "INTEGRATION_NOT_FOUND"


async def test_an_inactive_integration_has_no_credentials_until_it_is_active_again(system: System) -> None:
    number = await system.connect()
    async with watching(system, [number]) as watch:
        await watch.response()
        await watch.until_cursor()
        for is_active in (False, True):
            update = pb.UpdateIntegrationRequest(integration_id=number, user_id="ada", is_active=is_active)
            await system.service.UpdateIntegration(update)
            response = await watch.response()
            assert response.result.HasField("credentials") is is_active
            assert is_active or reason(response) == "INTEGRATION_INACTIVE"


async def test_a_revoked_grant_is_reported(system: System) -> None:
    number = await system.connect()
    async with watching(system, [number]) as watch:
        await watch.response()
        await watch.until_cursor()
        system.sandbox.revoke_grants("ada")
        refresh = pb.RefreshTokenRequest(integration_id=number, user_id="ada", force=True)
        await expect_rpc_error(system.service.RefreshToken(refresh))
        assert reason(await watch.response()) == "REAUTHORIZATION_REQUIRED"


async def test_a_credential_is_sent_again_before_it_expires(system: System) -> None:
    """The stream reads what is due, and a refresh makes the next token."""
    system.sandbox.behaviour = Behaviour(access_token_lifetime=3)
    number = await system.connect()
    async with watching(system, [number]) as watch:
        tokens = [(await watch.response()).result.credentials.bearer_token for _ in range(3)]
    assert len(set(tokens)) == 3


async def test_a_stream_resumes_after_its_cursor(system: System) -> None:
    ids = [await system.connect(account=account) for account in ("ada", "grace")]
    async with watching(system, ids) as watch:
        cursor = await watch.until_cursor()
    await system.service.RefreshToken(pb.RefreshTokenRequest(integration_id=ids[1], user_id="ada", force=True))
    async with watching(system, ids, cursor=cursor) as watch:
        assert (await watch.response()).integration_id == ids[1]
        assert await watch.is_silent()
    async with watching(system, ids, cursor="not one of ours") as watch:  # everything again
        assert {(await watch.response()).integration_id for _ in ids} == set(ids)


async def test_an_integration_of_another_user_does_not_exist(system: System) -> None:
    number = await system.connect("grace", account="grace")
    async with watching(system, [number, 4711]) as watch:
        responses = [await watch.response(), await watch.response()]
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
            await watch.response()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (caught.value.details() or "")
