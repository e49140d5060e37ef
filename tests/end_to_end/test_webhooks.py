"""Webhooks through the sidecar: storage, delivery and events, with a provider whose webhooks the test signs."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from secrets import token_hex
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from sqlalchemy import select, update

from integration_server.storage.tables import integrations, webhook_events
from integrations.v1 import event_pb2, integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.databases import execute, fetch
from tests.end_to_end.rpc_errors import RpcError, expect_rpc_error
from tests.end_to_end.secret_scanner import assert_no_secrets, dump_rows
from tests.end_to_end.system import PUBLIC_URL, System, next_event, run_system
from tests.end_to_end.webhook_senders import APP_SECRET
from tests.signed_webhook_provider import (
    APP_SECRET_SETTING,
    SIGNED_WEBHOOK,
    SignedWebhookProvider,
    register_signed_webhook_provider,
    signature_headers,
    webhook_body,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "the secret of one integration"
PAYLOAD = "what only the consumer should read"
APP_PATH = f"/api/v1/webhooks/{SIGNED_WEBHOOK}/app"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_system(shared_database_url: str) -> AsyncIterator[System]:
    """A system with the provider."""
    async with run_system(
        shared_database_url,
        environment={APP_SECRET_SETTING: APP_SECRET},
        extra_providers=[lambda factory, _: register_signed_webhook_provider(factory)],
    ) as running:
        yield running


def watch(system: System, request: pb.WatchIntegrationsRequest) -> Any:
    """A stream of events, untyped."""
    return system.service.WatchIntegrations(request)


async def connect(system: System, account: str = "acct-1", user_id: str = "ada", secret: str = SECRET) -> int:
    connected = await system.service.ConnectWithApiKey(
        pb.ConnectWithApiKeyRequest(
            user_id=user_id, integration_type=SIGNED_WEBHOOK, api_key=f"{account}:key", webhook_secret=secret
        )
    )
    return int(connected.integration.integration_id)


async def path_of(system: System, integration_id: int, user_id: str = "ada") -> str:
    """The path of an integration's webhook URL."""
    endpoint = await system.service.GetWebhookEndpoint(
        pb.GetWebhookEndpointRequest(integration_id=integration_id, user_id=user_id)
    )
    assert endpoint.webhook_url.startswith(f"{PUBLIC_URL}/api/v1/webhooks/{SIGNED_WEBHOOK}/")
    return str(endpoint.webhook_url.removeprefix(PUBLIC_URL))


async def deliver(system: System, path: str, *events: Mapping[str, Any], secret: str = SECRET) -> httpx.Response:
    body = webhook_body(*events)
    return await system.browser.post(system.sidecar_url + path, content=body, headers=signature_headers(body, secret))


def listing(integration_id: int, **fields: Any) -> pb.ListWebhookEventsRequest:
    return pb.ListWebhookEventsRequest(
        **{"integration_id": integration_id, "user_id": "ada", "consumer": "mail", **fields}
    )


async def stored_events(system: System, integration_id: int, user_id: str = "ada") -> list[tuple[int, str, str]]:
    page = await system.service.ListWebhookEvents(listing(integration_id, user_id=user_id, page_size=200))
    return [(event.number, event.event_id, event.event_type) for event in page.events]


@pytest.mark.slow
async def test_an_event_is_delivered_from_the_provider_to_the_consumer(system: System) -> None:
    integration_id = await connect(system)
    path = await path_of(system, integration_id)
    response = await deliver(system, path, {"id": "e-1", "type": "paid"})
    assert (response.status_code, response.content) == (202, b"ok")
    await deliver(system, APP_PATH, {"id": "e-2", "account": "acct-1"}, secret=APP_SECRET)
    await deliver(system, path, {"id": "e-1", "type": "paid"})  # again
    assert await stored_events(system, integration_id) == [(1, "e-1", "paid"), (2, "e-2", "changed")]
    page = await system.service.ListWebhookEvents(listing(integration_id))
    assert page.events[0].payload == b'{"id": "e-1", "type": "paid"}'
    acked = await system.service.AckWebhookEvents(
        pb.AckWebhookEventsRequest(integration_id=integration_id, user_id="ada", consumer="mail", through_number=1)
    )
    assert acked.through_number == 1
    assert [number for number, _, _ in await stored_events(system, integration_id)] == [2]


async def test_a_large_batch_is_stored_in_several_deliveries(system: System, shared_database_url: str) -> None:
    integration_id = await connect(system)
    path = await path_of(system, integration_id)
    batch = [{"id": f"e-{number}"} for number in range(1500)]
    refused = await deliver(system, path, *batch)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert (await deliver(system, path, *batch)).status_code == 202
    query = select(webhook_events.c.event_id).where(webhook_events.c.integration_id == integration_id)
    rows = await fetch(shared_database_url, query.order_by(webhook_events.c.number))
    assert [row.event_id for row in rows] == [event["id"] for event in batch]


