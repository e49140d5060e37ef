"""What every `EventLog` has to do, and what every write of a store leaves in it."""

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import Integration, Status
from integration_server.service.ports import (
    Agenda,
    AttemptStore,
    EventBatch,
    EventLog,
    EventWish,
    HealthHistory,
    IntegrationStore,
    WebhookInbox,
    Work,
)
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

ALL = EventWish()
MANY = 1000

CREATED, UPDATED, CHANGED = EventKind.CREATED, EventKind.UPDATED, EventKind.STATUS_CHANGED
REFRESHED, GONE, RECEIVED = EventKind.CREDENTIALS_REFRESHED, EventKind.DISCONNECTED, EventKind.WEBHOOK_RECEIVED
ACTIVE, ERROR, PENDING = Status.ACTIVE, Status.ERROR, Status.PENDING
EXPIRED, INACTIVE = Status.EXPIRED, Status.INACTIVE


@dataclass(frozen=True, slots=True)
class Stores:
    """Views of one empty store."""

    integrations: IntegrationStore
    attempts: AttemptStore
    history: HealthHistory
    agenda: Agenda
    inbox: WebhookInbox
    events: EventLog


Told = tuple[EventKind, Status | None, Status | None]
Write = Callable[[Stores, Integration], Awaitable[object]]


async def ill(stores: Stores, integration: Integration) -> Integration:
    """The integration after a failure."""
    await stores.integrations.record_failure(integration, FAILURE)
    return await now_of(stores.integrations, integration)


async def recover(stores: Stores, integration: Integration) -> None:
    """Break, and be refreshed."""
    await stores.integrations.commit_refresh(await ill(stores, integration), new_credentials(), LATER)


async def check(stores: Stores, integration: Integration) -> None:
    """Found to be ill twice, then well."""
    for _ in range(2):
        await stores.history.record(failed_check_of(integration), LATER)
    await stores.history.record(check_of(integration), LATER)


async def call(stores: Stores, integration: Integration) -> None:
    """A provider call that fails, and one that does not."""
    await stores.integrations.record_call(integration, FAILURE)
    await stores.integrations.record_call(await now_of(stores.integrations, integration), None)


async def take_back(stores: Stores, integration: Integration) -> None:
    """Lose the grant, and not believe it."""
    await stores.integrations.record_failure(integration, FAILURE, reauthorization_required=True)
    await stores.integrations.take_back_failure(integration, LATER)


async def come_back(stores: Stores, integration: Integration) -> None:
    """Lose the grant, and be connected again."""
    await stores.integrations.record_failure(integration, FAILURE, reauthorization_required=True)
    dead = await now_of(stores.integrations, integration)
    await stores.integrations.commit_connection(dead, account(None), new_credentials(), LATER)


async def connect(stores: Stores, _integration: Integration) -> None:
    """A pending one gets its account."""
    begun = await pending(stores.integrations, stores.attempts)
    await stores.integrations.commit_connection(begun, account("new"), new_credentials(), LATER)


async def connect_known_account(stores: Stores, integration: Integration) -> None:
    """A pending one turns out to be one that is there."""
    begun = await pending(stores.integrations, stores.attempts)
    await stores.integrations.commit_connection(
        integration, account(None), new_credentials(), LATER, instead_of=begun.integration_id
    )


async def give_up(stores: Stores, _integration: Integration) -> None:
    """An attempt that comes to nothing."""
    attempt = new_attempt()
    await stores.attempts.begin(attempt, new_integration())
    taken = await stores.attempts.take(attempt.attempt_id, NOW)
    assert taken is not None
    await stores.attempts.give_up(taken)


async def run_out(stores: Stores, _integration: Integration) -> None:
    """An attempt whose time is up."""
    await pending(stores.integrations, stores.attempts)
    await stores.attempts.remove_expired(EXPIRY + timedelta(seconds=1))


