"""Where webhooks arrive, and where they are kept."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from integration_server.domain.integration import Failure, Integration, IntegrationId, UserId
from integration_server.service.integrations.ports import StoredIntegration


@dataclass(frozen=True, slots=True)
class StoredWebhookSecrets:
    """What an integration's own webhooks are signed with, sealed; and what they were signed with before, until when."""

    encrypted_secret: bytes = field(repr=False)
    secret_set_time: datetime
    encrypted_previous_secret: bytes | None = field(default=None, repr=False)
    previous_expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """An integration as its own webhook address finds it."""

    stored: StoredIntegration
    secrets: StoredWebhookSecrets | None


class WebhookEndpoints(Protocol):
    """Integrations' own webhook addresses, whose last part is the integration's `uid`, and their secrets."""

    async def find(self, integration_type: str, uid: str) -> WebhookEndpoint | None:
        """The connected integration of this type with this address, whoever's."""

    async def find_by_id(self, integration_id: IntegrationId, user_id: UserId) -> WebhookEndpoint | None:
        """The user's integration, pending or not."""

    async def set_secrets(
        self, integration: Integration, before: StoredWebhookSecrets | None, secrets: StoredWebhookSecrets
    ) -> bool:
        """Put secrets in the place of those before. False, and nothing changed, if others are there by now."""


@dataclass(frozen=True, slots=True)
class NewWebhookEvent:
    """An event about to be stored for an integration. `uid` is what its payload is sealed for."""

    integration: Integration
    uid: str
    event_id: str
    event_type: str
    encrypted_payload: bytes = field(repr=False)
    ends_grant: Failure | None = None


@dataclass(frozen=True, slots=True)
class StoredWebhookEvent:
    """An event as it is stored."""

    number: int
    uid: str
    event_id: str
    event_type: str
    receive_time: datetime
    encrypted_payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookPage:
    """Events in their order, and whether more follow."""

    events: Sequence[StoredWebhookEvent]
    is_last: bool


class WebhookInbox(Protocol):
    """What webhooks have brought, kept until it is too old, and how far each consumer has got.

    An integration's events are numbered from 1 on, without gaps, in the order in which they became visible.
    """

    async def find_recipients(self, integration_type: str, account_ids: Collection[str]) -> Sequence[Integration]:
        """The connected integrations of these accounts, whoever's."""

    async def known(
        self, integration_ids: Collection[IntegrationId], event_ids: Collection[str]
    ) -> Collection[tuple[IntegrationId, str]]:
        """Which of these events these integrations have already. Only reads: a repeated delivery costs no more."""

    async def add(self, events: Sequence[NewWebhookEvent], now: datetime) -> Sequence[NewWebhookEvent]:
        """Store those that are not known, all or none; which they were.

        One that ends the grant sets that failure with it, unless the integration was connected again since `now`.
        An integration that is gone by now gets nothing.
        """

    async def list(self, integration: Integration, after: int, limit: int, max_bytes: int) -> WebhookPage:
        """An integration's events above a number: at most `limit`, and of at most so many bytes, but for the first."""

    async def consumer_offset(self, integration: Integration, consumer: str) -> int:
        """The number that the consumer has acknowledged last; 0 for none."""

    async def acknowledge(self, integration: Integration, consumer: str, number: int) -> int | None:
        """Move the consumer's place there, unless it is further; where it is. None if there is no such event yet."""

    async def prune(self, before: datetime) -> int:
        """Forget some of everybody's events that came before then; how many there were. 0: none is left."""
