"""Real webhook schemes through the sidecar: odd bodies are kept, batches are split, and lost events are listed."""

import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from integration_server.providers.base import BaseProvider
from integration_server.providers.factory import ProviderFactory
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import operator_service_pb2 as operator_pb
from integrations.v1.operator_service_pb2_grpc import OperatorServiceStub
from tests.end_to_end.system import System, run_system
from tests.signed_webhook_provider import SignedWebhookProvider
from tests.unit.providers.webhooks.samples import SAMPLES

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.quick_on("sqlite")]

NAMES = ("slack", "stripe", "microsoft-graph", "zoom", "xero", "quickbooks")
BY_NAME = {sample.name: sample for sample in SAMPLES}


def type_of(name: str) -> str:
    """An integration type with the scheme of this sample, whose accounts the test chooses."""
    return f"hooks_{name.replace('-', '_')}"


def register_schemes(factory: ProviderFactory, _: str) -> None:
    """Register one type for each scheme."""
    for name in NAMES:
        attributes = {
            "integration_type": type_of(name),
            "aliases": (f"{type_of(name)}_alias",),
            "webhook_scheme": BY_NAME[name].scheme,
            "webhook_secrets": BaseProvider.webhook_secrets,
            "receive_webhook": BaseProvider.receive_webhook,
        }
        factory.register(type_of(name), type("Hooked", (SignedWebhookProvider,), attributes))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_system(shared_database_url: str) -> AsyncIterator[System]:
    """A system with the types."""
    secrets = {f"{type_of(name).upper()}_WEBHOOK_SECRET": BY_NAME[name].secret for name in NAMES}
    async with run_system(shared_database_url, environment=secrets, extra_providers=[register_schemes]) as running:
        yield running


async def connect(system: System, name: str, account: str) -> int:
    request = pb.ConnectWithApiKeyRequest(user_id="ada", integration_type=type_of(name), api_key=f"{account}:key")
    return int((await system.service.ConnectWithApiKey(request)).integration.integration_id)


async def send(system: System, name: str, body: bytes, *, secret: str | None = None) -> int:
    """Send a signed body to the app's address."""
    sample = BY_NAME[name]
    request = sample.sign(secret or sample.secret, body, datetime.now(UTC))
    url = f"{system.sidecar_url}/api/v1/webhooks/{type_of(name)}/app"
    headers = [(header.encode(), value) for header, value in request.headers]
    response = await system.browser.post(url, content=body, headers=headers)
    return response.status_code


async def stored(system: System, integration_id: int) -> list[tuple[str, bytes]]:
    """Type and payload of the events of an integration."""
    request = pb.ListWebhookEventsRequest(integration_id=integration_id, user_id="ada", consumer="c", page_size=200)
    return [(event.event_type, event.payload) for event in (await system.service.ListWebhookEvents(request)).events]


async def unrouted(system: System, name: str = "", **fields: Any) -> Sequence[operator_pb.UnroutedWebhook]:
    stub: Any = OperatorServiceStub(system.channel)
    integration_type = type_of(name) if name else ""
    request = operator_pb.ListUnroutedWebhooksRequest(integration_type=integration_type, **fields)
    return list((await stub.ListUnroutedWebhooks(request)).unrouted_webhooks)


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


SLACK = b'{"type":"event_callback","event_id":"%s","team_id":"%s","event":{"type":"message","text":%s}%s}'

ODD = [
    b'"\\ud83d"',
    b'"a\\u0000b"',
    b"1e999999",
    b"9" * 5000,
    b"[" * 10_000 + b"]" * 10_000,
    b'"caf\xe9"',
    b"NaN",
]


async def test_verified_events_of_slack_are_kept_whatever_their_text(system: System) -> None:
    ours = await connect(system, "slack", "T1")
    bodies = [SLACK % (b"Ev%d" % number, b"T1", odd, b"") for number, odd in enumerate(ODD)]
    bodies.append((SLACK % (b"EvX", b"T1", b'"x"', b"")).decode().encode("utf-16"))
    bodies.append(b"\xef\xbb\xbf" + SLACK % (b"EvY", b"T1", b'"x"', b""))
    bodies.append(b"command=%2Fx&team_id=T1&text=a&text=b")
    for body in bodies * 2:  # each is delivered twice
        assert await send(system, "slack", body) == 200
    assert [payload for _, payload in await stored(system, ours)] == bodies
    assert await unrouted(system) == []


async def test_what_cannot_be_read_is_listed_for_operators(system: System) -> None:
    ours = await connect(system, "slack", "T1")
    for body in (b"", b"<xml/>", b'{"type":"event_call', b"\x00\x00"):
        for _ in range(2):
            assert await send(system, "slack", body) == 200
    listed = await unrouted(system, "slack")
    assert {event.reason for event in listed} == {operator_pb.UNROUTED_REASON_UNREADABLE}
    assert [event.payload_bytes for event in listed] == [2, 19, 6, 0]
    assert all(event.event_id.startswith("sha256-") for event in listed)
    assert await stored(system, ours) == []


