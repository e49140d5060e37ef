"""The contract of `ChangeFeed`, and the changes that each write of a store records in it."""

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import Integration, Status
from integration_server.service.background.ports import Claim, DueWork, JobKind
from integration_server.service.connections.ports import AuthorizationAttemptStore, ConnectionStore
from integration_server.service.events.ports import ChangeFeed, ChangeRange, EventFilter, LoggedEvent
from integration_server.service.health.ports import CompletedCheck, HealthHistory
from integration_server.service.integrations.ports import IntegrationLists, IntegrationStore, IntegrationUpdate
from integration_server.service.webhooks.ports import WebhookInbox
from tests.contracts.integration_rows import (
    ANN,
    BOB,
    EXPIRY,
    FAILURE,
    LATER,
    LONG_CLAIM,
    NOW,
    IntegrationRows,
    account,
    create_connected,
    create_pending,
    failed_check,
    new_attempt,
    new_credentials,
    new_integration,
    reload,
    successful_check,
    update_settings,
)
from tests.contracts.webhook_contract import new_event

ALL = EventFilter()
NO_LIMIT = 1000

CREATED, UPDATED, CHANGED = EventKind.CREATED, EventKind.UPDATED, EventKind.STATUS_CHANGED
REFRESHED, DISCONNECTED, RECEIVED = EventKind.CREDENTIALS_REFRESHED, EventKind.DISCONNECTED, EventKind.WEBHOOK_RECEIVED
ACTIVE, ERROR, PENDING = Status.ACTIVE, Status.ERROR, Status.PENDING
EXPIRED, INACTIVE = Status.EXPIRED, Status.INACTIVE


@dataclass(frozen=True, slots=True)
class Stores:
    """Stores over one empty database."""

    integrations: IntegrationRows
    attempts: AuthorizationAttemptStore
    history: HealthHistory
    due_work: DueWork
    inbox: WebhookInbox
    change_feed: ChangeFeed


ExpectedEvent = tuple[EventKind, Status | None, Status | None]
Write = Callable[[Stores, Integration], Awaitable[object]]


async def fail(stores: Stores, integration: Integration) -> Integration:
    """Record a failure. Returns the integration after it."""
    await stores.integrations.record_failure(integration, FAILURE)
    return await reload(stores.integrations, integration)


async def recover(stores: Stores, integration: Integration) -> None:
    """Fail, then refresh."""
    await stores.integrations.commit_refresh(await fail(stores, integration), new_credentials(), LATER)


async def check(stores: Stores, integration: Integration) -> None:
    """Two failed checks, then a successful one."""
    for _ in range(2):
        await stores.history.record([CompletedCheck(failed_check(integration), LATER)])
    await stores.history.record([CompletedCheck(successful_check(integration), LATER)])


async def call(stores: Stores, integration: Integration) -> None:
    """A provider call that fails, then one that succeeds."""
    await stores.integrations.record_call(integration, FAILURE)
    await stores.integrations.record_call(await reload(stores.integrations, integration), None)


async def revert(stores: Stores, integration: Integration) -> None:
    """Lose the grant, then revert that."""
    await stores.integrations.record_failure(integration, FAILURE, reauthorization_required=True)
    await stores.integrations.revert_failure(integration, LATER)


async def reconnect(stores: Stores, integration: Integration) -> None:
    """Lose the grant, then reconnect."""
    await stores.integrations.record_failure(integration, FAILURE, reauthorization_required=True)
    expired = await reload(stores.integrations, integration)
    await stores.integrations.commit_connection(expired, account(None), new_credentials(), LATER)


async def connect(stores: Stores, _existing: Integration) -> None:
    """Connect a pending integration."""
    integration = await create_pending(stores.integrations, stores.attempts)
    await stores.integrations.commit_connection(integration, account("new"), new_credentials(), LATER)


async def connect_known_account(stores: Stores, existing: Integration) -> None:
    """Connect a pending integration whose account is connected already."""
    integration = await create_pending(stores.integrations, stores.attempts)
    await stores.integrations.commit_connection(
        existing, account(None), new_credentials(), LATER, superseded_id=integration.integration_id
    )


