"""What every `EventLog` has to do, and what every write of a store leaves in it."""

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import Integration, Status
from integration_server.service.background.ports import DueWork, HealthHistory, JobKind
from integration_server.service.connections.ports import AuthorizationAttemptStore
from integration_server.service.events.ports import EventBatch, EventFilter, EventLog
from integration_server.service.integrations.ports import IntegrationStore
from integration_server.service.webhooks.ports import WebhookInbox
from tests.contracts.store_contract import (
    ANN,
    BOB,
    EXPIRY,
    FAILURE,
    LATER,
    NOW,
    account,
    check_of,
    connected,
    failed_check_of,
    new_attempt,
    new_credentials,
    new_integration,
    now_of,
    pending,
)
from tests.contracts.webhook_contract import ENDED, new_event

ALL = EventFilter()
MANY = 1000

CREATED, UPDATED, CHANGED = EventKind.CREATED, EventKind.UPDATED, EventKind.STATUS_CHANGED
REFRESHED, GONE, RECEIVED = EventKind.CREDENTIALS_REFRESHED, EventKind.DISCONNECTED, EventKind.WEBHOOK_RECEIVED
ACTIVE, ERROR, PENDING = Status.ACTIVE, Status.ERROR, Status.PENDING
EXPIRED, INACTIVE = Status.EXPIRED, Status.INACTIVE


@dataclass(frozen=True, slots=True)
class Stores:
    """Views of one empty store."""

    integrations: IntegrationStore
    attempts: AuthorizationAttemptStore
    history: HealthHistory
    due_work: DueWork
    inbox: WebhookInbox
    events: EventLog


ExpectedEvent = tuple[EventKind, Status | None, Status | None]
Write = Callable[[Stores, Integration], Awaitable[object]]


async def failing(stores: Stores, integration: Integration) -> Integration:
    """The integration after a failure."""
    await stores.integrations.record_failure(integration, FAILURE)
    return await now_of(stores.integrations, integration)


async def recover(stores: Stores, integration: Integration) -> None:
    """Break, and be refreshed."""
    await stores.integrations.commit_refresh(await failing(stores, integration), new_credentials(), LATER)


async def check(stores: Stores, integration: Integration) -> None:
    """Found to be ill twice, then well."""
    for _ in range(2):
        await stores.history.record(failed_check_of(integration), LATER)
    await stores.history.record(check_of(integration), LATER)


async def call(stores: Stores, integration: Integration) -> None:
    """A provider call that fails, and one that does not."""
    await stores.integrations.record_call(integration, FAILURE)
    await stores.integrations.record_call(await now_of(stores.integrations, integration), None)


async def revert(stores: Stores, integration: Integration) -> None:
    """Lose the grant, and not believe it."""
    await stores.integrations.record_failure(integration, FAILURE, reauthorization_required=True)
    await stores.integrations.revert_failure(integration, LATER)


async def reconnect(stores: Stores, integration: Integration) -> None:
    """Lose the grant, and be connected again."""
    await stores.integrations.record_failure(integration, FAILURE, reauthorization_required=True)
    expired = await now_of(stores.integrations, integration)
    await stores.integrations.commit_connection(expired, account(None), new_credentials(), LATER)


async def connect(stores: Stores, _integration: Integration) -> None:
    """A pending one gets its account."""
    begun = await pending(stores.integrations, stores.attempts)
    await stores.integrations.commit_connection(begun, account("new"), new_credentials(), LATER)


async def connect_known_account(stores: Stores, integration: Integration) -> None:
    """A pending one turns out to be one that is there."""
    begun = await pending(stores.integrations, stores.attempts)
    await stores.integrations.commit_connection(
        integration, account(None), new_credentials(), LATER, superseded_id=begun.integration_id
    )


async def abandon(stores: Stores, _integration: Integration) -> None:
    """An attempt that comes to nothing."""
    attempt = new_attempt()
    await stores.attempts.begin(attempt, new_integration())
    taken = await stores.attempts.consume(attempt.attempt_id, NOW)
    assert taken is not None
    await stores.attempts.abandon(taken)


async def expire(stores: Stores, _integration: Integration) -> None:
    """An attempt whose time is up."""
    await pending(stores.integrations, stores.attempts)
    await stores.attempts.remove_expired(EXPIRY + timedelta(seconds=1))


