"""Ingestion of webhooks: a request is verified, its events are stored once each, and then it gets its response.

A request with an invalid signature causes no write and few reads: an address is looked up at most once a second, and at
most two lookups run at a time.

The events of a batch are made, encrypted and stored in slices, between which other calls run. Of one request only so
many new events are stored; then the provider is asked to deliver it again. Stored events are skipped before they count,
so that each delivery stores the next ones.
"""

import asyncio
import hashlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Protocol, TypeVar

import structlog
from cachetools import TTLCache

from integration_server.domain.associated_data import payload_aad
from integration_server.domain.errors import InvalidField, QuotaExceeded, UnknownIntegrationType
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.oauth_client import OAUTH_CLIENT_NAME, client_key
from integration_server.domain.text import has_control_characters
from integration_server.domain.webhooks import (
    MAX_EVENTS,
    InvalidWebhookSignature,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
    WebhookResponse,
)
from integration_server.service.common_types import Aead, Clock, RandomToken, Record, record_nothing
from integration_server.service.credentials.credential_cipher import (
    CredentialCipher,
)
from integration_server.service.lookup_cache import LookupCache
from integration_server.service.oauth_clients.oauth_client_directory import OAuthClientDirectory
from integration_server.service.provider_port import Provider
from integration_server.service.webhooks.ports import NewWebhookEvent, WebhookEndpoint, WebhookEndpoints, WebhookInbox
from integration_server.service.webhooks.unrouted_webhooks import UnroutedWebhookLog
from integration_server.service.webhooks.webhook_router import WebhookRouter
from integration_server.service.webhooks.webhook_secrets import WebhookSecrets

T = TypeVar("T")

APP = "app"
"""The endpoint of the app's own webhooks at a provider. That of another OAuth client is "app." and its name."""

NOT_FOUND = WebhookResponse(404, is_verified=False)
UNAUTHORIZED = WebhookResponse(401, is_verified=False)

# Every provider that sends batches delivers a request again after 503: SendGrid for three days, HubSpot ten times in a
# day, Meta for 36 hours, Microsoft Graph for four hours, Xero for a day, QuickBooks, Dropbox and Twilio with backoff.
TOO_MANY_NEW_EVENTS = WebhookResponse(503, {"Retry-After": "5"})
USER_QUOTA_EXCEEDED = WebhookResponse(503, {"Retry-After": "300"})
TOO_MANY_EVENTS = WebhookResponse(413)
"""A request has more events than are read. Another delivery does not help."""

_OUTCOMES = {401: "invalid_signature", 404: "not_found", 413: "too_large", 503: "refused"}
"""The outcomes of webhooks for the metrics, by the status of their response; for any other status `accepted`."""

_UID = re.compile(r"[\w-]{1,128}", re.ASCII)
_MAX_TEXT_LENGTH = 255
_MAX_ENTRIES = 10_000
_FOUND_TTL = 1.0  # seconds; a replaced secret may be accepted for so long
_NOT_FOUND_TTL = 10.0  # seconds; an address is published only after it exists
# Bytes. Verifying, reading and splitting a smaller body takes a few milliseconds, at worst 40; one of 1 MiB up to a
# second.
_LARGE_BODY = 32 * 1024
_MAX_CONCURRENT_READS = 2  # of large bodies, so that their threads leave most of the time to the event loop
_SLICE = 100  # events, which take the event loop about 5 ms
_QUOTA_LOG_INTERVAL = 3600.0  # seconds between two log lines about one user


class EndpointCache(LookupCache[tuple[str, str], WebhookEndpoint]):
    """Caches lookups of endpoints, by type and uid. A result may be a second old. `monotonic` is in seconds."""

    def __init__(self, endpoints: WebhookEndpoints, monotonic: Callable[[], float]) -> None:
        super().__init__(
            lambda key: endpoints.find(*key), monotonic, found_ttl=_FOUND_TTL, not_found_ttl=_NOT_FOUND_TTL
        )


