"""Ingestion of webhooks: a request is verified, its events are stored once each, and then it gets its response.

A request with an invalid signature causes no write and few reads: an address is looked up at most once a second, and at
most two lookups run at a time.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from datetime import timedelta

import structlog
from cachetools import TTLCache

from integration_server.domain.errors import InvalidField, UnknownIntegrationType
from integration_server.domain.integration import Integration
from integration_server.domain.webhooks import (
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
    WebhookResponse,
)
from integration_server.service.common_types import Aead, Clock, RandomToken
from integration_server.service.credentials.credential_cipher import CredentialCipher, payload_aad
from integration_server.service.provider_port import Provider, Providers
from integration_server.service.webhooks.ports import NewWebhookEvent, WebhookEndpoint, WebhookEndpoints, WebhookInbox
from integration_server.service.webhooks.webhook_secrets import WebhookSecrets

APP = "app"
"""The endpoint of the app's own webhooks at a provider."""

NOT_FOUND = WebhookResponse(404)
UNAUTHORIZED = WebhookResponse(401)

_UID = re.compile(r"[\w-]{1,128}", re.ASCII)
_MAX_TEXT_LENGTH = 255
_MAX_ENTRIES = 10_000
_FOUND_TTL = 1.0  # seconds; a replaced secret may be accepted for so long
_NOT_FOUND_TTL = 10.0  # seconds; an address is published only after it exists
_MAX_CONCURRENT_LOOKUPS = 2  # so that unverified requests take few of the database's connections


class EndpointCache:
    """Caches lookups of endpoints. A result may be a second old. `monotonic` is in seconds."""

    def __init__(self, endpoints: WebhookEndpoints, monotonic: Callable[[], float]) -> None:
        self._endpoints = endpoints
        self._found: TTLCache[tuple[str, str], WebhookEndpoint] = TTLCache(_MAX_ENTRIES, _FOUND_TTL, monotonic)
        self._not_found: TTLCache[tuple[str, str], None] = TTLCache(_MAX_ENTRIES, _NOT_FOUND_TTL, monotonic)
        self._lookups = asyncio.Semaphore(_MAX_CONCURRENT_LOOKUPS)

    async def find(self, integration_type: str, uid: str) -> WebhookEndpoint | None:
        """The endpoint with this address."""
        key = integration_type, uid
        if not self._is_cached(key):
            async with self._lookups:
                if not self._is_cached(key):  # another task may have looked it up
                    found = await self._endpoints.find(*key)
                    if found is None:
                        self._not_found[key] = None
                    else:
                        self._found[key] = found
        return self._found.get(key)

    def _is_cached(self, key: tuple[str, str]) -> bool:
        return key in self._not_found or key in self._found