async def test_the_handshake_of_a_webhook_endpoint_is_completed(system: System) -> None:
    query = "challenge=hello%20there"
    url = f"{system.sidecar_url}{APP_PATH}?{query}"
    response = await system.browser.get(url, headers=signature_headers(query.encode(), APP_SECRET))
    assert (response.status_code, response.content, response.headers["x-handshake"]) == (200, b"hello there", "yes")
    assert (await system.browser.get(url)).status_code == 401


@pytest.mark.slow
async def test_forged_and_unroutable_webhooks_are_not_stored(system: System, shared_database_url: str) -> None:
    integration_id = await connect(system)
    path = await path_of(system, integration_id)
    other = await path_of(system, await connect(system, "acct-2", secret="the secret of another one"))
    assert (await deliver(system, path, {"id": "e"}, secret=APP_SECRET)).status_code == 401
    assert (await deliver(system, other, {"id": "e"})).status_code == 401
    assert (await deliver(system, APP_PATH, {"id": "e", "account": "acct-1"})).status_code == 401
    assert (await system.browser.post(system.sidecar_url + path, content=webhook_body({"id": "e"}))).status_code == 401
    for nowhere in (
        path[:-1] + ("A" if path[-1] != "A" else "B"),
        path.replace(SIGNED_WEBHOOK, "sandbox"),
        "/api/v1/webhooks/sandbox/app",
        "/api/v1/webhooks/no_such_type/app",
    ):
        assert (await deliver(system, nowhere, {"id": "e"})).status_code == 404
    assert await fetch(shared_database_url, select(webhook_events)) == []


async def test_an_oversized_webhook_body_is_rejected(system: System) -> None:
    body = b"x" * (10 * 1024 * 1024)
    response = await system.browser.post(
        system.sidecar_url + APP_PATH, content=body, headers=signature_headers(body, APP_SECRET)
    )
    assert response.status_code == 413


@pytest.mark.slow
@pytest.mark.quick_on("postgres")
async def test_a_large_event_is_delivered(system: System) -> None:
    integration_id = await connect(system)
    path = await path_of(system, integration_id)
    for number in range(6):
        response = await deliver(system, path, {"id": f"e-{number}", "text": "x" * 1_000_000})
        assert response.status_code == 202
    request, seen = listing(integration_id, page_size=200), []
    while True:
        page = await system.service.ListWebhookEvents(request)
        seen += [event.number for event in page.events]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
async def test_a_webhook_secret_is_replaced_without_a_gap(system: System, shared_database_url: str) -> None:
    integration_id = await connect(system)
    path = await path_of(system, integration_id)
    which: dict[str, Any] = {"integration_id": integration_id, "user_id": "ada"}
    made = await system.service.SetWebhookSecret(pb.SetWebhookSecretRequest(**which))
    assert made.webhook_url == PUBLIC_URL + path
    assert made.HasField("previous_expire_time")
    await asyncio.sleep(1.1)  # the cached endpoint has expired
    for number, secret in enumerate((SECRET, made.webhook_secret)):
        assert (await deliver(system, path, {"id": f"e-{number}", "text": PAYLOAD}, secret=secret)).status_code == 202
    secrets = {"webhook secret": [made.webhook_secret, SECRET], "payload": [PAYLOAD]}
    sources = {"rows": await dump_rows(shared_database_url), "log": system.logs.getvalue().encode()}
    assert_no_secrets(secrets, sources)
    endpoint = await system.service.GetWebhookEndpoint(pb.GetWebhookEndpointRequest(**which))
    assert endpoint.has_secret
    assert endpoint.previous_expire_time == made.previous_expire_time


async def test_a_type_without_webhooks_is_rejected(system: System) -> None:
    which: dict[str, Any] = {"integration_id": await system.connect(), "user_id": "ada"}
    refused = await expect_rpc_error(system.service.GetWebhookEndpoint(pb.GetWebhookEndpointRequest(**which)))
    assert refused == RpcError(grpc.StatusCode.FAILED_PRECONDITION, "WEBHOOKS_NOT_SUPPORTED")