@dataclass(eq=False, repr=False)
class _Batch:
    """The events of one request, and how many of them were stored.

    `full_users` are over their quota of kept payloads; their events are not stored.
    """

    received: ReceivedWebhook
    max_events: int
    run: "_Run"
    stored: int = 0
    has_unrouted: bool = False
    full_users: set[UserId] = field(default_factory=set)

    async def slices(self) -> AsyncIterator[Sequence[WebhookEvent]]:
        """The events that are read. Other calls run between two slices."""
        for start in range(0, min(len(self.received.events), self.max_events), _SLICE):
            if start:
                await asyncio.sleep(0)
            # An event is made from its part of the body when it is read.
            yield await self.run(partial(_events_of, self.received, start, min(start + _SLICE, self.max_events)))

    @property
    def response(self) -> WebhookResponse:
        """The response after all events that are read were stored."""
        if self.full_users:
            return USER_QUOTA_EXCEEDED
        return TOO_MANY_EVENTS if len(self.received.events) > self.max_events else self.received.response


class _Run(Protocol):
    """Calls a function that reads a body."""

    async def __call__(self, call: Callable[[], T], /) -> T: ...


def _events_of(received: ReceivedWebhook, start: int, end: int) -> Sequence[WebhookEvent]:
    return received.events[start:end]


async def _run_here(call: Callable[[], T]) -> T:
    return call()


class _TooManyNewEvents(Exception):
    """A request has more new events than are stored at once."""