async def finish(stores: Stores, _integration: Integration) -> None:
    """Finish an authorization attempt that has failed."""
    attempt = new_attempt()
    await stores.attempts.begin(attempt, new_integration())
    consumed = await stores.attempts.consume(attempt.attempt_id, b"outcome", NOW)
    assert consumed is not None
    await stores.attempts.finish(consumed, None)


async def expire(stores: Stores, _integration: Integration) -> None:
    """Remove an expired authorization attempt."""
    await create_pending(stores.integrations, stores.attempts)
    await stores.attempts.remove_expired(EXPIRY + timedelta(seconds=1))


async def postpone_poll(stores: Stores, _integration: Integration) -> None:
    """Begin and postpone a poll of a device authorization."""
    await stores.attempts.begin(new_attempt(poll_interval_seconds=-1.0), new_integration())
    (poll,) = await stores.due_work.claim(JobKind.DEVICE_POLL, "acme", 1, claim_duration=LONG_CLAIM)
    begun = await stores.attempts.begin_poll(poll, LONG_CLAIM)
    assert begun is not None
    assert await stores.attempts.postpone_poll(begun, LONG_CLAIM, interval=LONG_CLAIM, failures=1) is not None


async def release(stores: Stores, integration: Integration) -> None:
    """Claim the next check of an integration, and release the claim."""
    claims = await stores.due_work.claim(JobKind.CHECK, integration.integration_type, 9, claim_duration=LONG_CLAIM)
    await stores.due_work.release(claims)


