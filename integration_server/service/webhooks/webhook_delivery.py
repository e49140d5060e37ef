"""Delivery of webhook events to consumers: in order, at least once, from each consumer's own offset."""

from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime

from integration_server.domain.associated_data import payload_aad
from integration_server.domain.errors import InvalidField
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.common_types import Aead
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.integrations.ports import IntegrationStore
from integration_server.service.webhooks.ports import StoredWebhookEvent, WebhookInbox


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """A decrypted event. `number` is its position among the events of its integration."""

    number: int
    event_id: str
    event_type: str
    receive_time: datetime
    payload: bytes = field(repr=False)


@dataclass(eq=False, repr=False)
class WebhookDelivery:
    """Lists events and records acknowledgements.

    A page has at most `max_page_bytes` of payloads, unless its first event is larger.
    """

    integrations: IntegrationStore
    inbox: WebhookInbox
    aead: Aead
    _: KW_ONLY
    max_page_bytes: int

    def __post_init__(self) -> None:
        self._pages = PageTokens(self.aead, "webhook-event-page", int)

    async def list_webhook_events(
        self, integration_id: IntegrationId, user_id: UserId, consumer: str, page_size: int, page_token: str
    ) -> Page[NumberedEvent]:
        """The events after the previous page, or after the consumer's offset. Raises `IntegrationNotFound`."""
        integration = await self._get(integration_id, user_id)
        list_id = (user_id, str(integration_id), consumer)
        after = await self._pages.read(page_token, list_id)
        if after is None:
            after = await self.inbox.consumer_offset(integration, consumer)
        page = await self.inbox.list(integration, after, page_size, self.max_page_bytes)
        events = [await self._decrypted(event, integration) for event in page.events]
        token = "" if page.is_last else await self._pages.make(list_id, events[-1].number)
        return Page(events, token)

    async def acknowledge_webhook_events(
        self, integration_id: IntegrationId, user_id: UserId, consumer: str, number: int
    ) -> int:
        """Advance the consumer's offset; returns it, which may be higher. Raises `InvalidField` for no such event."""
        offset = await self.inbox.acknowledge(await self._get(integration_id, user_id), consumer, number)
        if offset is None:
            raise InvalidField("through_number", "is not the number of an event of this integration")
        return offset

    async def _get(self, integration_id: IntegrationId, user_id: UserId) -> Integration:
        return (await self.integrations.get(integration_id, user_id)).integration

    async def _decrypted(self, event: StoredWebhookEvent, integration: Integration) -> NumberedEvent:
        associated_data = payload_aad(
            event.uid,
            integration.user_id,
            integration.integration_type,
            integration.integration_id,
            event.event_id,
            event.event_type,
            event.receive_time,
        )
        payload = await self.aead.decrypt(event.encrypted_payload, associated_data)
        return NumberedEvent(event.number, event.event_id, event.event_type, event.receive_time, payload)
