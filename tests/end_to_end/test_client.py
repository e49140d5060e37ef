"""The client with a real server, a sidecar and the sandbox: what an application does with it."""

import asyncio
import base64
import hashlib
import hmac
import time
import uuid
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from integration_server.client import AsyncIntegrations, FileCursorStore, Integrations
from integration_server.client.errors import IntegrationNotFound, InvalidArgument, StateExpired, UnknownIntegrationType
from integration_server.sandbox.behaviour import Behaviour
from integration_server.sandbox.browser_user import decide
from integration_server.sandbox.faults import BAD_JSON
from integrations.v1 import event_pb2
from tests.end_to_end.system import RETURN_URL, System

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def connected(client: AsyncIntegrations, system: System, user: str = "ada", account: str = "ada") -> int:
    """Connect an account of the sandbox, through the browser."""
    connection = await client.connect(user=user, type="sandbox")
    waiting = asyncio.create_task(connection.wait(timeout=60))
    await system.follow(await decide(system.browser, connection.authorization_url, account=account))
    return await (await waiting).integration_id()


async def test_connects_reads_calls_and_disconnects(system: System) -> None:
    async with AsyncIntegrations(system.grpc_address) as client:
        number = await connected(client, system)
        account = client.account(user="ada", type="sandbox")
        assert await account.integration_id() == number
        credentials = await account.credentials()
        assert credentials.headers == {"Authorization": f"Bearer {credentials.access_token}"}
        assert credentials.expire_time is not None

        assert (await account.call("GET", "/userinfo")).json()["sub"]
        async with await account.stream("GET", "/userinfo") as streamed:
            assert streamed.status_code == 200
            assert b"".join([part async for part in streamed]) == (await account.call("GET", "/userinfo")).body
        assert (await account.health()).healthy
        assert (await account.update(name="Work")).name == "Work"
        assert [row.name async for row in client.list(user="ada")] == ["Work"]
        assert "sandbox" in [info.integration_type async for info in client.types()]
        assert [check.healthy async for check in client.check_health(user="ada")] == [True]
        assert len([check async for check in account.health_checks()]) >= 1
        assert (await account.refresh(force=True)).refreshed
        assert (await account.credentials()).access_token != credentials.access_token

        await account.disconnect()
        gone = client.account(user="ada", integration_id=number)

        with pytest.raises(IntegrationNotFound):
            await gone.credentials()


@pytest.mark.slow
async def test_an_account_that_is_connected_again_is_the_same_integration(system: System) -> None:
    async with AsyncIntegrations(system.grpc_address) as client:
        first = await connected(client, system)
        assert await connected(client, system) == first


async def test_a_wait_ends_at_its_timeout(system: System) -> None:
    async with AsyncIntegrations(system.grpc_address) as client:
        connection = await client.connect(user="ada", type="sandbox")
        with pytest.raises(TimeoutError):
            await connection.wait(timeout=0)
        for secret in (connection.authorization_url, connection.attempt.state):
            assert secret
            assert secret not in repr(connection)


async def test_a_wait_goes_on_after_a_refusal_because_the_user_can_go_back_and_allow(system: System) -> None:
    async with AsyncIntegrations(system.grpc_address) as client:
        connection = await client.connect(user="ada", type="sandbox", return_url=RETURN_URL)
        waiting = asyncio.create_task(connection.wait(timeout=60))
        refused = await system.follow(await decide(system.browser, connection.authorization_url, allow=False))
        query = dict(parse_qsl(urlsplit(refused.json()["redirect_url"]).query))
        assert (query["success"], query["reason"]) == ("false", "access_denied")
        with pytest.raises(TimeoutError):
            await connection.wait(timeout=0)
        assert not waiting.done()
        await system.follow(await decide(system.browser, connection.authorization_url, account="ada"))
        assert await (await waiting).integration_id() == connection.integration_id


@pytest.mark.parametrize("is_reconnection", [False, True])
async def test_a_wait_without_a_timeout_ends_when_the_attempt_does(system: System, is_reconnection: bool) -> None:
    async with AsyncIntegrations(system.grpc_address) as client:
        integration_id = await connected(client, system) if is_reconnection else None
        # So that the attempt has expired for the client, whose clock is another.
        system.clock.shift = -timedelta(minutes=12)
        connection = await client.connect(user="ada", type="sandbox", integration_id=integration_id)
        await system.follow(await decide(system.browser, connection.authorization_url, allow=False))
        with pytest.raises(StateExpired):
            await asyncio.wait_for(connection.wait(), 60)