@dataclass(eq=False, repr=False)
class WebhookIngestion:
    """Receives webhooks. Events are kept, and recognized when they are delivered again, for `retention`.

    Bodies of more than `large_body` bytes are verified, read and split in another thread, so that they do not hold the
    event loop.
    Of one request, `max_events` events are read, and `max_new_events` stored, plus the rest of the slice with the last.
    """

    endpoints: EndpointCache
    inbox: WebhookInbox
    router: WebhookRouter
    unrouted: UnroutedWebhookLog
    secrets: WebhookSecrets
    providers: OAuthClientDirectory
    aead: Aead
    clock: Clock
    random_token: RandomToken
    confirm_grant_end: Callable[[Integration], object]
    _: KW_ONLY
    retention: timedelta
    large_body: int = _LARGE_BODY
    monotonic: Callable[[], float]
    max_events: int = MAX_EVENTS
    recipients_page: int = 100  # integrations that one query reads, whose rows are verified without a pause
    max_new_events: int = 1000  # no provider documents larger batches
    record_outcome: Record = record_nothing  # integration type, outcome
    record_unrouted: Record = record_nothing  # integration type

    def __post_init__(self) -> None:
        self._large_reads = asyncio.Semaphore(_MAX_CONCURRENT_READS)
        self._log = structlog.get_logger(__name__)
        self._cipher = CredentialCipher(self.aead)
        self._logged_users: TTLCache[UserId, None] = TTLCache(_MAX_ENTRIES, _QUOTA_LOG_INTERVAL, self.monotonic)

    async def receive_webhook(self, integration_type: str, endpoint: str, request: WebhookRequest) -> WebhookResponse:
        """The response, after all events of the request are stored. Raises `StoreUnavailable`."""
        provider, outcome = self._provider(integration_type), "error"
        try:
            response = NOT_FOUND if provider is None else await self._receive(provider, endpoint, request)
            outcome = _OUTCOMES.get(response.status, "accepted")
            return response
        finally:
            self.record_outcome(integration_type if provider is None else provider.integration_type, outcome)

    async def _receive(self, provider: Provider, endpoint: str, request: WebhookRequest) -> WebhookResponse:
        app, _, oauth_client = endpoint.partition(".")  # no uid has a dot
        if app == APP:
            with_client = None
            if endpoint == APP or OAUTH_CLIENT_NAME.fullmatch(oauth_client):
                with_client = await self.providers.for_webhooks(provider.integration_type, oauth_client)
            return NOT_FOUND if with_client is None else await self._receive_for_app(with_client, request)
        # The address may contain an alias of the provider's type.
        found = await self.endpoints.find((provider.integration_type, endpoint)) if _UID.fullmatch(endpoint) else None
        return NOT_FOUND if found is None else await self._receive_for(found, provider, request)

    async def prune(self) -> None:
        """Delete events that are older than `retention`, unrouted ones, and expired routes."""
        while await self.inbox.prune(self.clock() - self.retention):
            pass
        await self.router.prune()
        await self.unrouted.prune()

    def _provider(self, integration_type: str) -> Provider | None:
        try:
            provider = self.providers[integration_type]
        except UnknownIntegrationType:
            return None
        return provider if provider.supports_webhooks else None

    async def _receive_for_app(self, provider: Provider, request: WebhookRequest) -> WebhookResponse:
        """Receive for all integrations of the provider's client whose account is the account of an event."""
        secrets = provider.webhook_secrets(None)
        if not secrets:
            return NOT_FOUND
        batch = await self._verified(provider, request, secrets)
        try:
            async for events in batch.slices():
                await self._route(batch, provider, [_storable(event) for event in events])
        except _TooManyNewEvents:
            return self._refuse_rest(provider, batch)
        if batch.has_unrouted:
            self.record_unrouted(provider.integration_type)
        return batch.response

    async def _route(self, batch: _Batch, provider: Provider, events: Sequence[WebhookEvent]) -> None:
        """Store events for all integrations that they belong to, or as unrouted. Raises `_TooManyNewEvents`."""
        integration_type, oauth_client = provider.integration_type, provider.oauth_client.name
        accounts = {event.account_id for event in events if event.account_id is not None}
        routed, unrouted = await self.router.find(integration_type, events), dict(enumerate(events))
        key = client_key(integration_type, oauth_client)
        async for integrations in self._recipients(key, accounts, routed.integration_ids):
            addressed = list(_addressed(integrations, events, await routed.routes_of(integrations)))
            deliveries = [(integration, events[index]) for integration, index in addressed]
            await self._store(batch, deliveries)
            await self.router.store_routes(deliveries)
            for _, index in addressed:
                unrouted.pop(index, None)
        if unrouted:
            batch.has_unrouted = True
            await self.unrouted.record(integration_type, oauth_client, list(unrouted.values()))

    async def _recipients(
        self, key: str, accounts: Collection[str], ids: Collection[IntegrationId]
    ) -> AsyncIterator[Sequence[Integration]]:
        """The connected integrations of a client with these accounts or ids, in pages. An altered row gets nothing."""
        last = IntegrationId(0)
        while accounts or ids:
            page = await self.inbox.find_recipients(key, accounts, last, self.recipients_page, ids)
            verified = [await self._cipher.redacted(stored) for stored in page]
            yield [webhook for webhook in verified if webhook.account_id is not None and webhook.client_key == key]
            if len(page) < self.recipients_page:
                return
            last = page[-1].integration.integration_id

    async def _receive_for(
        self, endpoint: WebhookEndpoint, provider: Provider, request: WebhookRequest
    ) -> WebhookResponse:
        """Receive for the integration that the address identifies, whatever account the events name."""
        integration = endpoint.stored.integration
        try:
            provider = await self.providers.for_client(integration.integration_type, integration.oauth_client)
            provider = provider.for_config(integration.config)
        except InvalidField:  # the config was valid for an earlier version of the provider
            self._log.warning("webhook_config_invalid", **integration.log_fields)
            return UNAUTHORIZED
        secrets = await self.secrets.valid(endpoint)
        if not secrets:
            return UNAUTHORIZED
        batch = await self._verified(provider, request, secrets)
        try:
            async for events in batch.slices():
                restricted = [_storable(_restrict_to_account(integration, event)) for event in events]
                await self._store(batch, [(integration, event) for event in restricted])
        except _TooManyNewEvents:
            return self._refuse_rest(provider, batch)
        return batch.response

    async def _verified(self, provider: Provider, request: WebhookRequest, secrets: Sequence[str]) -> _Batch:
        """The events and response of a request; no events and 401 if it is not verified."""
        run = _run_here if len(request.body) <= self.large_body else self._run_in_thread
        try:
            received = await run(partial(provider.receive_webhook, request, secrets))
        except InvalidWebhookSignature:
            self._log.info("webhook_signature_invalid", integration_type=provider.integration_type)
            received = ReceivedWebhook(response=UNAUTHORIZED)
        return _Batch(received, self.max_events, run)

    async def _run_in_thread(self, call: Callable[[], T]) -> T:
        async with self._large_reads:
            return await asyncio.to_thread(call)

    def _refuse_rest(self, provider: Provider, batch: _Batch) -> WebhookResponse:
        self._log.warning(
            "webhook_events_refused",
            integration_type=provider.integration_type,
            events=len(batch.received.events),
            stored=batch.stored,
        )
        return TOO_MANY_NEW_EVENTS

    async def _store(self, batch: _Batch, deliveries: Sequence[tuple[Integration, WebhookEvent]]) -> None:
        """Store the new ones of these events, each user's in one transaction. Raises `_TooManyNewEvents`."""
        for start in range(0, len(deliveries), _SLICE):
            by_user = defaultdict(list)
            for integration, event in await self._new(deliveries[start : start + _SLICE]):
                if integration.user_id not in batch.full_users:
                    by_user[integration.user_id].append((integration, event))
            # A provider that repeats events under other ids would be asked for the same events for ever.
            counted = sum(event.has_stable_id for new in by_user.values() for _, event in new)
            if counted and batch.stored >= self.max_new_events:
                raise _TooManyNewEvents
            batch.stored += counted
            for user_id, new in by_user.items():
                try:
                    await self._add(new)
                except QuotaExceeded:
                    batch.full_users.add(user_id)
                    self._log_full_user(new[0][0])
                    for integration in {row.uid: row for row, event in new if event.reports_grant_end}.values():
                        self.confirm_grant_end(integration)  # the report counts, although it cannot be kept

    async def _new(
        self, deliveries: Sequence[tuple[Integration, WebhookEvent]]
    ) -> Sequence[tuple[Integration, WebhookEvent]]:
        """The events that are not stored yet. A single one is looked up where it is stored."""
        if len(deliveries) < 2:
            return deliveries
        known = await self.inbox.known(
            {integration.integration_id for integration, _ in deliveries}, {event.event_id for _, event in deliveries}
        )
        return [
            (integration, event)
            for integration, event in deliveries
            if (integration.integration_id, event.event_id) not in known
        ]

    async def _add(self, deliveries: Sequence[tuple[Integration, WebhookEvent]]) -> None:
        new = [await self._encrypted(integration, event) for integration, event in deliveries]
        for added in await self.inbox.add(new):
            if added.reports_grant_end:
                self.confirm_grant_end(added.integration)

    def _log_full_user(self, integration: Integration) -> None:
        if integration.user_id not in self._logged_users:
            self._logged_users[integration.user_id] = None
            self._log.error("webhook_quota_exceeded", **integration.log_fields)

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