WRITES: dict[str, tuple[Write, list[Told]]] = {
    "add_connected": (lambda s, _: connected(s.integrations), [(CREATED, None, ACTIVE)]),
    "begin": (lambda s, _: pending(s.integrations, s.attempts), [(CREATED, None, PENDING)]),
    "commit_connection of a pending one": (connect, [(CREATED, None, PENDING), (CHANGED, PENDING, ACTIVE)]),
    "commit_connection of one that is there": (
        connect_known_account,
        [(CREATED, None, PENDING), (REFRESHED, ACTIVE, ACTIVE), (GONE, PENDING, None)],
    ),
    "commit_connection of a dead one": (
        come_back,
        [(CHANGED, ACTIVE, EXPIRED), (REFRESHED, EXPIRED, ACTIVE), (CHANGED, EXPIRED, ACTIVE)],
    ),
    "commit_refresh": (
        lambda s, it: s.integrations.commit_refresh(it, new_credentials(), LATER),
        [(REFRESHED, ACTIVE, ACTIVE)],
    ),
    "commit_refresh with other scopes": (
        lambda s, it: s.integrations.commit_refresh(
            it, new_credentials(scopes=("all",), lacks_required_scope=True), LATER
        ),
        [(UPDATED, ACTIVE, ERROR), (REFRESHED, ACTIVE, ERROR), (CHANGED, ACTIVE, ERROR)],
    ),
    "commit_refresh of a broken one": (
        recover,
        [(CHANGED, ACTIVE, ERROR), (REFRESHED, ERROR, ACTIVE), (CHANGED, ERROR, ACTIVE)],
    ),
    "record_failure": (
        lambda s, it: s.integrations.record_failure(it, FAILURE, retry_time=LATER),
        [(CHANGED, ACTIVE, ERROR)],
    ),
    "take_back_failure": (take_back, [(CHANGED, ACTIVE, EXPIRED), (CHANGED, EXPIRED, ACTIVE)]),
    "record_call": (call, [(CHANGED, ACTIVE, ERROR), (CHANGED, ERROR, ACTIVE)]),
    "record (of checks)": (check, [(CHANGED, ACTIVE, ERROR), (CHANGED, ERROR, ACTIVE)]),
    "update of the name": (
        lambda s, it: s.integrations.update(it.integration_id, ANN, LATER, name="other"),
        [(UPDATED, ACTIVE, ACTIVE)],
    ),
    "update of the config": (
        lambda s, it: s.integrations.update(it.integration_id, ANN, LATER, config={"a": 1}),
        [(UPDATED, ACTIVE, ACTIVE)],
    ),
    "update to off": (
        lambda s, it: s.integrations.update(it.integration_id, ANN, LATER, is_active=False),
        [(UPDATED, ACTIVE, INACTIVE), (CHANGED, ACTIVE, INACTIVE)],
    ),
    "update of nothing": (lambda s, it: s.integrations.update(it.integration_id, ANN, LATER, name=it.name), []),
    "remove": (lambda s, it: s.integrations.remove(it.integration_id, ANN), [(GONE, ACTIVE, None)]),
    "give_up": (give_up, [(CREATED, None, PENDING), (GONE, PENDING, None)]),
    "remove_expired": (run_out, [(CREATED, None, PENDING), (GONE, PENDING, None)]),
    "add (of webhooks)": (lambda s, it: s.inbox.add([new_event(it, "e")], LATER), [(RECEIVED, None, None)]),
    "add (of a webhook that ends the grant)": (
        lambda s, it: s.inbox.add([new_event(it, "e", ends_grant=ENDED)], LATER),
        [(RECEIVED, None, None), (CHANGED, ACTIVE, EXPIRED)],
    ),
    "acknowledge": (lambda s, it: s.inbox.acknowledge(it, "mail", 0), []),
    "claim": (lambda s, it: s.agenda.claim(Work.CHECK, it.integration_type, LATER, EXPIRY, 9), []),
    "begin_again": (lambda s, it: s.attempts.begin_again(new_attempt(is_reconnection=True), it.integration_id), []),
    "hold, take and take_held": (lambda s, _: s.attempts.take_held("none", NOW), []),
    "prune (of checks and webhooks)": (lambda s, _: s.inbox.prune(LATER), []),
}

READS = {
    *("find", "find_account", "list", "list_connected", "shares_grant", "list_ending", "ping"),
    *("error_rates", "due_types", "addressees", "known", "place"),
}


