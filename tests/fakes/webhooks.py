"""Webhooks kept in memory. They pass the contract suites that the SQL ones pass."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from itertools import accumulate

from integration_server.domain.events import EventKind
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.events.ports import EventBatch, EventFilter, EventPage, LoggedEvent
from integration_server.service.integrations.ports import StoredIntegration
from integration_server.service.webhooks.ports import (
    NewWebhookEvent,
    StoredWebhookEvent,
    StoredWebhookSecrets,
    WebhookEndpoint,
    WebhookPage,
)
from tests.fakes.store import Rows


class MemoryWebhookEndpoints:
    """`WebhookEndpoints`, that counts how often it is looked into."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._secrets: dict[IntegrationId, StoredWebhookSecrets] = {}
        self.lookups = 0

    async def find(self, integration_type: str, uid: str) -> WebhookEndpoint | None:
        """By its address."""
        self.lookups += 1
        await self._rows.begin_transaction()
        for stored in self._rows.connected():
            if (stored.integration.uid, stored.integration.integration_type) == (uid, integration_type):
                return self._endpoint(stored)
        return None

    async def find_by_id(self, integration_id: IntegrationId, user_id: UserId) -> WebhookEndpoint | None:
        """By its number."""
        await self._rows.begin_transaction()
        stored = self._rows.find(integration_id, user_id)
        return None if stored is None else self._endpoint(stored)

    async def set_secrets(
        self, integration: Integration, before: StoredWebhookSecrets | None, secrets: StoredWebhookSecrets
    ) -> bool:
        """Unless others are there."""
        await self._rows.begin_transaction()
        if self._rows.find(integration.integration_id, integration.user_id) is None:
            return False
        current = self._secrets.get(integration.integration_id)
        if (current and current.encrypted_secret) != (before and before.encrypted_secret):
            return False
        self._secrets[integration.integration_id] = secrets
        return True

    def _endpoint(self, stored: StoredIntegration) -> WebhookEndpoint:
        return WebhookEndpoint(stored, self._secrets.get(stored.integration.integration_id))


class MemoryWebhookInbox:
    """A `WebhookInbox`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._events: defaultdict[IntegrationId, list[StoredWebhookEvent]] = defaultdict(list)
        self._last: defaultdict[IntegrationId, int] = defaultdict(int)
        self._offsets: defaultdict[tuple[IntegrationId, str], int] = defaultdict(int)

    async def find_recipients(self, integration_type: str, account_ids: Collection[str]) -> Sequence[Integration]:
        """Connected ones."""
        await self._rows.begin_transaction()
        rows = [stored.integration for stored in self._rows.connected()]
        return [row for row in rows if row.integration_type == integration_type and row.account_id in account_ids]

    async def known(
        self, integration_ids: Collection[IntegrationId], event_ids: Collection[str]
    ) -> Collection[tuple[IntegrationId, str]]:
        """Those that are kept."""
        await self._rows.begin_transaction()
        return self._known(integration_ids, event_ids)

    def _known(
        self, integration_ids: Collection[IntegrationId], event_ids: Collection[str]
    ) -> set[tuple[IntegrationId, str]]:
        return {
            (integration_id, event.event_id)
            for integration_id in integration_ids
            for event in self._events[integration_id]
            if event.event_id in event_ids
        }

    async def add(self, events: Sequence[NewWebhookEvent], now: datetime) -> Sequence[NewWebhookEvent]:
        """Those that are new."""
        await self._rows.begin_transaction()
        return [event for event in events if self._append(event, now)]

    def _append(self, event: NewWebhookEvent, now: datetime) -> bool:
        integration_id = event.integration.integration_id
        stored = self._rows.find(integration_id, event.integration.user_id)
        if stored is None or not stored.integration.is_connected or self._known([integration_id], [event.event_id]):
            return False
        self._last[integration_id] += 1
        number = self._last[integration_id]
        self._events[integration_id].append(
            StoredWebhookEvent(number, event.uid, event.event_id, event.event_type, now, event.encrypted_payload)
        )
        self._rows.record_event(EventKind.WEBHOOK_RECEIVED, None, stored.integration, number)
        connect_time = stored.integration.connect_time
        if event.ends_grant is not None and connect_time is not None and connect_time <= now:
            self._rows.set(
                stored.integration,
                reauthorization_required=True,
                last_error=event.ends_grant,
                error_count=stored.integration.error_count + 1,
                refresh_due_time=None,
                refresh_retry_time=None,
                refresh_refusals=0,
            )
        return True

    async def list(self, integration: Integration, after: int, limit: int, max_bytes: int) -> WebhookPage:
        """As many as fit."""
        await self._rows.begin_transaction()
        is_there = self._rows.find(integration.integration_id, integration.user_id) is not None
        rows = [event for event in self._events[integration.integration_id] if is_there and event.number > after]
        sizes = accumulate(len(event.encrypted_payload) for event in rows[:limit])
        page = rows[: max(1, sum(total <= max_bytes for total in sizes))]
        return WebhookPage(page, is_last=len(page) == len(rows))

    async def consumer_offset(self, integration: Integration, consumer: str) -> int:
        """Where it is."""
        await self._rows.begin_transaction()
        return self._offsets[integration.integration_id, consumer]

    async def acknowledge(self, integration: Integration, consumer: str, number: int) -> int | None:
        """Never back."""
        await self._rows.begin_transaction()
        is_there = self._rows.find(integration.integration_id, integration.user_id) is not None
        if not is_there or number > self._last[integration.integration_id]:
            return None
        key = integration.integration_id, consumer
        self._offsets[key] = max(self._offsets[key], number)
        return self._offsets[key]

    async def prune(self, before: datetime) -> int:
        """Forget all of them."""
        await self._rows.begin_transaction()
        forgotten = 0
        for integration_id, events in self._events.items():
            kept = [event for event in events if event.receive_time >= before]
            forgotten += len(events) - len(kept)
            self._events[integration_id] = kept
        return forgotten


class MemoryEventLog:
    """An `EventLog`. Nothing is ever under way here: an event's number is its place."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._forgotten = 0
        self.reads = 0
        self.page_reads = 0

    async def high_water_mark(self) -> tuple[int, datetime]:
        """After the last one."""
        await self._rows.begin_transaction()
        return self._forgotten + len(self._rows.events) + 1, self._rows.clock()

    async def read_page(self, low: int, limit: int) -> EventPage:
        """What is new."""
        self.page_reads += 1
        high_water_mark, now = await self.high_water_mark()
        batch = EventBatch(low, high_water_mark)
        return EventPage(batch, now, self._of(batch)[:limit])

    async def read(self, batch: EventBatch, after: int, event_filter: EventFilter, limit: int) -> Sequence[LoggedEvent]:
        """What is wished."""
        self.reads += 1
        await self._rows.begin_transaction()
        return [one for one in self._of(batch) if one.number > after and event_filter.matches(one.event)][:limit]

    async def prune(self, retention: timedelta) -> int:
        """Forget all of them."""
        await self._rows.begin_transaction()
        old = [event for event in self._rows.events if event.event_time < self._rows.clock() - retention]
        del self._rows.events[: len(old)]
        self._forgotten += len(old)
        return len(old)

    def _of(self, batch: EventBatch) -> list[LoggedEvent]:
        numbered = enumerate(self._rows.events, start=self._forgotten + 1)
        return [LoggedEvent(number, event) for number, event in numbered if batch.low <= number < batch.high]
