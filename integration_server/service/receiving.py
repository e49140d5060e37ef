"""Taking what providers send by themselves: shown to be theirs first, stored before it is answered, each event once.

A request that is not shown to be the provider's costs no write, and hardly a read: addresses are looked up at most once
a second each, two at a time.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import structlog
from cachetools import TTLCache

from integration_server.domain.audit import SERVER, Action, AuditEntry
from integration_server.domain.errors import InvalidField, ReauthorizationRequired, UnknownIntegrationType
from integration_server.domain.integration import Failure, Integration
from integration_server.domain.webhooks import (
    ReceivedWebhook,
    WebhookAnswer,
    WebhookEvent,
    WebhookForged,
    WebhookRequest,
)
from integration_server.service.ports import (
    Clock,
    NewWebhookEvent,
    Provider,
    Providers,
    RandomName,
    Sealer,
    WebhookEndpoint,
    WebhookEndpoints,
    WebhookInbox,
)
from integration_server.service.sealing import payload_place
from integration_server.service.webhook_secrets import WebhookSecrets

APP = "app"
"""The end of the address of our app's own webhooks at a provider."""

UNKNOWN = WebhookAnswer(404)
FORGED = WebhookAnswer(401)

_UID = re.compile(r"[\w-]{1,128}", re.ASCII)
_LONGEST_TEXT = 255
_MOST_REMEMBERED = 10_000
_KNOWN_FOR = 1.0  # seconds that a secret which is good no more may still be taken
_UNKNOWN_FOR = 10.0  # nobody knows an address before it is there
_LOOKS_AT_ONCE = 2  # of the database's connections; the others are for those who are known


class RememberedEndpoints:
    """Addresses as they are, or were within the last second."""

    def __init__(self, endpoints: WebhookEndpoints, monotonic: Callable[[], float]) -> None:
        self._endpoints = endpoints
        self._known: TTLCache[tuple[str, str], WebhookEndpoint] = TTLCache(_MOST_REMEMBERED, _KNOWN_FOR, monotonic)
        self._unknown: TTLCache[tuple[str, str], None] = TTLCache(_MOST_REMEMBERED, _UNKNOWN_FOR, monotonic)
        self._looking = asyncio.Semaphore(_LOOKS_AT_ONCE)

    async def find(self, integration_type: str, uid: str) -> WebhookEndpoint | None:
        """The integration with this address."""
        key = integration_type, uid
        if key not in self._unknown and key not in self._known:
            async with self._looking:
                if key not in self._unknown and key not in self._known:  # looked up by another meanwhile
                    await self._look(key)
        return self._known.get(key)

    async def _look(self, key: tuple[str, str]) -> None:
        found = await self._endpoints.find(*key)
        if found is None:
            self._unknown[key] = None
        else:
            self._known[key] = found