async def test_a_wait_ends_when_the_code_is_rejected(system: System) -> None:
    async with AsyncIntegrations(system.grpc_address) as client:
        connection = await client.connect(user="ada", type="sandbox")
        waiting = asyncio.create_task(connection.wait())
        system.sandbox.behaviour = Behaviour(faults={"token": BAD_JSON})
        await system.follow(await decide(system.browser, connection.authorization_url, account="ada"))
        with pytest.raises(StateExpired):
            await asyncio.wait_for(waiting, 60)


async def test_a_client_without_asyncio_does_the_same(system: System) -> None:
    number = await system.connect()

    def use() -> tuple[str, int, int]:
        with Integrations(system.grpc_address) as client:
            account = client.account(user="ada", type="sandbox")
            token = account.credentials().access_token
            rejected = account.credentials()
            assert account.renew(rejected).access_token != rejected.access_token
            with account.stream("GET", "/userinfo") as streamed:
                assert b"sub" in b"".join(streamed)
            return token, account.integration_id(), account.call("GET", "/userinfo").status_code

    token, found, status = await asyncio.to_thread(use)
    assert token
    assert (found, status) == (number, 200)


async def test_errors_name_their_reason_and_fields(system: System) -> None:
    async with AsyncIntegrations(system.grpc_address) as client:
        with pytest.raises(UnknownIntegrationType):
            await client.connect(user="ada", type="unheard-of")
        with pytest.raises(InvalidArgument) as caught:
            await client.connect(user="", type="sandbox")
        assert [violation.field for violation in caught.value.fields] == ["user_id"]


async def test_events_resume_after_the_last_one_that_was_processed(system: System, tmp_path: Path) -> None:
    store = FileCursorStore(tmp_path / "cursor")
    async with AsyncIntegrations(system.grpc_address) as client:
        events = client.events(user="ada", cursor_store=store)
        first = asyncio.ensure_future(anext(events))
        deadline = time.monotonic() + 60
        while not store.load():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        number = await system.connect()
        event = await asyncio.wait_for(first, 60)
        assert (event.integration_id, event.kind) == (number, event_pb2.INTEGRATION_EVENT_KIND_CREATED)
        await events.aclose()
        again = client.events(user="ada", cursor_store=store)
        assert await asyncio.wait_for(anext(again), 60) == event  # it was not processed completely
        assert (await asyncio.wait_for(anext(again), 60)) != event
        await again.aclose()


async def test_webhook_events_are_acknowledged_when_they_are_processed(system: System) -> None:
    async with AsyncIntegrations(system.grpc_address) as client:
        connection = await client.connect_with_api_key(
            user="ada",
            type="custom",
            api_key=uuid.uuid4().hex,
            config={"webhook_url": "https://provider.example/hooks"},
        )
        account = await connection.wait()
        secret = await account.set_webhook_secret()
        assert secret.webhook_secret not in repr(secret)
        for number in (1, 2, 3):
            body = f'{{"type": "thing.happened", "number": {number}}}'
            event_id, timestamp = f"msg_{uuid.uuid4().hex}", str(int(time.time()))
            key = base64.b64decode(secret.webhook_secret.removeprefix("whsec_"))
            digest = hmac.digest(key, f"{event_id}.{timestamp}.{body}".encode(), hashlib.sha256)
            response = await system.browser.post(
                system.sidecar_url + urlsplit(secret.webhook_url).path,
                content=body,
                headers={
                    "webhook-id": event_id,
                    "webhook-timestamp": timestamp,
                    "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
                },
            )
            assert response.status_code < 300, response.text

        events = account.webhook_events("tests")
        assert [(await anext(events)).number, (await anext(events)).number] == [1, 2]
        await events.aclose()
        assert [event.json()["number"] async for event in account.webhook_events("tests")] == [2, 3]
        assert [event async for event in account.webhook_events("tests")] == []