async def test_shared_and_organisation_wide_events_of_slack_reach_their_installation(system: System) -> None:
    team, enterprise = await connect(system, "slack", "T1"), await connect(system, "slack", "E1")
    shared = b',"authorizations":[{"team_id":"T1","enterprise_id":null,"is_enterprise_install":false}]'
    wide = b',"authorizations":[{"team_id":"T2","enterprise_id":"E1","is_enterprise_install":true}]'
    lost = b',"authorizations":[{"team_id":"T7","is_enterprise_install":false}]'
    for number, extra in enumerate((shared, wide, lost)):
        assert await send(system, "slack", SLACK % (b"Ev%d" % number, b"T9", b'"x"', extra)) == 200
    assert len(await stored(system, team)) == len(await stored(system, enterprise)) == 1
    (event,) = await unrouted(system, "slack")
    assert (event.event_id, event.event_type, event.account_id) == ("Ev2", "message", "T7")
    assert event.reason == operator_pb.UNROUTED_REASON_UNKNOWN_ACCOUNT


async def test_events_of_stripe_are_routed_by_account_and_context(system: System) -> None:
    ours = await connect(system, "stripe", "acct_1")
    full = b'{"id":"evt_1","type":"charge.succeeded","account":"acct_1","data":{"x":1e400}}'
    thin = b'{"id":"evt_2","object":"v2.core.event","type":"v1.meter","context":"org_6/acct_1"}'
    lost = b'{"id":"evt_3","object":"v2.core.event","type":"v1.meter","context":"org_6/acct_2"}'
    own = b'{"id":"evt_4","type":"payout.paid"}'
    for body in (full, thin, lost, own):
        assert await send(system, "stripe", body) == 200
    assert await stored(system, ours) == [("charge.succeeded", full), ("v1.meter", thin)]
    assert [(event.event_id, event.reason) for event in await unrouted(system, "stripe")] == [
        ("evt_4", operator_pb.UNROUTED_REASON_NO_ACCOUNT),
        ("evt_3", operator_pb.UNROUTED_REASON_UNKNOWN_ACCOUNT),
    ]


async def test_lifecycle_notifications_of_graph_follow_their_subscription(system: System) -> None:
    ours, other = await connect(system, "microsoft-graph", "u1"), await connect(system, "microsoft-graph", "u2")
    state = {"clientState": BY_NAME["microsoft-graph"].secret}
    change = {"subscriptionId": "s1", "changeType": "updated", "resource": "Users/u1/Messages/m1"}
    ended = {"subscriptionId": "s1", "lifecycleEvent": "reauthorizationRequired"}
    unknown = {"subscriptionId": "s9", "lifecycleEvent": "missed"}
    for notification in (change, ended, unknown):
        assert await send(system, "microsoft-graph", compact({"value": [{**notification, **state}]})) == 200
    assert await stored(system, ours) == [
        ("updated", compact(change)),
        ("lifecycle.reauthorizationRequired", compact(ended)),
    ]
    assert await stored(system, other) == []
    (event,) = await unrouted(system, "microsoft-graph")
    assert (event.route, event.reason) == ("subscription:s9", operator_pb.UNROUTED_REASON_UNKNOWN_ROUTE)


async def test_user_events_of_zoom_reach_the_user(system: System) -> None:
    ours = await connect(system, "zoom", "u1")
    bodies = [
        b'{"event":"user.updated","payload":{"account_id":"A","operator_id":"admin","object":{"id":"u1"}}}',
        b'{"event":"meeting.ended","payload":{"account_id":"A","object":{"host_id":"u1","topic":"\\ud83d"}}}',
    ]
    for body in (*bodies, b'{"event":"user.updated","payload":{"account_id":"A","object":{"id":"u7"}}}'):
        assert await send(system, "zoom", body) == 200
    assert [payload for _, payload in await stored(system, ours)] == bodies
    assert [event.account_id for event in await unrouted(system, "zoom")] == ["u7"]