def _addressed(
    integrations: Sequence[Integration],
    events: Sequence[WebhookEvent],
    by_route: Mapping[str, Sequence[Integration]],
) -> Iterator[tuple[Integration, int]]:
    """Each integration with the index of each event of its account or route, in the order of the events.

    A route is that of the integrations for which it is stored, and of all accounts that these events name with it.
    """
    by_account = defaultdict(list)
    for integration in integrations:
        by_account[integration.account_id].append(integration)
    recipients = {
        route: {integration.integration_id: integration for integration in found} for route, found in by_route.items()
    }
    for event in events:
        if event.account_id is not None and event.route is not None:
            of_account = {
                integration.integration_id: integration for integration in by_account.get(event.account_id, ())
            }
            recipients.setdefault(event.route, {}).update(of_account)
    for index, event in enumerate(events):
        if event.account_id is not None:
            yield from ((integration, index) for integration in by_account.get(event.account_id, ()))
        elif event.route is not None:
            yield from ((integration, index) for integration in recipients.get(event.route, {}).values())


def _restrict_to_account(integration: Integration, event: WebhookEvent) -> WebhookEvent:
    """The event, which does not report the end of the grant if it names another account."""
    accounts = {event.account_id, integration.account_id} - {None}
    return replace(event, reports_grant_end=event.reports_grant_end and len(accounts) < 2)


def _storable(event: WebhookEvent) -> WebhookEvent:
    """The event with texts that every database can store. An unsuitable id is replaced by its digest."""
    event_id = event.event_id
    if not _is_storable(event_id):
        event_id = f"sha256:{hashlib.sha256(event_id.encode(errors='surrogatepass') or event.payload).hexdigest()}"
    event_type = "".join(character for character in event.event_type if not has_control_characters(character))[
        :_MAX_TEXT_LENGTH
    ]
    account_id, route = (text if _is_storable(text) else None for text in (event.account_id, event.route))
    return replace(event, event_id=event_id, event_type=event_type, account_id=account_id, route=route)


def _is_storable(text: str | None) -> bool:
    return text is not None and 0 < len(text) <= _MAX_TEXT_LENGTH and not has_control_characters(text)