WRITES: dict[str, tuple[Write, list[ExpectedEvent]]] = {
    "add_connected": (lambda s, _: connected(s.integrations), [(CREATED, None, ACTIVE)]),
    "begin": (lambda s, _: pending(s.integrations, s.attempts), [(CREATED, None, PENDING)]),
    "commit_connection of a pending one": (connect, [(CREATED, None, PENDING), (CHANGED, PENDING, ACTIVE)]),
    "commit_connection of one that is there": (
        connect_known_account,
        [(CREATED, None, PENDING), (REFRESHED, ACTIVE, ACTIVE), (GONE, PENDING, None)],
    ),
    "commit_connection of a dead one": (
        reconnect,
        [(CHANGED, ACTIVE, EXPIRED), (REFRESHED, EXPIRED, ACTIVE), (CHANGED, EXPIRED, ACTIVE)],
    ),
    "commit_refresh": (
        lambda s, integration: s.integrations.commit_refresh(integration, new_credentials(), LATER),
        [(REFRESHED, ACTIVE, ACTIVE)],
    ),
    "commit_refresh with other scopes": (
        lambda s, integration: s.integrations.commit_refresh(
            integration, new_credentials(scopes=("all",), lacks_required_scope=True), LATER
        ),
        [(UPDATED, ACTIVE, ERROR), (REFRESHED, ACTIVE, ERROR), (CHANGED, ACTIVE, ERROR)],
    ),
    "commit_refresh of a broken one": (
        recover,
        [(CHANGED, ACTIVE, ERROR), (REFRESHED, ERROR, ACTIVE), (CHANGED, ERROR, ACTIVE)],
    ),
    "record_failure": (
        lambda s, integration: s.integrations.record_failure(integration, FAILURE, retry_time=LATER),
        [(CHANGED, ACTIVE, ERROR)],
    ),
    "revert_failure": (revert, [(CHANGED, ACTIVE, EXPIRED), (CHANGED, EXPIRED, ACTIVE)]),
    "record_call": (call, [(CHANGED, ACTIVE, ERROR), (CHANGED, ERROR, ACTIVE)]),
    "record (of checks)": (check, [(CHANGED, ACTIVE, ERROR), (CHANGED, ERROR, ACTIVE)]),
    "update of the name": (
        lambda s, integration: s.integrations.update(integration.integration_id, ANN, LATER, name="other"),
        [(UPDATED, ACTIVE, ACTIVE)],
    ),
    "update of the config": (
        lambda s, integration: s.integrations.update(integration.integration_id, ANN, LATER, config={"a": 1}),
        [(UPDATED, ACTIVE, ACTIVE)],
    ),
    "update to off": (
        lambda s, integration: s.integrations.update(integration.integration_id, ANN, LATER, is_active=False),
        [(UPDATED, ACTIVE, INACTIVE), (CHANGED, ACTIVE, INACTIVE)],
    ),
    "update of nothing": (
        lambda s, integration: s.integrations.update(integration.integration_id, ANN, LATER, name=integration.name),
        [],
    ),
    "remove": (lambda s, integration: s.integrations.remove(integration.integration_id, ANN), [(GONE, ACTIVE, None)]),
    "abandon": (abandon, [(CREATED, None, PENDING), (GONE, PENDING, None)]),
    "remove_expired": (expire, [(CREATED, None, PENDING), (GONE, PENDING, None)]),
    "add (of webhooks)": (
        lambda s, integration: s.inbox.add([new_event(integration, "e")], LATER),
        [(RECEIVED, None, None)],
    ),
    "add (of a webhook that ends the grant)": (
        lambda s, integration: s.inbox.add([new_event(integration, "e", ends_grant=ENDED)], LATER),
        [(RECEIVED, None, None), (CHANGED, ACTIVE, EXPIRED)],
    ),
    "acknowledge": (lambda s, integration: s.inbox.acknowledge(integration, "mail", 0), []),
    "claim": (
        lambda s, integration: s.due_work.claim(JobKind.CHECK, integration.integration_type, LATER, EXPIRY, 9),
        [],
    ),
    "begin_reconnection": (
        lambda s, integration: s.attempts.begin_reconnection(
            new_attempt(is_reconnection=True), integration.integration_id
        ),
        [],
    ),
    "store_pending_callback, consume and consume_pending_callback": (
        lambda s, _: s.attempts.consume_pending_callback("none", NOW),
        [],
    ),
    "prune (of checks and webhooks)": (lambda s, _: s.inbox.prune(LATER), []),
}

