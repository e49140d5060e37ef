"""Routing of verified events at the app's address: by account, by route, and of those that belong to nobody."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import InvalidField, StoreUnavailable
from integration_server.domain.integration import Integration
from integration_server.domain.webhooks import UnroutedReason, WebhookEvent
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.webhooks.ports import UnroutedWebhook
from integration_server.storage.tables import webhook_routes
from tests.fakes.stores import count_calls
from tests.fakes.system import ADA, EVE, FakeSystem
from tests.unit.service.webhooks.test_webhook_ingestion import APP_SECRET, SECRET, STORED, deliver, deliver_to_app, kept

CHANGE = {"id": "c-1", "account": "a-1", "route": "subscription:s-1"}
LIFECYCLE = {"id": "l-1", "route": "subscription:s-1"}


@pytest.fixture
async def ours(system: FakeSystem) -> Integration:
    """An integration with the account a-1."""
    system.provider.app_secrets = [APP_SECRET]
    return await system.connect_account("a-1")


async def unrouted(
    system: FakeSystem, integration_type: str = "", allowed: AllowedTypes = ALL_INTEGRATION_TYPES
) -> list[UnroutedWebhook]:
    """What an operator sees, the newest first."""
    page = await system.use_cases.unrouted_webhooks.list_unrouted_webhooks(integration_type, 200, "", allowed)
    assert page.next_page_token == ""
    return list(page.items)


# --- routes


async def test_an_event_without_an_account_goes_to_the_account_of_its_subscription(
    system: FakeSystem, ours: Integration
) -> None:
    eves, other = await system.connect_account("a-1", EVE), await system.connect_account("a-2")
    assert await deliver_to_app(system, {**LIFECYCLE, "id": "l-0"}) == STORED
    assert await deliver_to_app(system, LIFECYCLE, CHANGE) == STORED  # also of one request, in any order
    assert await deliver_to_app(system, {**LIFECYCLE, "id": "l-2"}) == STORED
    for recipient in (ours, eves):
        assert [event_id for _, event_id in await kept(system, recipient)] == ["l-1", "c-1", "l-2"]
    assert await kept(system, other) == []
    assert [event.event_id for event in await unrouted(system)] == ["l-0"]


@pytest.mark.parametrize("strangers", [[], ["a-9"], ["a-9", "a-8"]])
async def test_an_event_of_a_subscription_to_several_accounts_reaches_each_of_them(
    system: FakeSystem, ours: Integration, strangers: list[str]
) -> None:
    second, earlier, other = [await system.connect_account(account) for account in ("a-2", "a-3", "a-4")]
    await deliver_to_app(system, {**CHANGE, "id": "c-0", "account": "a-3"})
    changes = [{**CHANGE, "id": f"c-{account}", "account": account} for account in ("a-1", "a-2", *strangers)]
    assert await deliver_to_app(system, *changes, LIFECYCLE) == STORED
    for recipient in (ours, second, earlier):
        assert "l-1" in [event_id for _, event_id in await kept(system, recipient)]
    assert await kept(system, other) == []
    assert {event.event_id for event in await unrouted(system)} == {f"c-{account}" for account in strangers}


async def test_a_route_is_of_a_type_and_of_a_connected_integration(system: FakeSystem, ours: Integration) -> None:
    await deliver_to_app(system, CHANGE)
    assert list(await system.stores.webhook_routes.find("fake_key", {"subscription:s-1"})) == []
    await system.revocation_service.disconnect_integration(ours.integration_id, ADA)
    await deliver_to_app(system, LIFECYCLE)
    assert [event.reason for event in await unrouted(system)] == [UnroutedReason.UNKNOWN_ROUTE]


async def test_an_event_that_names_an_account_is_never_routed_by_its_subscription(
    system: FakeSystem, ours: Integration
) -> None:
    await deliver_to_app(system, CHANGE)
    await deliver_to_app(system, {**CHANGE, "id": "c-2", "account": "a-9"})
    assert [event_id for _, event_id in await kept(system, ours)] == ["c-1"]


async def test_routes_are_not_learned_at_an_integrations_own_address(system: FakeSystem, ours: Integration) -> None:
    """Its user knows the secret of that address, and could claim the subscriptions of others."""
    own = await system.connect_key(webhook_secret=SECRET)
    await deliver(system, own, {"id": "x", "account": "a-1", "route": "subscription:s-9"})
    for integration_type in ("fake", "fake_key"):
        assert list(await system.stores.webhook_routes.find(integration_type, {"subscription:s-9"})) == []


async def test_a_known_route_is_not_written_again_for_a_day(system: FakeSystem, ours: Integration) -> None:
    for number in range(5):
        await deliver_to_app(system, {**CHANGE, "id": f"c-{number}"})
    assert count_calls(system.stores.webhook_routes, "add") == 1
    system.clock.advance(timedelta(days=1, seconds=1))
    await deliver_to_app(system, {**CHANGE, "id": "later"})
    assert count_calls(system.stores.webhook_routes, "add") == 2


async def test_a_route_that_is_not_used_expires(system: FakeSystem, ours: Integration) -> None:
    await deliver_to_app(system, CHANGE)
    system.clock.advance(timedelta(days=59))
    await system.webhook_ingestion.prune()
    await deliver_to_app(system, LIFECYCLE)  # postpones the expiry
    system.clock.advance(timedelta(days=59))
    await system.webhook_ingestion.prune()
    await deliver_to_app(system, {**LIFECYCLE, "id": "l-2"})
    assert [event_id for _, event_id in await kept(system, ours)] == ["l-2"]  # older ones have been pruned
    system.clock.advance(timedelta(days=61))
    await system.webhook_ingestion.prune()
    await deliver_to_app(system, {**LIFECYCLE, "id": "l-3"})
    assert [event.event_id for event in await unrouted(system)] == ["l-3"]


async def test_a_route_that_was_moved_in_the_database_is_ignored(system: FakeSystem, ours: Integration) -> None:
    eves = await system.connect_account("a-2", EVE)
    await deliver_to_app(system, CHANGE)
    system.database.execute(update(webhook_routes).values(integration_id=eves.integration_id))
    await deliver_to_app(system, LIFECYCLE)
    assert await kept(system, eves) == []
    assert [event.event_id for event in await unrouted(system)] == ["l-1"]


async def test_negative_control_without_the_binding_a_moved_route_redirects_events() -> None:
    system = FakeSystem(associated_data_is_checked=False)
    system.provider.app_secrets = [APP_SECRET]
    await system.connect_account("a-1")
    eves = await system.connect_account("a-2", EVE)
    await deliver_to_app(system, CHANGE)
    system.database.execute(update(webhook_routes).values(integration_id=eves.integration_id))
    await deliver_to_app(system, LIFECYCLE)
    assert [event_id for _, event_id in await kept(system, eves)] == ["l-1"]


async def test_the_connection_of_an_account_teaches_its_routes(system: FakeSystem) -> None:
    system.provider.app_secrets = [APP_SECRET]
    system.provider.account = NewAccount("17841", "shop", webhook_routes=("app_user:218471",))
    ours = await system.connect()
    system.clock.advance(timedelta(days=3650))
    await system.webhook_ingestion.prune()
    bye = {"id": "bye", "route": "app_user:218471", "reports_grant_end": True}
    await deliver_to_app(system, bye)
    assert [event_id for _, event_id in await kept(system, ours)] == ["bye"]
    await asyncio.gather(*system.tasks._running)
    assert len(system.provider.verifications) == 2  # to connect, and to confirm the end of the grant


async def test_a_connection_is_kept_although_its_routes_cannot_be_stored(system: FakeSystem) -> None:
    async def fail(*_: Any) -> None:
        raise StoreUnavailable

    linker: Any = system.oauth_callback.token_storage.account_linker
    system.oauth_callback.token_storage.account_linker = replace(linker, add_webhook_routes=fail)
    system.provider.account = NewAccount("17841", "shop", webhook_routes=("app_user:218471",))
    with capture_logs() as logs:
        ours = await system.connect()
    assert ours.is_connected
    assert "webhook_routes_not_stored" in {line["event"] for line in logs}


# --- unrouted events


async def test_an_event_without_a_recipient_is_listed_with_its_reason(system: FakeSystem, ours: Integration) -> None:
    events = [
        {"id": "1", "type": "paid", "account": "gone"},
        {"id": "2", "type": "paid"},
        {"id": "3", "type": "missed", "route": "subscription:never-seen"},
        {"id": "4", "account": "a\0b"},
        {"id": "5", "account": "a" * 300},
        {"id": "6\0", "type": "t\0y", "account": "\ud800"},
        {"id": "7", "account": "a-1"},
    ]
    assert await deliver_to_app(system, *events) == STORED
    listed = await unrouted(system)
    assert [(event.event_id, event.reason, event.account_id, event.route) for event in listed[1:]] == [
        ("5", UnroutedReason.NO_ACCOUNT, None, None),
        ("4", UnroutedReason.NO_ACCOUNT, None, None),
        ("3", UnroutedReason.UNKNOWN_ROUTE, None, "subscription:never-seen"),
        ("2", UnroutedReason.NO_ACCOUNT, None, None),
        ("1", UnroutedReason.UNKNOWN_ACCOUNT, "gone", None),
    ]
    assert listed[0].event_id.startswith("sha256:")
    assert (listed[-1].integration_type, listed[-1].event_type) == ("fake", "paid")
    assert listed[-1].receive_time == system.clock()
    assert listed[-1].payload_bytes == len(b'{"id": "1", "type": "paid", "account": "gone"}')
    assert await kept(system, ours) == [(1, "7")]


def test_each_reason_is_that_of_an_event() -> None:
    event = WebhookEvent("1", "t", None, b"")
    assert UnroutedReason.of(replace(event, is_readable=False)) is UnroutedReason.UNREADABLE
    assert UnroutedReason.of(event) is UnroutedReason.NO_ACCOUNT
    assert UnroutedReason.of(replace(event, route="r")) is UnroutedReason.UNKNOWN_ROUTE
    assert UnroutedReason.of(replace(event, account_id="a", route="r")) is UnroutedReason.UNKNOWN_ACCOUNT


async def test_a_repeated_delivery_is_listed_once(system: FakeSystem, ours: Integration) -> None:
    for _ in range(3):
        await deliver_to_app(system, {"id": "1", "account": "gone"}, {"id": "1", "account": "gone"})
    assert [event.event_id for event in await unrouted(system)] == ["1"]


async def test_an_unrouted_event_that_cannot_be_stored_is_not_accepted(system: FakeSystem, ours: Integration) -> None:
    system.database.is_unavailable = True
    with pytest.raises(StoreUnavailable):
        await deliver_to_app(system, {"id": "1"})
    system.database.is_unavailable = False
    assert await deliver_to_app(system, {"id": "1"}) == STORED


async def test_the_list_is_paged_and_limited_to_allowed_types(system: FakeSystem, ours: Integration) -> None:
    await deliver_to_app(system, *({"id": f"{number:02}"} for number in range(5)))
    log = system.use_cases.unrouted_webhooks
    pages, token = [], ""
    while True:
        page = await log.list_unrouted_webhooks("fake", 2, token, ALL_INTEGRATION_TYPES)
        pages.append([event.event_id for event in page.items])
        token = page.next_page_token
        if not token:
            break
    assert pages == [["04", "03"], ["02", "01"], ["00"]]
    assert await unrouted(system, "fake_key") == []
    assert await unrouted(system, allowed=AllowedTypes(frozenset({"fake_key"}))) == []
    assert len(await unrouted(system, allowed=AllowedTypes(frozenset({"fake", "fake_key"})))) == 5
    token = (await log.list_unrouted_webhooks("fake", 2, "", ALL_INTEGRATION_TYPES)).next_page_token
    with pytest.raises(InvalidField):
        await log.list_unrouted_webhooks("", 2, token, ALL_INTEGRATION_TYPES)


async def test_unrouted_events_are_logged_once_a_minute_with_their_number(
    system: FakeSystem, ours: Integration
) -> None:
    with capture_logs() as logs:
        for number in range(10):
            await deliver_to_app(system, {"id": f"a{number}"}, {"id": f"b{number}", "account": "secret-account"})
        system.clock.advance(timedelta(seconds=61))
        await deliver_to_app(system, {"id": "last", "account": "secret-account"})
    lines = [line for line in logs if line["event"] == "webhook_unrouted"]
    assert [(line["integration_type"], line["events"]) for line in lines] == [("fake", 2), ("fake", 19)]
    assert lines[0]["reasons"] == ["no_account", "unknown_account"]
    assert "secret-account" not in str(lines)  # the provider's text


async def test_unrouted_events_expire(system: FakeSystem, ours: Integration) -> None:
    await deliver_to_app(system, {"id": "1"})
    system.clock.advance(system.server_settings.unrouted_webhook_retention)
    await system.webhook_ingestion.prune()
    assert len(await unrouted(system)) == 1
    system.clock.advance(timedelta(seconds=1))
    await system.webhook_ingestion.prune()
    assert await unrouted(system) == []