WRITES: dict[str, tuple[Write, list[ExpectedEvent]]] = {
    "add_connected": (lambda s, _: create_connected(s.integrations), [(CREATED, None, ACTIVE)]),
    "begin": (lambda s, _: create_pending(s.integrations, s.attempts), [(CREATED, None, PENDING)]),
    "commit_connection of a pending integration": (connect, [(CREATED, None, PENDING), (CHANGED, PENDING, ACTIVE)]),
    "commit_connection of a connected account": (
        connect_known_account,
        [(CREATED, None, PENDING), (REFRESHED, ACTIVE, ACTIVE), (DISCONNECTED, PENDING, None)],
    ),
    "commit_connection after a lost grant": (
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
    "commit_refresh after a failure": (
        recover,
        [(CHANGED, ACTIVE, ERROR), (REFRESHED, ERROR, ACTIVE), (CHANGED, ERROR, ACTIVE)],
    ),
    "record_failure": (
        lambda s, integration: s.integrations.record_failure(integration, FAILURE, retry_time=LATER),
        [(CHANGED, ACTIVE, ERROR)],
    ),
    "revert_failure": (revert, [(CHANGED, ACTIVE, EXPIRED), (CHANGED, EXPIRED, ACTIVE)]),
    "resume_refreshes": (
        lambda s, integration: s.integrations.resume_refreshes(integration.integration_type, [NOW]),
        [],
    ),
    "record_call": (call, [(CHANGED, ACTIVE, ERROR), (CHANGED, ERROR, ACTIVE)]),
    "record (of checks)": (check, [(CHANGED, ACTIVE, ERROR), (CHANGED, ERROR, ACTIVE)]),
    "update of the name": (
        lambda s, integration: update_settings(s.integrations, integration, IntegrationUpdate(name="other")),
        [(UPDATED, ACTIVE, ACTIVE)],
    ),
    "update of the config": (
        lambda s, integration: update_settings(s.integrations, integration, IntegrationUpdate(config={"a": 1})),
        [(UPDATED, ACTIVE, ACTIVE)],
    ),
    "update to inactive": (
        lambda s, integration: update_settings(s.integrations, integration, IntegrationUpdate(is_active=False)),
        [(UPDATED, ACTIVE, INACTIVE), (CHANGED, ACTIVE, INACTIVE)],
    ),
    "update of nothing": (
        lambda s, integration: update_settings(s.integrations, integration, IntegrationUpdate(name=integration.name)),
        [],
    ),
    "remove": (
        lambda s, integration: s.integrations.remove(integration.integration_id, ANN),
        [(DISCONNECTED, ACTIVE, None)],
    ),
    "finish": (finish, [(CREATED, None, PENDING), (DISCONNECTED, PENDING, None)]),
    "remove_expired": (expire, [(CREATED, None, PENDING), (DISCONNECTED, PENDING, None)]),
    "add (of webhooks)": (
        lambda s, integration: s.inbox.add([new_event(integration, "e")]),
        [(RECEIVED, None, None)],
    ),
    "add (of a webhook that reports the end of the grant)": (
        lambda s, integration: s.inbox.add([new_event(integration, "e", reports_grant_end=True)]),
        [(RECEIVED, None, None)],
    ),
    "acknowledge": (lambda s, integration: s.inbox.acknowledge(integration, "mail", 0), []),
    "claim": (
        lambda s, integration: s.due_work.claim(
            JobKind.CHECK, integration.integration_type, 9, claim_duration=timedelta(minutes=1)
        ),
        [],
    ),
    "release": (release, []),
    "postpone": (
        lambda s, integration: s.due_work.postpone(
            Claim(JobKind.CHECK, integration.integration_id, NOW, LATER, None), LONG_CLAIM
        ),
        [],
    ),
    "begin_poll and postpone_poll": (postpone_poll, [(CREATED, None, PENDING)]),
    "begin_reconnection": (
        lambda s, integration: s.attempts.begin_reconnection(new_attempt(), integration.integration_id),
        [],
    ),
    "store_pending_callback, consume and consume_pending_callback": (
        lambda s, _: s.attempts.consume_pending_callback("none", NOW),
        [],
    ),
    "prune (of checks and webhooks)": (lambda s, _: s.inbox.prune(LATER), []),
}

READS = {
    *("find", "find_many", "get", "find_account", "list", "list_connected", "list_expiring", "ping", "reserve_id"),
    *("error_rates", "counts", "due_types", "find_recipients", "known", "consumer_offset", "now"),
}


async def read_horizon(feed: ChangeFeed) -> int:
    """The end of the log, while no transaction is in progress."""
    return (await feed.poll(None, NO_LIMIT)).cursor.horizon


async def read_events_since(feed: ChangeFeed, low: int) -> list[IntegrationEvent]:
    """The events from the position `low` to the end of the log."""
    events = await feed.read_events(ChangeRange(low, await read_horizon(feed)), 0, ALL, NO_LIMIT)
    return [logged.event for logged in events]


class ChangeFeedContract:
    """A subclass provides the fixture `stores`."""

    def test_the_list_of_writes_is_complete(self) -> None:
        tested = set(re.findall(r"\w+", " ".join(WRITES)))
        ports = IntegrationStore, IntegrationLists, ConnectionStore, AuthorizationAttemptStore
        for port in (*ports, HealthHistory, DueWork, WebhookInbox):
            methods = {name for name, _ in inspect.getmembers(port, inspect.isfunction) if not name.startswith("_")}
            assert methods - READS <= tested

    @pytest.mark.parametrize("name", WRITES)
    async def test_every_write_records_its_events(self, stores: Stores, name: str) -> None:
        write, expected = WRITES[name]
        integration = await create_connected(stores.integrations)
        low = await read_horizon(stores.change_feed)
        await write(stores, integration)
        recorded = await read_events_since(stores.change_feed, low)
        assert [(event.kind, event.status_before, event.status_after) for event in recorded] == expected
        assert {(event.user_id, event.integration_type) for event in recorded} <= {(ANN, "acme")}
        assert [event.webhook_number for event in recorded if event.kind is RECEIVED] == [
            1 for kind, _, _ in expected if kind is RECEIVED
        ]

    async def test_a_write_that_changes_nothing_records_no_event(self, stores: Stores) -> None:
        integration = await create_connected(stores.integrations)
        low = await read_horizon(stores.change_feed)
        await stores.integrations.commit_refresh(replace(integration, version=7), new_credentials(), LATER)
        with pytest.raises(IntegrationNotFound):
            await update_settings(
                stores.integrations, replace(integration, user_id=BOB), IntegrationUpdate(name="bob's")
            )
        with pytest.raises(IntegrationNotFound):
            await stores.integrations.remove(integration.integration_id, BOB)
        await stores.inbox.add([new_event(replace(integration, user_id=BOB), "e")] * 0)
        assert await read_events_since(stores.change_feed, low) == []

    async def test_a_first_poll_returns_the_end_of_the_log(self, stores: Stores) -> None:
        await create_connected(stores.integrations)
        first = await stores.change_feed.poll(None, NO_LIMIT)
        assert (first.changed_ids, first.events) == (None, ())
        second = await stores.change_feed.poll(first.cursor, NO_LIMIT)
        assert (second.changed_ids, list(second.events)) == (frozenset(), [])

    async def test_each_poll_returns_the_new_changes(self, stores: Stores) -> None:
        batch = await stores.change_feed.poll(None, NO_LIMIT)
        published: list[LoggedEvent] = []
        for _ in range(3):
            rows = [await create_connected(stores.integrations) for _ in range(2)]
            await stores.integrations.remove(rows[0].integration_id, ANN)
            low, previous_time = batch.cursor.horizon, batch.time
            batch = await stores.change_feed.poll(batch.cursor, NO_LIMIT)
            assert rows[0].integration_id in (batch.changed_ids or ())
            assert len(batch.events) == 3
            assert all(low <= logged.position < batch.cursor.horizon for logged in batch.events)
            assert batch.time >= previous_time
            published += sorted(batch.events, key=lambda logged: logged.number)
        assert [logged.event.kind for logged in published] == [CREATED, CREATED, DISCONNECTED] * 3
        assert len({logged.number for logged in published}) == 9
        assert not (await stores.change_feed.poll(batch.cursor, NO_LIMIT)).events

    async def test_more_changes_than_the_limit_are_unknown(self, stores: Stores) -> None:
        begin = (await stores.change_feed.poll(None, NO_LIMIT)).cursor
        for _ in range(3):
            await create_connected(stores.integrations)
        assert len((await stores.change_feed.poll(begin, 3)).events) == 3
        limited = await stores.change_feed.poll(begin, 2)
        assert (limited.changed_ids, limited.events) == (None, ())
        await create_connected(stores.integrations)
        assert len((await stores.change_feed.poll(limited.cursor, 2)).events) == 1

    async def test_webhooks_do_not_invalidate_cached_integrations(self, stores: Stores) -> None:
        integration = await create_connected(stores.integrations)
        begin = (await stores.change_feed.poll(None, NO_LIMIT)).cursor
        await stores.inbox.add([new_event(integration, "e")])
        batch = await stores.change_feed.poll(begin, NO_LIMIT)
        assert (batch.changed_ids, len(batch.events)) == (frozenset(), 1)

    async def test_a_range_is_read_in_pages_and_by_filter(self, stores: Stores) -> None:
        low = await read_horizon(stores.change_feed)
        for user_id, kind in ((ANN, "acme"), (BOB, "acme"), (ANN, "other"), (ANN, "acme")):
            await create_connected(stores.integrations, user_id, integration_type=kind)
        positions = ChangeRange(low, await read_horizon(stores.change_feed))
        first = await stores.change_feed.read_events(positions, 0, ALL, 3)
        rest = await stores.change_feed.read_events(positions, first[-1].number, ALL, 3)
        assert (len(first), len(rest)) == (3, 1)
        for event_filter, count in (
            (EventFilter(user_id=BOB), 1),
            (EventFilter(integration_types=frozenset({"acme"})), 3),
            (EventFilter(ANN, frozenset({"acme", "other"})), 3),
            (EventFilter(ANN, frozenset()), 0),
        ):
            events = await stores.change_feed.read_events(positions, 0, event_filter, NO_LIMIT)
            assert len(events) == count
            assert all(event_filter.matches(logged.event) for logged in events)

    async def test_old_changes_are_pruned_and_positions_stay_valid(self, stores: Stores) -> None:
        feed = stores.change_feed
        await create_connected(stores.integrations)
        begin = await feed.poll(None, NO_LIMIT)
        assert await feed.prune(timedelta(days=1)) == 0
        assert await feed.prune(timedelta(seconds=-1)) == 1
        assert await feed.prune(timedelta(seconds=-1)) == 0
        assert (await feed.poll(None, NO_LIMIT)).cursor.end >= begin.cursor.end
        row = await create_connected(stores.integrations)
        assert (await feed.poll(begin.cursor, NO_LIMIT)).events[0].event.integration_id == row.integration_id
        assert [event.integration_id for event in await read_events_since(feed, begin.cursor.horizon)] == [
            row.integration_id
        ]
