"""Handing on what webhooks have brought: in order, at least once, to each consumer from its own place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from integration_server.domain.errors import IntegrationNotFound, InvalidField
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.paging import PageTokens
from integration_server.service.ports import IntegrationStore, KeptWebhookEvent, Sealer, WebhookInbox
from integration_server.service.sealing import payload_place


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """An event, opened. `number` is its place among those of its integration."""

    number: int
    event_id: str
    event_type: str
    receive_time: datetime
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EventPage:
    """Part of what a consumer has not acknowledged; `next_page_token` is empty on the last."""

    events: Sequence[NumberedEvent]
    next_page_token: str


class Consuming:
    """Lists events and takes acknowledgements. A page has at most `largest_page` bytes, but for its first event."""

    def __init__(
        self, integrations: IntegrationStore, inbox: WebhookInbox, sealer: Sealer, *, largest_page: int
    ) -> None:
        self._integrations = integrations
        self._inbox = inbox
        self._sealer = sealer
        self._pages = PageTokens(sealer, "webhook-event-page")
        self._largest_page = largest_page

    async def list_webhook_events(
        self, integration_id: IntegrationId, user_id: UserId, consumer: str, page_size: int, page_token: str
    ) -> EventPage:
        """What follows the page before, or else the consumer's place. Raises `IntegrationNotFound`."""
        integration = await self._find(integration_id, user_id)
        this_list = (user_id, str(integration_id), consumer)
        after = await self._pages.read(page_token, this_list)
        if after is None:
            after = await self._inbox.place(integration, consumer)
        page = await self._inbox.list(integration, after, page_size, self._largest_page)
        events = [await self._opened(event, integration) for event in page.events]
        token = "" if page.is_last else await self._pages.make(this_list, events[-1].number)
        return EventPage(events, token)

    async def acknowledge_webhook_events(
        self, integration_id: IntegrationId, user_id: UserId, consumer: str, number: int
    ) -> int:
        """Move the consumer's place up to an event; where it is now, which may be further. Raises `InvalidField`."""
        place = await self._inbox.acknowledge(await self._find(integration_id, user_id), consumer, number)
        if place is None:
            raise InvalidField("number", "is not of an event that this integration has had")
        return place

    async def _find(self, integration_id: IntegrationId, user_id: UserId) -> Integration:
        stored = await self._integrations.find(integration_id, user_id)
        if stored is None:
            raise IntegrationNotFound
        return stored.integration

    async def _opened(self, event: KeptWebhookEvent, integration: Integration) -> NumberedEvent:
        place = payload_place(event.uid, integration.user_id, integration.integration_type)
        payload = await self._sealer.open(event.sealed_payload, place)
        return NumberedEvent(event.number, event.event_id, event.event_type, event.receive_time, payload)