async def test_an_integration_is_not_served_after_its_account_revokes_access(system: System) -> None:
    """The webhook alone, which may be a replay, ends nothing: the provider is asked."""
    revoked, other = f"acct-{token_hex(4)}", f"acct-{token_hex(4)}"
    first, second = await connect(system, revoked), await connect(system, other)
    for integration_id in (first, second):  # both are cached
        await system.service.GetCredentials(pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada"))
    SignedWebhookProvider.revoked_accounts.add(revoked)
    stream = watch(system, pb.WatchIntegrationsRequest(user_id="ada"))
    await stream.read()
    for account in (other, revoked):
        bye = {"id": f"bye-{account}", "account": account, "reports_grant_end": True}
        await deliver(system, APP_PATH, bye, secret=APP_SECRET)
    async with asyncio.timeout(60):
        while (await next_event(stream)).status_after != integration_pb2.STATUS_EXPIRED:
            pass
    stream.cancel()
    refused = await expect_rpc_error(
        system.service.GetCredentials(pb.GetCredentialsRequest(integration_id=first, user_id="ada"))
    )
    assert refused.reason == "REAUTHORIZATION_REQUIRED"
    await system.service.GetCredentials(pb.GetCredentialsRequest(integration_id=second, user_id="ada"))
    assert (await system.get(second)).status == integration_pb2.STATUS_ACTIVE


async def test_a_moved_or_altered_payload_cannot_be_decrypted(system: System, shared_database_url: str) -> None:
    integration_id = await connect(system)
    await deliver(system, await path_of(system, integration_id), {"id": "e-1"}, {"id": "e-2"})
    rows = await fetch(shared_database_url, select(webhook_events).order_by(webhook_events.c.number))
    first, second = (row.encrypted_payload for row in rows)
    for value in (second, first[:-1] + bytes([first[-1] ^ 1])):
        is_first = webhook_events.c.number == 1
        await execute(shared_database_url, update(webhook_events).where(is_first).values(encrypted_payload=value))
        refused = await expect_rpc_error(system.service.ListWebhookEvents(listing(integration_id)))
        assert refused == RpcError(grpc.StatusCode.DATA_LOSS, "CREDENTIALS_UNREADABLE")


async def test_the_event_stream_reports_changes_as_they_occur(system: System) -> None:
    stream = watch(system, pb.WatchIntegrationsRequest(user_id="ada"))
    begin = await stream.read()
    integration_id = await connect(system)
    await deliver(system, await path_of(system, integration_id), {"id": "e-1"})
    which: dict[str, Any] = {"integration_id": integration_id, "user_id": "ada"}
    await system.service.UpdateIntegration(pb.UpdateIntegrationRequest(**which, is_active=False))
    await system.service.DisconnectIntegration(pb.DisconnectIntegrationRequest(**which))
    reported = [await next_event(stream) for _ in range(5)]
    stream.cancel()
    kinds = event_pb2.IntegrationEventKind
    assert [kinds.Name(event.kind).removeprefix("INTEGRATION_EVENT_KIND_") for event in reported] == [
        "CREATED",
        "WEBHOOK_RECEIVED",
        "UPDATED",
        "STATUS_CHANGED",
        "DISCONNECTED",
    ]
    assert {event.integration_id for event in reported} == {integration_id}
    assert reported[1].webhook_event_number == 1
    again = watch(system, pb.WatchIntegrationsRequest(user_id="ada", cursor=begin.cursor))
    assert not (await again.read()).HasField("event")
    assert [await next_event(again) for _ in range(5)] == reported
    again.cancel()


@pytest.mark.slow
@pytest.mark.quick_on("postgres")
async def test_a_slow_reader_delays_no_other_and_misses_no_event(system: System, shared_database_url: str) -> None:
    """The number of events exceeds all buffers."""
    integration_id = await connect(system)
    slow, quick = (watch(system, pb.WatchIntegrationsRequest()) for _ in range(2))
    for stream in (slow, quick):
        await stream.read()
    changes = 2000
    rename = [update(integrations).values(name=str(number)) for number in range(changes)]
    await execute(shared_database_url, *rename)
    async with asyncio.timeout(60):
        seen = [await next_event(quick) for _ in range(changes)]
        await connect(system, "acct-3")  # while the slow stream is far behind
        seen += await read_until_created(quick)
        assert await read_until_created(slow) == seen
    assert {event.integration_id for event in seen[:changes]} == {integration_id}
    for stream in (slow, quick):
        stream.cancel()


async def read_until_created(stream: Any) -> list[event_pb2.IntegrationEvent]:
    """All events up to the next creation of an integration."""
    events: list[event_pb2.IntegrationEvent] = []
    while not events or events[-1].kind != event_pb2.INTEGRATION_EVENT_KIND_CREATED:
        events.append(await next_event(stream))
    return events


@pytest.mark.slow
@pytest.mark.quick_on("postgres")
async def test_a_cursor_that_is_too_old_is_rejected(shared_database_url: str) -> None:
    async with run_system(shared_database_url, EVENT_RETENTION_DAYS=str(1 / 86_400)) as system:
        stream = watch(system, pb.WatchIntegrationsRequest())
        cursor = (await stream.read()).cursor
        stream.cancel()
        await asyncio.sleep(1.1)
        stream = watch(system, pb.WatchIntegrationsRequest(cursor=cursor))
        assert await expect_rpc_error(stream.read()) == RpcError(grpc.StatusCode.FAILED_PRECONDITION, "CURSOR_EXPIRED")


@pytest.mark.slow
@pytest.mark.quick_on("postgres")
async def test_a_stopping_server_ends_its_streams_with_server_stopping(shared_database_url: str) -> None:
    async with AsyncExitStack() as stack:
        async with run_system(shared_database_url) as system:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(system.grpc_address))
            service: Any = IntegrationServiceStub(channel)
            stream = service.WatchIntegrations(pb.WatchIntegrationsRequest())
            await stream.read()
        assert (await stream.read()).cursor  # the last one
        refused = await expect_rpc_error(stream.read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