async def told_since(events: EventLog, low: int, wish: EventWish = ALL) -> list[IntegrationEvent]:
    """All that happened."""
    end, _ = await events.end()
    return [logged.event for logged in await events.read(EventBatch(low, end), 0, wish, MANY)]


class EventLogContract:
    """The tests; who inherits them provides the fixture `stores`."""

    def test_every_write_of_a_store_is_tried(self) -> None:
        tried = set(re.findall(r"\w+", " ".join(WRITES)))
        for port in (IntegrationStore, AttemptStore, HealthHistory, Agenda, WebhookInbox):
            methods = {name for name, _ in inspect.getmembers(port, inspect.isfunction) if not name.startswith("_")}
            assert methods - READS <= tried

    @pytest.mark.parametrize("name", WRITES)
    async def test_every_write_leaves_its_events(self, stores: Stores, name: str) -> None:
        write, expected = WRITES[name]
        integration = await connected(stores.integrations)
        low, _ = await stores.events.end()
        await write(stores, integration)
        told = await told_since(stores.events, low)
        assert [(event.kind, event.status_before, event.status_after) for event in told] == expected
        assert {(event.user_id, event.integration_type) for event in told} <= {(ANN, "acme")}
        assert [event.webhook_number for event in told if event.kind is RECEIVED] == [
            1 for kind, _, _ in expected if kind is RECEIVED
        ]

    async def test_what_is_not_done_is_not_told(self, stores: Stores) -> None:
        integration = await connected(stores.integrations)
        low, _ = await stores.events.end()
        await stores.integrations.commit_refresh(replace(integration, version=7), new_credentials(), LATER)
        await stores.integrations.update(integration.integration_id, BOB, LATER, name="bob's")
        await stores.integrations.remove(integration.integration_id, BOB)
        await stores.inbox.add([new_event(replace(integration, user_id=BOB), "e")] * 0, LATER)
        assert await told_since(stores.events, low) == []

    async def test_batches_follow_each_other(self, stores: Stores) -> None:
        low, begun = await stores.events.end()
        seen = []
        for _ in range(3):
            await connected(stores.integrations)
            await connected(stores.integrations)
            glance = await stores.events.glance(low, MANY)
            assert glance.batch.low == low
            assert len(glance.events) == 2
            assert glance.time >= begun
            seen += [logged.event.integration_id for logged in glance.events]
            low = glance.batch.high
        assert seen == sorted(set(seen))
        assert not (await stores.events.glance(low, MANY)).events

    async def test_a_batch_is_read_in_pages_and_by_wish(self, stores: Stores) -> None:
        low, _ = await stores.events.end()
        for user_id, kind in ((ANN, "acme"), (BOB, "acme"), (ANN, "other"), (ANN, "acme")):
            await connected(stores.integrations, user_id, integration_type=kind)
        end, _ = await stores.events.end()
        batch = EventBatch(low, end)
        first = await stores.events.read(batch, 0, ALL, 3)
        rest = await stores.events.read(batch, first[-1].number, ALL, 3)
        assert (len(first), len(rest)) == (3, 1)
        for wish, found in (
            (EventWish(user_id=BOB), 1),
            (EventWish(integration_types=frozenset({"acme"})), 3),
            (EventWish(ANN, frozenset({"acme", "other"})), 3),
            (EventWish(ANN, frozenset()), 0),
        ):
            events = [logged.event for logged in await stores.events.read(batch, 0, wish, MANY)]
            assert len(events) == found
            assert all(map(wish.covers, events))

    async def test_old_events_are_forgotten_and_places_go_on(self, stores: Stores) -> None:
        await connected(stores.integrations)
        before, _ = await stores.events.end()
        assert await stores.events.prune(timedelta(days=1)) == 0
        assert await stores.events.prune(timedelta(seconds=-1)) == 1
        assert await stores.events.prune(timedelta(seconds=-1)) == 0
        end, _ = await stores.events.end()
        assert end >= before
        row = await connected(stores.integrations)
        assert [event.integration_id for event in await told_since(stores.events, before)] == [row.integration_id]