READS = {
    *("find", "find_account", "list", "list_connected", "shares_grant", "list_expiring", "ping"),
    *("error_rates", "due_types", "find_recipients", "known", "consumer_offset"),
}


async def events_since(events: EventLog, low: int, event_filter: EventFilter = ALL) -> list[IntegrationEvent]:
    """All that happened."""
    high_water_mark, _ = await events.high_water_mark()
    return [logged.event for logged in await events.read(EventBatch(low, high_water_mark), 0, event_filter, MANY)]


class EventLogContract:
    """The tests; who inherits them provides the fixture `stores`."""

    def test_every_write_of_a_store_is_tried(self) -> None:
        tried = set(re.findall(r"\w+", " ".join(WRITES)))
        for port in (IntegrationStore, AuthorizationAttemptStore, HealthHistory, DueWork, WebhookInbox):
            methods = {name for name, _ in inspect.getmembers(port, inspect.isfunction) if not name.startswith("_")}
            assert methods - READS <= tried

    @pytest.mark.parametrize("name", WRITES)
    async def test_every_write_leaves_its_events(self, stores: Stores, name: str) -> None:
        write, expected = WRITES[name]
        integration = await connected(stores.integrations)
        low, _ = await stores.events.high_water_mark()
        await write(stores, integration)
        recorded = await events_since(stores.events, low)
        assert [(event.kind, event.status_before, event.status_after) for event in recorded] == expected
        assert {(event.user_id, event.integration_type) for event in recorded} <= {(ANN, "acme")}
        assert [event.webhook_number for event in recorded if event.kind is RECEIVED] == [
            1 for kind, _, _ in expected if kind is RECEIVED
        ]

    async def test_a_write_that_changes_nothing_leaves_no_event(self, stores: Stores) -> None:
        integration = await connected(stores.integrations)
        low, _ = await stores.events.high_water_mark()
        await stores.integrations.commit_refresh(replace(integration, version=7), new_credentials(), LATER)
        await stores.integrations.update(integration.integration_id, BOB, LATER, name="bob's")
        await stores.integrations.remove(integration.integration_id, BOB)
        await stores.inbox.add([new_event(replace(integration, user_id=BOB), "e")] * 0, LATER)
        assert await events_since(stores.events, low) == []

    async def test_batches_follow_each_other(self, stores: Stores) -> None:
        low, begun = await stores.events.high_water_mark()
        observed = []
        for _ in range(3):
            await connected(stores.integrations)
            await connected(stores.integrations)
            read_page = await stores.events.read_page(low, MANY)
            assert read_page.batch.low == low
            assert len(read_page.events) == 2
            assert read_page.time >= begun
            observed += [logged.event.integration_id for logged in read_page.events]
            low = read_page.batch.high
        assert observed == sorted(set(observed))
        assert not (await stores.events.read_page(low, MANY)).events

    async def test_a_batch_is_read_in_pages_and_by_filter(self, stores: Stores) -> None:
        low, _ = await stores.events.high_water_mark()
        for user_id, kind in ((ANN, "acme"), (BOB, "acme"), (ANN, "other"), (ANN, "acme")):
            await connected(stores.integrations, user_id, integration_type=kind)
        high_water_mark, _ = await stores.events.high_water_mark()
        batch = EventBatch(low, high_water_mark)
        first = await stores.events.read(batch, 0, ALL, 3)
        rest = await stores.events.read(batch, first[-1].number, ALL, 3)
        assert (len(first), len(rest)) == (3, 1)
        for event_filter, found in (
            (EventFilter(user_id=BOB), 1),
            (EventFilter(integration_types=frozenset({"acme"})), 3),
            (EventFilter(ANN, frozenset({"acme", "other"})), 3),
            (EventFilter(ANN, frozenset()), 0),
        ):
            events = [logged.event for logged in await stores.events.read(batch, 0, event_filter, MANY)]
            assert len(events) == found
            assert all(map(event_filter.matches, events))

    async def test_old_events_are_pruned_and_cursors_stay_valid(self, stores: Stores) -> None:
        await connected(stores.integrations)
        before, _ = await stores.events.high_water_mark()
        assert await stores.events.prune(timedelta(days=1)) == 0
        assert await stores.events.prune(timedelta(seconds=-1)) == 1
        assert await stores.events.prune(timedelta(seconds=-1)) == 0
        high_water_mark, _ = await stores.events.high_water_mark()
        assert high_water_mark >= before
        row = await connected(stores.integrations)
        assert [event.integration_id for event in await events_since(stores.events, before)] == [row.integration_id]