@dataclass(eq=False, repr=False)
class WebhookIngestion:
    """Receives webhooks. Events are kept, and recognized when they are delivered again, for `retention`."""

    endpoints: EndpointCache
    inbox: WebhookInbox
    secrets: WebhookSecrets
    providers: Providers
    aead: Aead
    clock: Clock
    random_token: RandomToken
    confirm_grant_end: Callable[[Integration], object]
    _: KW_ONLY
    retention: timedelta

    def __post_init__(self) -> None:
        self._log = structlog.get_logger(__name__)
        self._cipher = CredentialCipher(self.aead)

    async def receive_webhook(self, integration_type: str, endpoint: str, request: WebhookRequest) -> WebhookResponse:
        """The response, after all events of the request are stored. Raises `StoreUnavailable`."""
        provider = self._provider(integration_type)
        if provider is None:
            return NOT_FOUND
        if endpoint == APP:
            return await self._receive_for_app(provider, request)
        # The address may contain an alias of the provider's type.
        found = await self.endpoints.find(provider.integration_type, endpoint) if _UID.fullmatch(endpoint) else None
        return NOT_FOUND if found is None else await self._receive_for(found, provider, request)

    async def prune(self) -> None:
        """Delete events that are older than `retention`."""
        while await self.inbox.prune(self.clock() - self.retention):
            pass

    def _provider(self, integration_type: str) -> Provider | None:
        try:
            provider = self.providers[integration_type]
        except UnknownIntegrationType:
            return None
        return provider if provider.supports_webhooks else None

    async def _receive_for_app(self, provider: Provider, request: WebhookRequest) -> WebhookResponse:
        """Receive for all integrations whose account is the account of an event."""
        secrets = provider.webhook_secrets(None)
        if not secrets:
            return NOT_FOUND
        received = self._verified(provider, request, secrets)
        accounts = {event.account_id for event in received.events if _is_storable(event.account_id)}
        if accounts:
            recipients = await self.inbox.find_recipients(provider.integration_type, [*filter(None, accounts)])
            integrations = [await self._cipher.redacted(stored) for stored in recipients]  # altered: without account
            pairs = [(integration, event) for event in received.events for integration in integrations]
            await self._store([pair for pair in pairs if pair[0].account_id == pair[1].account_id is not None])
        return received.response

    async def _receive_for(
        self, endpoint: WebhookEndpoint, provider: Provider, request: WebhookRequest
    ) -> WebhookResponse:
        """Receive for the integration that the address identifies, whatever account the events name."""
        integration = endpoint.stored.integration
        try:
            provider = provider.for_config(integration.config)
        except InvalidField:  # the config was valid for an earlier version of the provider
            self._log.warning("webhook_config_invalid", **integration.log_fields)
            return UNAUTHORIZED
        secrets = await self.secrets.valid(endpoint)
        if not secrets:
            return UNAUTHORIZED
        received = self._verified(provider, request, secrets)
        await self._store([(integration, _restrict_to_account(integration, event)) for event in received.events])
        return received.response

    def _verified(self, provider: Provider, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """The events and response of a request; no events and 401 if it is not verified."""
        try:
            return provider.receive_webhook(request, secrets)
        except InvalidWebhookSignature:
            self._log.info("webhook_signature_invalid", integration_type=provider.integration_type)
            return ReceivedWebhook(response=UNAUTHORIZED)

    async def _store(self, deliveries: Sequence[tuple[Integration, WebhookEvent]]) -> None:
        events = [(integration, _storable(event)) for integration, event in deliveries]
        if not events:
            return
        known = await self.inbox.known(
            {integration.integration_id for integration, _ in events}, {event.event_id for _, event in events}
        )
        new = [
            await self._encrypted(integration, event)
            for integration, event in events
            if (integration.integration_id, event.event_id) not in known
        ]
        if not new:
            return
        for added in await self.inbox.add(new, self.clock()):
            if added.reports_grant_end:
                self.confirm_grant_end(added.integration)

    async def _encrypted(self, integration: Integration, event: WebhookEvent) -> NewWebhookEvent:
        uid, now = self.random_token(), self.clock()
        associated_data = payload_aad(
            uid,
            integration.user_id,
            integration.integration_type,
            integration.integration_id,
            event.event_id,
            event.event_type,
            now,
        )
        return NewWebhookEvent(
            integration=integration,
            uid=uid,
            event_id=event.event_id,
            event_type=event.event_type,
            receive_time=now,
            encrypted_payload=await self.aead.encrypt(event.payload, associated_data),
            reports_grant_end=event.reports_grant_end,
        )


def _restrict_to_account(integration: Integration, event: WebhookEvent) -> WebhookEvent:
    """The event, which does not report the end of the grant if it names another account."""
    accounts = {event.account_id, integration.account_id} - {None}
    return replace(event, reports_grant_end=event.reports_grant_end and len(accounts) < 2)


def _storable(event: WebhookEvent) -> WebhookEvent:
    """The event with texts that every database can store. An unsuitable id is replaced by its digest."""
    event_id = event.event_id
    if not _is_storable(event_id):
        event_id = f"sha256:{hashlib.sha256(event_id.encode(errors='surrogatepass') or event.payload).hexdigest()}"
    event_type = "".join(filter(str.isprintable, event.event_type))[:_MAX_TEXT_LENGTH]
    return replace(event, event_id=event_id, event_type=event_type)


def _is_storable(text: str | None) -> bool:
    return text is not None and 0 < len(text) <= _MAX_TEXT_LENGTH and text.isprintable()
