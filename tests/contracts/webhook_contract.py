"""The contracts of `WebhookInbox` and `WebhookEndpoints`, which every implementation passes."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration
from integration_server.domain.webhooks import UnroutedReason
from integration_server.service.connections.ports import AuthorizationAttemptStore
from integration_server.service.webhooks.ports import (
    NewUnroutedWebhook,
    NewWebhookEvent,
    NewWebhookRoute,
    StoredWebhookSecrets,
    UnroutedWebhook,
    UnroutedWebhooks,
    WebhookEndpoint,
    WebhookEndpoints,
    WebhookInbox,
    WebhookPage,
    WebhookRoutes,
)
from tests.contracts.integration_rows import (
    ANN,
    BOB,
    LARGEST_ID,
    LATER,
    NOW,
    IntegrationRows,
    account,
    create_connected,
    create_pending,
    new_credentials,
    new_integration,
    reload,
)

LARGE_PAGE = 1 << 20

_numbers: Iterator[int] = itertools.count()


def new_event(integration: Integration, event_id: str, **changes: Any) -> NewWebhookEvent:
    """An event to store."""
    defaults = NewWebhookEvent(
        integration, f"event-uid-{next(_numbers)}", event_id, "changed", LATER, b"encrypted payload"
    )
    return replace(defaults, **changes)


def stored(integration: Integration) -> StoredIntegration:
    """An integration with its credentials."""
    return StoredIntegration(integration, b"encrypted")


def numbers_and_ids(page: WebhookPage) -> list[tuple[int, str]]:
    """The number and id of each event of a page."""
    return [(event.number, event.event_id) for event in page.events]


async def list_all(inbox: WebhookInbox, integration: Integration) -> list[tuple[int, str]]:
    """All events of an integration."""
    return numbers_and_ids(await inbox.list(integration, 0, 1000, LARGE_PAGE))


class WebhookInboxContract:
    """Subclasses provide the fixtures `inbox`, `integrations` and `attempts`."""

    async def test_events_are_stored_unchanged(self, integrations: IntegrationRows, inbox: WebhookInbox) -> None:
        integration = await create_connected(integrations)
        event = new_event(integration, "e-1", event_type="paid", encrypted_payload=b"\0encrypted")
        assert list(await inbox.add([event])) == [event]
        (stored,) = (await inbox.list(integration, 0, 10, LARGE_PAGE)).events
        assert (stored.number, stored.uid, stored.event_id, stored.event_type) == (1, event.uid, "e-1", "paid")
        assert (stored.receive_time, stored.encrypted_payload) == (LATER, b"\0encrypted")

    async def test_events_are_numbered_for_each_integration_without_gaps(
        self, integrations: IntegrationRows, inbox: WebhookInbox
    ) -> None:
        first, second = await create_connected(integrations), await create_connected(integrations, BOB)
        await inbox.add([new_event(first, "a"), new_event(second, "a"), new_event(first, "b")])
        await inbox.add([new_event(second, "c")])
        assert await list_all(inbox, first) == [(1, "a"), (2, "b")]
        assert await list_all(inbox, second) == [(1, "a"), (2, "c")]

    async def test_an_event_is_stored_once(self, integrations: IntegrationRows, inbox: WebhookInbox) -> None:
        integration, other = await create_connected(integrations), await create_connected(integrations)
        await inbox.add([new_event(integration, "a"), new_event(integration, "a")])
        second_delivery = [new_event(integration, "a"), new_event(integration, "b"), new_event(other, "a")]
        assert list(await inbox.add(second_delivery)) == second_delivery[1:]
        assert list(await inbox.add(second_delivery)) == []
        assert await list_all(inbox, integration) == [(1, "a"), (2, "b")]
        integration_ids = [integration.integration_id, other.integration_id]
        assert set(await inbox.known(integration_ids, ["a", "b", "c"])) == {
            (integration_ids[0], "a"),
            (integration_ids[0], "b"),
            (integration_ids[1], "a"),
        }

    async def test_concurrent_deliveries_are_numbered_without_gaps(
        self, integrations: IntegrationRows, inbox: WebhookInbox
    ) -> None:
        integration = await create_connected(integrations)
        deliveries = [[new_event(integration, f"e-{number % 10}")] for number in range(20)]
        added = await asyncio.gather(*(inbox.add(delivery) for delivery in deliveries))
        assert sum(map(len, added)) == 10
        stored = await list_all(inbox, integration)
        assert [number for number, _ in stored] == list(range(1, 11))
        assert len({event_id for _, event_id in stored}) == 10

    async def test_deliveries_that_share_events_store_each_once(
        self, integrations: IntegrationRows, inbox: WebhookInbox
    ) -> None:
        first, second = await create_connected(integrations), await create_connected(integrations)
        sharing = [
            [new_event(first, f"e-{number}"), new_event(first, f"e-{number + 1}"), new_event(second, f"e-{number + 1}")]
            for number in range(10)
        ]
        added = await asyncio.gather(*(inbox.add(delivery) for delivery in sharing))
        assert sum(map(len, added)) == 11 + 10
        for integration, count in ((first, 11), (second, 10)):
            stored = await list_all(inbox, integration)
            assert [number for number, _ in stored] == list(range(1, count + 1))
            assert len({event_id for _, event_id in stored}) == count

    async def test_deliveries_in_opposite_order_do_not_deadlock(
        self, integrations: IntegrationRows, inbox: WebhookInbox
    ) -> None:
        first, second = await create_connected(integrations), await create_connected(integrations)
        crossing = [
            [new_event(row, f"e-{number}") for row in order]
            for number in range(10)
            for order in ((first, second), (second, first))
        ]
        await asyncio.gather(*(inbox.add(delivery) for delivery in crossing))
        assert len(await list_all(inbox, first)) == len(await list_all(inbox, second)) == 10

    async def test_unknown_and_pending_integrations_store_nothing(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore, inbox: WebhookInbox
    ) -> None:
        removed, unfinished = await create_connected(integrations), await create_pending(integrations, attempts)
        await inbox.add([new_event(removed, "before")])
        await integrations.remove(removed.integration_id, ANN)
        assert not await inbox.add([new_event(removed, "a"), new_event(unfinished, "a")])
        assert not await list_all(inbox, removed)
        assert await inbox.acknowledge(removed, "c", 1) is None

    async def test_another_user_finds_nothing(self, integrations: IntegrationRows, inbox: WebhookInbox) -> None:
        anns = await create_connected(integrations)
        await inbox.add([new_event(anns, "a")])
        bobs = replace(anns, user_id=BOB)
        assert not await list_all(inbox, bobs)
        assert await inbox.acknowledge(bobs, "c", 1) is None

    async def test_pages_are_limited_by_number_and_size(
        self, integrations: IntegrationRows, inbox: WebhookInbox
    ) -> None:
        integration = await create_connected(integrations)
        sizes = [100, 100, 100, 500, 100]
        events = [
            new_event(integration, f"e-{index}", encrypted_payload=b"x" * size) for index, size in enumerate(sizes)
        ]
        await inbox.add(events)
        for after, limit, max_bytes, expected, is_last in (
            (0, 2, 1000, [1, 2], False),
            (0, 10, 250, [1, 2], False),
            (2, 10, 100, [3], False),
            (3, 10, 100, [4], False),  # larger than a page, and alone on its page
            (3, 2, 1000, [4, 5], True),
            (4, 10, 1, [5], True),
            (5, 10, 1000, [], True),
        ):
            page = await inbox.list(integration, after, limit, max_bytes)
            assert ([event.number for event in page.events], page.is_last) == (expected, is_last)

    async def test_a_consumer_offset_moves_forward_only(
        self, integrations: IntegrationRows, inbox: WebhookInbox
    ) -> None:
        integration, other = await create_connected(integrations), await create_connected(integrations)
        await inbox.add([new_event(integration, f"e-{number}") for number in range(3)])
        assert await inbox.consumer_offset(integration, "mail") == 0
        assert await inbox.acknowledge(integration, "mail", 2) == 2
        assert await inbox.acknowledge(integration, "mail", 1) == 2
        assert await inbox.consumer_offset(integration, "mail") == 2
        assert await inbox.consumer_offset(integration, "billing") == await inbox.consumer_offset(other, "mail") == 0
        assert await inbox.acknowledge(integration, "mail", 4) is None
        assert await inbox.acknowledge(integration, "mail", LARGEST_ID) is None
        assert await inbox.acknowledge(other, "mail", 1) is None
        assert await inbox.consumer_offset(integration, "mail") == 2

    async def test_pruned_numbers_are_not_reused(self, integrations: IntegrationRows, inbox: WebhookInbox) -> None:
        integration = await create_connected(integrations)
        await inbox.add([new_event(integration, "old", receive_time=NOW)])
        await inbox.add([new_event(integration, "new")])
        assert await inbox.prune(LATER) == 1
        assert await inbox.prune(LATER) == 0
        assert await list_all(inbox, integration) == [(2, "new")]
        assert await inbox.prune(LATER + timedelta(days=1)) == 1
        await inbox.add([new_event(integration, "old")])
        assert await list_all(inbox, integration) == [(3, "old")]

    async def test_an_event_that_reports_the_end_of_a_grant_causes_a_check_and_ends_nothing(
        self, integrations: IntegrationRows, inbox: WebhookInbox
    ) -> None:
        checked = await integrations.add_connected(
            new_integration(ANN), account(None), new_credentials(), NOW, check_due_time=LATER + timedelta(days=999)
        )
        assert checked is not None
        unchecked = await create_connected(integrations)
        await inbox.add([new_event(one, "a", reports_grant_end=True) for one in (checked, unchecked)])
        after = await reload(integrations, checked)
        assert after.check_due_time is not None
        assert after.check_due_time < LATER + timedelta(days=999)
        assert replace(after, check_due_time=checked.check_due_time) == checked
        assert await reload(integrations, unchecked) == unchecked

    async def test_recipients_are_connected_integrations_of_the_account(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore, inbox: WebhookInbox
    ) -> None:
        anns = await create_connected(integrations, ANN, "a-1")
        bobs = await create_connected(integrations, BOB, "a-1")
        second = await create_connected(integrations, ANN, "a-2")
        await create_connected(integrations, ANN, "a-1", integration_type="other")
        await create_connected(integrations, ANN, None)
        await create_pending(integrations, attempts)
        first, both = [stored(anns), stored(bobs)], [stored(anns), stored(bobs), stored(second)]
        assert list(await inbox.find_recipients("acme", ["a-1"], IntegrationId(0), 100)) == first
        assert list(await inbox.find_recipients("acme", ["a-1", "a-2"], IntegrationId(0), 100)) == both
        assert list(await inbox.find_recipients("acme", ["a-3"], IntegrationId(0), 100)) == []


class WebhookEndpointsContract:
    """Subclasses provide the fixtures `endpoints`, `integrations` and `attempts`."""

    async def test_an_endpoint_is_found_by_type_and_uid(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore, endpoints: WebhookEndpoints
    ) -> None:
        integration, unfinished = await create_connected(integrations), await create_pending(integrations, attempts)
        stored = await integrations.find(integration.integration_id, ANN)
        assert stored is not None
        assert await endpoints.find("acme", integration.uid) == WebhookEndpoint(stored, None)
        assert await endpoints.find("other", integration.uid) is None
        assert await endpoints.find("acme", "no-such-uid") is None
        assert await endpoints.find("acme", unfinished.uid) is None
        found = await endpoints.find_by_id(unfinished.integration_id, ANN)
        assert found is not None
        assert found.stored.integration == unfinished
        assert await endpoints.find_by_id(integration.integration_id, BOB) is None

    async def test_secrets_are_replaced_if_unchanged(
        self, integrations: IntegrationRows, endpoints: WebhookEndpoints
    ) -> None:
        integration = await create_connected(integrations)
        first = StoredWebhookSecrets("id-1", b"first", NOW)
        second = StoredWebhookSecrets("id-2", b"second", LATER, b"first", LATER + timedelta(days=1))
        assert await endpoints.set_secrets(integration, first, b"bound to 1")
        assert not await endpoints.set_secrets(integration, second, b"bound to 2")
        integration = await reload(integrations, integration)
        assert await endpoints.set_secrets(integration, second, b"bound to 2")
        assert not await endpoints.set_secrets(integration, second, b"bound to 2")
        found = await endpoints.find("acme", integration.uid)
        assert found is not None
        assert found.secrets == second
        assert found.stored.integration.webhook_secret_id == "id-2"
        assert found.stored.encrypted_credentials == b"bound to 2"

    async def test_secrets_of_other_users_or_deleted_integrations_are_not_set(
        self, integrations: IntegrationRows, endpoints: WebhookEndpoints
    ) -> None:
        anns, removed = await create_connected(integrations), await create_connected(integrations)
        first = StoredWebhookSecrets("id-1", b"first", NOW)
        await integrations.remove(removed.integration_id, ANN)
        for other in (removed, replace(anns, integration_id=IntegrationId(10_000)), replace(anns, user_id=BOB)):
            assert not await endpoints.set_secrets(other, first, b"bound")
        found = await endpoints.find("acme", anns.uid)
        assert found is not None
        assert found.secrets is None


def new_unrouted(event_id: str, size: int = 10, integration_type: str = "stripe", **changes: Any) -> NewUnroutedWebhook:
    """An unrouted event to store."""
    defaults = UnroutedWebhook(integration_type, event_id, "paid", "a", None, UnroutedReason.UNKNOWN_ACCOUNT, 7, LATER)
    return NewUnroutedWebhook(f"uid-{next(_numbers)}", replace(defaults, **changes), b"\0" * size)


class UnroutedWebhooksContract:
    """Subclasses provide the fixture `unrouted`, with at most 5 rows and 1,000 bytes of each type."""

    async def ids(self, unrouted: UnroutedWebhooks, integration_type: str = "") -> list[str]:
        """The ids of what is kept, the newest first."""
        rows = await unrouted.list(integration_type, ALL_INTEGRATION_TYPES, None, 100)
        assert [number for number, _ in rows] == sorted((number for number, _ in rows), reverse=True)
        return [event.event_id for _, event in rows]

    async def test_unrouted_events_are_listed_unchanged(self, unrouted: UnroutedWebhooks) -> None:
        events = [
            new_unrouted("é", reason=UnroutedReason.UNREADABLE, account_id=None, payload_bytes=0),
            new_unrouted("x" * 255, event_type="t" * 255, account_id="a" * 255, route="r" * 255),
        ]
        await unrouted.add(events)
        rows = await unrouted.list("", ALL_INTEGRATION_TYPES, None, 10)
        assert {event for _, event in rows} == {new.event for new in events}

    async def test_unrouted_events_are_stored_once_by_type_and_id(self, unrouted: UnroutedWebhooks) -> None:
        await unrouted.add([new_unrouted("a"), new_unrouted("a"), new_unrouted("b")])
        await unrouted.add([new_unrouted("b", account_id="other"), new_unrouted("c")])
        await unrouted.add([new_unrouted("a", integration_type="square")])
        assert sorted(await self.ids(unrouted)) == ["a", "a", "b", "c"]
        assert await self.ids(unrouted, "square") == ["a"]
        assert (await unrouted.list("stripe", ALL_INTEGRATION_TYPES, None, 10))[1][1].account_id == "a"

    async def test_unrouted_events_are_limited_for_each_type(self, unrouted: UnroutedWebhooks) -> None:
        await unrouted.add([new_unrouted("mine", integration_type="square")])
        for number in range(8):
            await unrouted.add([new_unrouted(f"e-{number}")])
        assert await self.ids(unrouted, "stripe") == ["e-7", "e-6", "e-5", "e-4", "e-3"]
        await unrouted.add([new_unrouted("large", size=900), new_unrouted("larger", size=95)])
        assert await self.ids(unrouted, "stripe") == ["larger", "large"]
        await unrouted.add([new_unrouted("too large", size=1001)])
        assert await self.ids(unrouted, "stripe") == []
        assert await self.ids(unrouted, "square") == ["mine"]

    async def test_concurrent_unrouted_events_are_limited(self, unrouted: UnroutedWebhooks) -> None:
        await asyncio.gather(
            *(unrouted.add([new_unrouted(f"{one}-{other}") for other in range(4)]) for one in range(10))
        )
        await unrouted.add([new_unrouted("last")])
        kept = await self.ids(unrouted)
        assert len(kept) == 5
        assert kept[0] == "last"

    async def test_unrouted_events_are_paged_and_filtered(self, unrouted: UnroutedWebhooks) -> None:
        await unrouted.add([new_unrouted(f"e-{number}") for number in range(4)])
        await unrouted.add([new_unrouted("mine", integration_type="square")])
        first = await unrouted.list("stripe", ALL_INTEGRATION_TYPES, None, 3)
        rest = await unrouted.list("stripe", ALL_INTEGRATION_TYPES, first[-1][0], 3)
        assert [event.event_id for _, event in (*first, *rest)] == ["e-3", "e-2", "e-1", "e-0"]
        assert await unrouted.list("stripe", AllowedTypes(frozenset({"square"})), None, 3) == []
        (only,) = await unrouted.list("", AllowedTypes(frozenset({"square", "x"})), None, 3)
        assert only[1].event_id == "mine"
        assert await unrouted.list("", AllowedTypes(frozenset()), None, 3) == []

    async def test_old_unrouted_events_are_pruned(self, unrouted: UnroutedWebhooks) -> None:
        await unrouted.add([new_unrouted("old", receive_time=NOW), new_unrouted("new")])
        assert [await unrouted.prune(LATER) for _ in range(2)] == [1, 0]
        assert await self.ids(unrouted) == ["new"]


class WebhookRoutesContract:
    """Subclasses provide the fixtures `routes`, `inbox`, `integrations` and `attempts`."""

    async def test_routes_are_found_by_type(self, integrations: IntegrationRows, routes: WebhookRoutes) -> None:
        first, second = await create_connected(integrations), await create_connected(integrations, BOB)
        await routes.add([NewWebhookRoute(first, "r", b"1"), NewWebhookRoute(second, "r", b"2")], LATER)
        await routes.add([NewWebhookRoute(second, "s", b"3")], None)
        assert set(await routes.find(first.integration_type, {"r", "s", "t"})) == {
            ("r", first.integration_id, b"1"),
            ("r", second.integration_id, b"2"),
            ("s", second.integration_id, b"3"),
        }
        assert list(await routes.find("another", {"r"})) == []
        assert list(await routes.find(first.integration_type, set())) == []

    async def test_a_route_that_is_added_again_gets_the_new_expiry(
        self, integrations: IntegrationRows, routes: WebhookRoutes
    ) -> None:
        integration = await create_connected(integrations)
        for copy, expire_time in ((b"1", NOW), (b"2", LATER)):
            await routes.add([NewWebhookRoute(integration, "r", copy)], expire_time)
        await routes.add([NewWebhookRoute(integration, "for ever", b"3")], None)
        assert await routes.prune(LATER) == 0
        assert ("r", integration.integration_id, b"2") in await routes.find(integration.integration_type, {"r"})
        assert [await routes.prune(LATER + timedelta(seconds=1)) for _ in range(2)] == [1, 0]
        found = await routes.find(integration.integration_type, {"r", "for ever"})
        assert [route for route, *_ in found] == ["for ever"]

    async def test_routes_are_limited_for_each_integration(
        self, integrations: IntegrationRows, routes: WebhookRoutes
    ) -> None:
        first, second = await create_connected(integrations), await create_connected(integrations, BOB)
        await routes.add([NewWebhookRoute(second, "mine", b"")], NOW)
        await routes.add([NewWebhookRoute(first, "for ever", b"")], None)
        for start in range(0, 300, 100):
            new = [NewWebhookRoute(first, f"r-{number}", b"") for number in range(start, start + 100)]
            await routes.add(new, LATER + timedelta(seconds=start))
        names = {"mine", "for ever", *(f"r-{number}" for number in range(300))}
        found = {route for route, *_ in await routes.find(first.integration_type, names)}
        assert len(found) == 201  # of the first 200, the other one's
        assert {"mine", "for ever", "r-299", "r-200"} <= found
        assert "r-0" not in found

    async def test_routes_end_with_their_integration(
        self, integrations: IntegrationRows, routes: WebhookRoutes
    ) -> None:
        integration = await create_connected(integrations)
        await routes.add([NewWebhookRoute(integration, "r", b"")], None)
        await integrations.remove(integration.integration_id, integration.user_id)
        await routes.add([NewWebhookRoute(integration, "s", b"")], None)
        assert list(await routes.find(integration.integration_type, {"r", "s"})) == []

    async def test_recipients_are_found_by_id_too(
        self, integrations: IntegrationRows, attempts: AuthorizationAttemptStore, inbox: WebhookInbox
    ) -> None:
        first, second = await create_connected(integrations), await create_connected(integrations, BOB)
        pending = await create_pending(integrations, attempts)
        ids = [first.integration_id, second.integration_id, pending.integration_id]
        found = await inbox.find_recipients(first.integration_type, [], IntegrationId(0), 10, ids)
        assert [row.integration.integration_id for row in found] == ids[:2]
        assert list(await inbox.find_recipients("another", [], IntegrationId(0), 10, ids)) == []