async def test_batches_keep_each_element_byte_for_byte(system: System) -> None:
    xero, quickbooks = await connect(system, "xero", "t1"), await connect(system, "quickbooks", "9")
    elements = [
        b'{ "eventCategory":"A", "eventType":"B","tenantId":"t1", "x" : 1e999999 }',
        b'{"tenantId":"t1","eventCategory":"A","eventType":"\\ud83d","tenantId":"t1"}',
        b'{"tenantId":"t2","eventCategory":"A","eventType":"B"}',
        b"null",
    ]
    assert await send(system, "xero", b'{"events": [%s]}' % b" ,\n".join(elements)) == 200
    assert [payload for _, payload in await stored(system, xero)] == elements[:2]
    lost = await unrouted(system, "xero")
    assert sorted((event.account_id, event.payload_bytes) for event in lost) == [("", 4), ("t2", len(elements[2]))]
    cloud = b'{"id":"e%d","type":"qbo.customer.created.v1","intuitaccountid":"9","n":%d}'
    events = [cloud % (number, number) for number in range(3)]
    assert await send(system, "quickbooks", b"[%s]" % b",".join([*events, b"7"])) == 200
    assert [payload for _, payload in await stored(system, quickbooks)] == events
    assert [event.reason for event in await unrouted(system, "quickbooks")] == [operator_pb.UNROUTED_REASON_UNREADABLE]


async def test_further_documented_shapes_reach_their_account(system: System) -> None:
    org, host = await connect(system, "slack", "E7"), await connect(system, "zoom", "u7")
    platform, user = await connect(system, "stripe", "acct_7"), await connect(system, "microsoft-graph", "u7")
    company = await connect(system, "quickbooks", "7")
    granted = {"enterprise_id": "E7", "team_id": None, "is_enterprise_install": True}
    content = {"data": "eJ" * 40_000, "dataKey": "a2V5", "encryptionCertificateId": "c"}
    rich: dict[str, Any] = {"subscriptionId": "s7", "changeType": "created", "resource": "users('u7')/messages('m')"}
    rich |= {"encryptedContent": content, "tenantId": "t"}
    state = {"clientState": BY_NAME["microsoft-graph"].secret}
    joined = {"event": "meeting.participant_joined", "payload": {"object": {"host_id": "u7", "participant": {}}}}
    cloud = {"specversion": "1.0", "id": "88", "type": "qbo.invoice.updated.v1", "intuitaccountid": "7", "data": {}}
    cases: list[tuple[str, int, dict[str, Any], object]] = [
        ("slack", org, {"type": "event_callback", "event_id": "E", "team_id": None, "authorizations": [granted]}, None),
        ("zoom", host, joined, None),
        ("stripe", platform, {"id": "e", "type": "t", "account": "acct_7", "context": "acct_7"}, None),
        ("microsoft-graph", user, rich, {"value": [rich | state], "validationTokens": ["eyJ"]}),
        ("quickbooks", company, cloud, [cloud, cloud | {"id": "89", "intuitaccountid": "8"}]),
    ]
    for name, integration_id, event, body in cases:
        assert await send(system, name, compact(body or event)) == 200
        assert [payload for _, payload in await stored(system, integration_id)] == [compact(event)]
    assert [event.account_id for event in await unrouted(system)] == ["8"]


async def test_a_link_that_is_posted_in_one_team_reaches_no_other(system: System) -> None:
    ours, other = await connect(system, "slack", "T1"), await connect(system, "slack", "T2")
    body = SLACK % (b"Ev1", b"T1", b'"https://a.example/?a&command=/pay&team_id=T2&text=1"', b"")
    for odd in (b',"is_enterprise_install":[]', b',"authorizations":{"a":1}'):
        assert await send(system, "slack", body[:-1] + odd + b"}") == 200
    assert len(await stored(system, ours)) == 1  # the id is the same
    assert await stored(system, other) == []
    assert await unrouted(system) == []


@pytest.mark.parametrize("name", NAMES)
async def test_negative_control_what_is_not_verified_is_neither_stored_nor_listed(system: System, name: str) -> None:
    body = BY_NAME[name].body.replace(b"our-client-state", b"another")
    assert await send(system, name, body, secret=BY_NAME[name].other_secret) == 401
    assert await unrouted(system) == []
    assert await send(system, name, BY_NAME[name].body) == 200
    (event,) = await unrouted(system)
    assert event.integration_type == type_of(name)


async def test_the_list_is_paged(system: System) -> None:
    for number in range(3):
        await send(system, "stripe", b'{"id":"evt_%d","type":"t"}' % number)
    stub: Any = OperatorServiceStub(system.channel)
    ask = partial(operator_pb.ListUnroutedWebhooksRequest, page_size=2)
    first = await stub.ListUnroutedWebhooks(ask())
    second = await stub.ListUnroutedWebhooks(ask(page_token=first.next_page_token))
    found = [event.event_id for page in (first, second) for event in page.unrouted_webhooks]
    assert (found, second.next_page_token) == (["evt_2", "evt_1", "evt_0"], "")
    aliased = await stub.ListUnroutedWebhooks(ask(integration_type=f"{type_of('stripe')}_alias", page_size=200))
    assert [event.event_id for event in aliased.unrouted_webhooks] == found
