"""Verified events at the app's address that belong to no integration: counted, logged, and listed for operators."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta

import structlog
from cachetools import TTLCache

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.associated_data import unrouted_payload_aad
from integration_server.domain.oauth_client import client_key
from integration_server.domain.webhooks import UnroutedReason, WebhookEvent
from integration_server.service.common_types import Aead, Clock, RandomToken
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.webhooks.ports import NewUnroutedWebhook, UnroutedWebhook, UnroutedWebhooks

_LOG_INTERVAL = 60.0  # seconds between two log lines about one client
_MAX_LOGGED = 10_000  # types and clients


@dataclass(eq=False, repr=False)
class UnroutedWebhookLog:
    """Stores unrouted events for `retention`, and lists them. Payloads are stored encrypted, and never listed."""

    store: UnroutedWebhooks
    aead: Aead
    clock: Clock
    random_token: RandomToken
    _: KW_ONLY
    retention: timedelta
    monotonic: Callable[[], float]

    def __post_init__(self) -> None:
        self._pages = PageTokens(self.aead, "unrouted-webhook-page", int)
        self._log = structlog.get_logger(__name__)
        self._logged: TTLCache[str, None] = TTLCache(_MAX_LOGGED, _LOG_INTERVAL, self.monotonic)
        self._not_logged: Counter[str] = Counter()

    async def record(self, integration_type: str, oauth_client: str, events: Sequence[WebhookEvent]) -> None:
        """Store events that have no recipient, and log their number once a minute. Raises `StoreUnavailable`."""
        await self.store.add([await self._encrypted(integration_type, oauth_client, event) for event in events])
        key = client_key(integration_type, oauth_client)
        self._not_logged[key] += len(events)
        if key not in self._logged:
            self._logged[key] = None
            self._log.warning(
                "webhook_unrouted",
                integration_type=integration_type,
                **({"oauth_client": oauth_client} if oauth_client else {}),
                events=self._not_logged.pop(key),
                reasons=sorted({UnroutedReason.of(event).value for event in events}),
            )

    async def list_unrouted_webhooks(
        self, integration_type: str, page_size: int, page_token: str, allowed_types: AllowedTypes
    ) -> Page[UnroutedWebhook]:
        """The events of a type, or of all allowed types if it is empty, the newest first. Raises `InvalidField`."""
        list_id = (integration_type,)
        before = await self._pages.read(page_token, list_id)
        rows = await self.store.list(integration_type, allowed_types, before, page_size + 1)
        page = rows[:page_size]
        token = await self._pages.make(list_id, page[-1][0]) if len(rows) > len(page) else ""
        return Page([event for _, event in page], token)

    async def prune(self) -> None:
        """Delete events that are older than `retention`."""
        while await self.store.prune(self.clock() - self.retention):
            pass

    async def _encrypted(self, integration_type: str, oauth_client: str, event: WebhookEvent) -> NewUnroutedWebhook:
        uid, now = self.random_token(), self.clock()
        associated_data = unrouted_payload_aad(
            uid, integration_type, oauth_client, event.event_id, event.event_type, now
        )
        listed = UnroutedWebhook(
            integration_type=integration_type,
            event_id=event.event_id,
            event_type=event.event_type,
            account_id=event.account_id,
            route=event.route,
            reason=UnroutedReason.of(event),
            payload_bytes=len(event.payload),
            receive_time=now,
            oauth_client=oauth_client,
        )
        return NewUnroutedWebhook(uid, listed, await self.aead.encrypt(event.payload, associated_data))
