"""The ports of webhook storage: endpoints with their secrets, and the inbox of received events."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration, UserId
from integration_server.domain.oauth_client import client_key
from integration_server.domain.webhooks import UnroutedReason


@dataclass(frozen=True, slots=True)
class StoredWebhookSecrets:
    """The encrypted secret of an integration's webhooks, and the previous one with the time at which it expires.

    They count only while the integration has their `webhook_secret_id`.
    """

    webhook_secret_id: str
    encrypted_secret: bytes = field(repr=False)
    secret_set_time: datetime
    encrypted_previous_secret: bytes | None = field(default=None, repr=False)
    previous_expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """An integration with its webhook secrets; None if none were set."""

    stored: StoredIntegration
    secrets: StoredWebhookSecrets | None


class WebhookEndpoints(Protocol):
    """The webhook endpoints of integrations and their secrets. The last part of an address is the integration's uid."""

    async def find(self, integration_type: str, uid: str) -> WebhookEndpoint | None:
        """The connected integration of this type with this uid, of any user."""

    async def find_by_id(self, integration_id: IntegrationId, user_id: UserId) -> WebhookEndpoint | None:
        """The user's integration, pending or not."""

    async def set_secrets(
        self, integration: Integration, secrets: StoredWebhookSecrets, encrypted_credentials: bytes
    ) -> bool:
        """Set the secrets, with the credentials that are bound to their id and to the next settings version.

        False, and no change, if the integration is gone or has another version or settings version.
        """


@dataclass(frozen=True, slots=True)
class NewWebhookEvent:
    """An event to store for an integration. All fields but the last are part of the associated data of its payload."""

    integration: Integration
    uid: str
    event_id: str
    event_type: str
    receive_time: datetime
    encrypted_payload: bytes = field(repr=False)
    reports_grant_end: bool = False


@dataclass(frozen=True, slots=True)
class StoredWebhookEvent:
    """A stored event."""

    number: int
    uid: str
    event_id: str
    event_type: str
    receive_time: datetime
    encrypted_payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookPage:
    """Events in order, and whether there are no more."""

    events: Sequence[StoredWebhookEvent]
    is_last: bool


class WebhookInbox(Protocol):
    """Received events, kept for a limited time, and the offset of each consumer.

    The events of an integration are numbered from 1 without gaps, in the order in which they become visible.
    """

    async def find_recipients(
        self,
        client_key: str,
        account_ids: Collection[str],
        after: IntegrationId,
        limit: int,
        integration_ids: Collection[IntegrationId] = (),
    ) -> Sequence[StoredIntegration]:
        """The connected integrations of a client with these accounts or ids, of any user.

        They have an id above `after`, and are ordered by id.
        """

    async def known(
        self, integration_ids: Collection[IntegrationId], event_ids: Collection[str]
    ) -> Collection[tuple[IntegrationId, str]]:
        """Which of these events are stored for these integrations. Reads only: a repeated delivery writes nothing."""

    async def add(self, events: Sequence[NewWebhookEvent]) -> Sequence[NewWebhookEvent]:
        """Store the events of one user that are not stored yet, all or none, and return them.

        A single event that is stored already writes nothing.

        If the user's payloads exceed the quota, the oldest events that every consumer of their integration has
        acknowledged are deleted. Raises `QuotaExceeded`, and stores nothing, if that does not suffice.

        After an event that reports the end of the grant, a health check is due in a minute. Events of an integration
        that no longer exists are not stored.
        """

    async def list(self, integration: Integration, after: int, limit: int, max_bytes: int) -> WebhookPage:
        """An integration's events with a number above `after`: at most `limit`, of at most `max_bytes` together.

        The first event is returned even if it is larger.
        """

    async def consumer_offset(self, integration: Integration, consumer: str) -> int:
        """The number that the consumer has acknowledged last; 0 if none."""

    async def acknowledge(self, integration: Integration, consumer: str, number: int) -> int | None:
        """Advance the consumer's offset to `number`, never back. Returns the offset; None if there is no such event."""

    async def prune(self, before: datetime) -> int:
        """Delete a batch of events received before then, of any user. Returns how many; 0 if none are left.

        Then it also deletes what is stored about the usage of users who have no events.
        """


@dataclass(frozen=True, slots=True)
class UnroutedWebhook:
    """A verified event at an app's address that belongs to no integration, without its payload.

    `oauth_client` is the name of the client whose address it is.
    """

    integration_type: str
    event_id: str
    event_type: str
    account_id: str | None
    route: str | None
    reason: UnroutedReason
    payload_bytes: int
    receive_time: datetime
    oauth_client: str = ""

    @property
    def client_key(self) -> str:
        """The key of its client (`domain/oauth_client.py`)."""
        return client_key(self.integration_type, self.oauth_client)


@dataclass(frozen=True, slots=True)
class NewUnroutedWebhook:
    """An event to store. Its payload is bound to `uid` and to the id, type and time of the event."""

    uid: str
    event: UnroutedWebhook
    encrypted_payload: bytes = field(repr=False)


class UnroutedWebhooks(Protocol):
    """Verified events that belong to no integration, kept for a while so that operators find them."""

    async def add(self, events: Sequence[NewUnroutedWebhook]) -> None:
        """Store events of one client; one with the id of a stored event is ignored.

        Of each client so many rows and bytes are kept. The oldest beyond that are deleted.
        """

    async def list(
        self, integration_type: str, allowed_types: AllowedTypes, before: int | None, limit: int
    ) -> Sequence[tuple[int, UnroutedWebhook]]:
        """Events with their numbers, the newest first, with a number below `before`. An empty type means all types."""

    async def prune(self, before: datetime) -> int:
        """Delete a batch of events received before then. Returns how many; 0 if none are left."""


@dataclass(frozen=True, slots=True)
class NewWebhookRoute:
    """A route of an integration to store, and its encrypted copy."""

    integration: Integration
    route: str
    encrypted_copy: bytes = field(repr=False)


class WebhookRoutes(Protocol):
    """Keys of integrations, such as subscriptions, by which events are routed that do not name the account."""

    async def find(
        self, integration_type: str, routes: Collection[str]
    ) -> Collection[tuple[str, IntegrationId, bytes]]:
        """The integrations that have one of these routes, with the route and its encrypted copy."""

    async def add(self, routes: Collection[NewWebhookRoute], expire_time: datetime | None) -> None:
        """Add routes, or replace their expiry; None means that they expire with their integration.

        Of an integration that no longer exists none are stored. Of each integration so many routes are kept; those
        beyond that which expire first are deleted.
        """

    async def prune(self, now: datetime) -> int:
        """Delete a batch of expired routes. Returns how many; 0 if none are left."""
