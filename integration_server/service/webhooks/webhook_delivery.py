"""Handing on what webhooks have brought: in order, at least once, to each consumer from its own place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from integration_server.domain.errors import IntegrationNotFound, InvalidField
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.common_types import Aead
from integration_server.service.credentials.credential_cipher import payload_aad
from integration_server.service.integrations.page_tokens import PageTokens
from integration_server.service.integrations.ports import IntegrationStore
from integration_server.service.webhooks.ports import StoredWebhookEvent, WebhookInbox


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """An event, opened. `through_number` is its place among those of its integration."""

    number: int
    event_id: str
    event_type: str
    receive_time: datetime
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookEventPage:
    """Part of what a consumer has not acknowledged; `next_page_token` is empty on the last."""

    events: Sequence[NumberedEvent]
    next_page_token: str


class WebhookDelivery:
    """Lists events and takes acknowledgements. A page has at most `max_page_bytes` bytes, but for its first event."""

    def __init__(self, integrations: IntegrationStore, inbox: WebhookInbox, aead: Aead, *, max_page_bytes: int) -> None:
        self._integrations = integrations
        self._inbox = inbox
        self._aead = aead
        self._pages = PageTokens(aead, "webhook-event-page")
        self._max_page_bytes = max_page_bytes

    async def list_webhook_events(
        self, integration_id: IntegrationId, user_id: UserId, consumer: str, page_size: int, page_token: str
    ) -> WebhookEventPage:
        """What follows the page before, or else the consumer's place. Raises `IntegrationNotFound`."""
        integration = await self._find(integration_id, user_id)
        list_id = (user_id, str(integration_id), consumer)
        after = await self._pages.read(page_token, list_id)
        if after is None:
            after = await self._inbox.consumer_offset(integration, consumer)
        page = await self._inbox.list(integration, after, page_size, self._max_page_bytes)
        events = [await self._decrypted(event, integration) for event in page.events]
        token = "" if page.is_last else await self._pages.make(list_id, events[-1].number)
        return WebhookEventPage(events, token)

    async def acknowledge_webhook_events(
        self, integration_id: IntegrationId, user_id: UserId, consumer: str, number: int
    ) -> int:
        """Move the consumer's place up to an event; where it is now, which may be further. Raises `InvalidField`."""
        consumer_offset = await self._inbox.acknowledge(await self._find(integration_id, user_id), consumer, number)
        if consumer_offset is None:
            raise InvalidField("through_number", "is not of an event that this integration has had")
        return consumer_offset

    async def _find(self, integration_id: IntegrationId, user_id: UserId) -> Integration:
        stored = await self._integrations.find(integration_id, user_id)
        if stored is None:
            raise IntegrationNotFound
        return stored.integration

    async def _decrypted(self, event: StoredWebhookEvent, integration: Integration) -> NumberedEvent:
        consumer_offset = payload_aad(event.uid, integration.user_id, integration.integration_type)
        payload = await self._aead.decrypt(event.encrypted_payload, consumer_offset)
        return NumberedEvent(event.number, event.event_id, event.event_type, event.receive_time, payload)