class Receiving:
    """Receives webhooks. Events are kept for `keep`, and an event that comes again within that time is known."""

    def __init__(
        self,
        endpoints: RememberedEndpoints,
        inbox: WebhookInbox,
        secrets: WebhookSecrets,
        providers: Providers,
        sealer: Sealer,
        clock: Clock,
        random_name: RandomName,
        tell: Callable[[AuditEntry], object],
        *,
        keep: timedelta,
    ) -> None:
        self._endpoints = endpoints
        self._inbox = inbox
        self._secrets = secrets
        self._providers = providers
        self._sealer = sealer
        self._clock = clock
        self._random_name = random_name
        self._tell = tell
        self._keep = keep
        self._log = structlog.get_logger(__name__)

    async def receive_webhook(self, integration_type: str, endpoint: str, request: WebhookRequest) -> WebhookAnswer:
        """What to answer, once all that the request brings is stored. Raises `StoreUnavailable`."""
        provider = self._provider(integration_type)
        if provider is None:
            return UNKNOWN
        if endpoint == APP:
            return await self._receive_for_app(provider, request)
        # Of the provider, which may go by an alias in the address.
        found = await self._endpoints.find(provider.integration_type, endpoint) if _UID.fullmatch(endpoint) else None
        if found is None:
            return UNKNOWN
        return await self._receive_for(found, provider, request)

    async def prune(self) -> None:
        """Forget events that are older than they are kept."""
        while await self._inbox.prune(self._clock() - self._keep):
            pass

    def _provider(self, integration_type: str) -> Provider | None:
        try:
            provider = self._providers.get(integration_type)
        except UnknownIntegrationType:
            return None
        return provider if provider.takes_webhooks else None

    async def _receive_for_app(self, provider: Provider, request: WebhookRequest) -> WebhookAnswer:
        """To everybody with the account that an event is of."""
        secrets = provider.webhook_secrets(None)
        if not secrets:
            return UNKNOWN
        received = self._verified(provider, request, secrets)
        if received is None:
            return FORGED
        accounts = {event.account_id for event in received.events if _is_storable(event.account_id)}
        if accounts:
            integrations = await self._inbox.addressees(provider.integration_type, [*filter(None, accounts)])
            await self._store(
                [
                    (one, event)
                    for event in received.events
                    for one in integrations
                    if one.account_id == event.account_id
                ]
            )
        return received.answer

    async def _receive_for(
        self, endpoint: WebhookEndpoint, provider: Provider, request: WebhookRequest
    ) -> WebhookAnswer:
        """To one integration, whatever account its events name: the address says whose they are. But the end of another
        account's grant is not the end of this one's.
        """
        integration = endpoint.stored.integration
        try:
            provider = provider.at(integration.config)
        except InvalidField:  # what was right for a former version of the provider
            self._log.warning("webhook_config_invalid", **_names(integration))
            return FORGED
        secrets = await self._secrets.valid(endpoint)
        received = self._verified(provider, request, secrets) if secrets else None
        if received is None:
            return FORGED
        await self._store([(integration, _as_told_to(integration, event)) for event in received.events])
        return received.answer

    def _verified(self, provider: Provider, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook | None:
        try:
            return provider.receive_webhook(request, secrets)
        except WebhookForged:
            self._log.info("webhook_refused", integration_type=provider.integration_type)
            return None

    async def _store(self, deliveries: Sequence[tuple[Integration, WebhookEvent]]) -> None:
        events = [(integration, _storable(event)) for integration, event in deliveries]
        if not events:
            return
        known = await self._inbox.known(
            {integration.integration_id for integration, _ in events}, {event.event_id for _, event in events}
        )
        new = [
            await self._sealed(integration, event)
            for integration, event in events
            if (integration.integration_id, event.event_id) not in known
        ]
        if not new:
            return
        for added in await self._inbox.add(new, self._clock()):
            if added.ends_grant is not None:
                self._tell_of_end(added.integration)

    async def _sealed(self, integration: Integration, event: WebhookEvent) -> NewWebhookEvent:
        uid = self._random_name()
        place = payload_place(uid, integration.user_id, integration.integration_type)
        error = ReauthorizationRequired()
        return NewWebhookEvent(
            integration=integration,
            uid=uid,
            event_id=event.event_id,
            event_type=event.event_type,
            sealed_payload=await self._sealer.seal(event.payload, place),
            ends_grant=Failure(error.reason, self._clock(), str(error)) if event.ends_grant else None,
        )

    def _tell_of_end(self, integration: Integration) -> None:
        self._log.info("grant_ended_by_account", **_names(integration))
        self._tell(
            AuditEntry(
                self._clock(),
                SERVER,
                Action.LOSE_GRANT,
                integration.user_id,
                integration.integration_id,
                integration.integration_type,
            )
        )


def _names(integration: Integration) -> dict[str, object]:
    return {"integration_id": integration.integration_id, "integration_type": integration.integration_type}


def _as_told_to(integration: Integration, event: WebhookEvent) -> WebhookEvent:
    """The event, which ends a grant only if that is not another account's."""
    is_anothers = None not in {event.account_id, integration.account_id} and event.account_id != integration.account_id
    return replace(event, ends_grant=event.ends_grant and not is_anothers)


def _storable(event: WebhookEvent) -> WebhookEvent:
    """The event with texts that every database can keep. A name that none can is replaced by its digest."""
    event_id = event.event_id
    if not _is_storable(event_id):
        event_id = f"sha256:{hashlib.sha256(event_id.encode(errors='surrogatepass') or event.payload).hexdigest()}"
    event_type = "".join(filter(str.isprintable, event.event_type))[:_LONGEST_TEXT]
    return replace(event, event_id=event_id, event_type=event_type)


def _is_storable(text: str | None) -> bool:
    return text is not None and 0 < len(text) <= _LONGEST_TEXT and text.isprintable()
