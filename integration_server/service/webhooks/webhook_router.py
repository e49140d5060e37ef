"""Routes: keys of integrations, such as subscriptions, by which events are routed that do not name the account.

The connection of an account teaches some, and so does an event that names both the account and the key. Each is stored
with an encrypted copy that is bound to the integration, so that who writes to the database cannot redirect events.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta

import structlog
from cachetools import TTLCache

from integration_server.domain.associated_data import AssociatedData, route_aad
from integration_server.domain.errors import CredentialsUnreadable
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.domain.webhooks import WebhookEvent
from integration_server.service.common_types import (
    Aead,
    Clock,
)
from integration_server.service.webhooks.ports import NewWebhookRoute, WebhookRoutes

_MAX_KNOWN = 10_000
# Learned routes are subscriptions, which providers end after at most some weeks unless they are renewed.
_LIFETIME = timedelta(days=60)
_REFRESH_INTERVAL = 86_400.0  # seconds between two writes of one route


@dataclass(eq=False, repr=False)
class WebhookRouter:
    """Stores routes, and finds the integrations of events by them. `monotonic` is in seconds."""

    store: WebhookRoutes
    aead: Aead
    clock: Clock
    _: KW_ONLY
    monotonic: Callable[[], float]

    def __post_init__(self) -> None:
        self._known: TTLCache[tuple[IntegrationId, str], None] = TTLCache(_MAX_KNOWN, _REFRESH_INTERVAL, self.monotonic)

    async def add(self, integration: Integration, routes: Collection[str]) -> None:
        """Add routes that stay as long as the integration. Raises `StoreUnavailable`."""
        await self._add([(integration, route) for route in routes], None)

    async def store_routes(self, deliveries: Iterable[tuple[Integration, WebhookEvent]]) -> None:
        """Store the routes of events whose recipient is known, for a limited time. Raises `StoreUnavailable`."""
        new = {
            (integration.integration_id, event.route): (integration, event.route)
            for integration, event in deliveries
            if event.route is not None and not event.reports_grant_end
        }
        new = {key: route for key, route in new.items() if key not in self._known}
        if new:
            await self._add(list(new.values()), self.clock() + _LIFETIME)
            self._known.update(dict.fromkeys(new))

    async def find(self, integration_type: str, events: Sequence[WebhookEvent]) -> "RoutedEvents":
        """The integrations of the events that name no account but a route."""
        routes = {event.route for event in events if event.account_id is None and event.route is not None}
        copies: dict[str, dict[IntegrationId, bytes]] = defaultdict(dict)
        for route, integration_id, encrypted_copy in await self.store.find(integration_type, routes) if routes else ():
            copies[route][integration_id] = encrypted_copy
        return RoutedEvents(self.aead, copies)

    async def prune(self) -> None:
        """Delete expired routes."""
        while await self.store.prune(self.clock()):
            pass

    async def _add(self, routes: Sequence[tuple[Integration, str]], expire_time: datetime | None) -> None:
        new = [
            NewWebhookRoute(integration, route, await self.aead.encrypt(route.encode(), _aad(integration, route)))
            for integration, route in routes
        ]
        await self.store.add(new, expire_time)


@dataclass(frozen=True, slots=True)
class RoutedEvents:
    """The stored routes of some events."""

    aead: Aead
    copies: Mapping[str, Mapping[IntegrationId, bytes]]

    @property
    def integration_ids(self) -> Collection[IntegrationId]:
        """The integrations that may have one of the routes."""
        return {integration_id for found in self.copies.values() for integration_id in found}

    async def routes_of(self, integrations: Iterable[Integration]) -> Mapping[str, Sequence[Integration]]:
        """Those of these integrations that have each route. A copy that was altered or moved is ignored."""
        found = defaultdict(list)
        for integration in integrations:
            for route, copies in self.copies.items():
                copy = copies.get(integration.integration_id)
                if copy is not None and await self._is_route_of(integration, route, copy):
                    found[route].append(integration)
        return found

    async def _is_route_of(self, integration: Integration, route: str, encrypted_copy: bytes) -> bool:
        try:
            return await self.aead.decrypt(encrypted_copy, _aad(integration, route)) == route.encode()
        except CredentialsUnreadable:
            structlog.get_logger(__name__).error("webhook_route_altered", **integration.log_fields)
            return False


def _aad(integration: Integration, route: str) -> AssociatedData:
    return route_aad(integration.uid, integration.user_id, integration.integration_type, route)
