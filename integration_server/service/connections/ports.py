"""Attempts to connect."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.integrations.ports import NewIntegration


@dataclass(frozen=True, slots=True)
class NewAuthorizationAttempt:
    """An attempt to connect, about to be stored. `attempt_id` is the nonce that the state carries."""

    attempt_id: str
    user_id: UserId
    integration_type: str
    redirect_uri: str
    return_url: str | None
    scopes: tuple[str, ...]
    encrypted_verifier: bytes = field(repr=False)
    is_reconnection: bool
    create_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class AuthorizationAttempt:
    """A stored attempt, taken by the one callback or confirmation that may finish it."""

    attempt_id: str
    integration_id: IntegrationId
    user_id: UserId
    integration_type: str
    redirect_uri: str
    return_url: str | None
    scopes: tuple[str, ...]
    encrypted_verifier: bytes = field(repr=False)
    encrypted_callback: bytes | None = field(repr=False)
    is_reconnection: bool
    expire_time: datetime


class AuthorizationAttemptStore(Protocol):
    """Attempts to connect. Each is begun, perhaps held for its confirmation, and taken once."""

    async def begin(self, attempt: NewAuthorizationAttempt, integration: NewIntegration) -> IntegrationId:
        """Store a pending integration together with the attempt that may finish it."""

    async def begin_reconnection(self, attempt: NewAuthorizationAttempt, integration_id: IntegrationId) -> None:
        """Store an attempt to reconnect; the integration stays as it is. Raises `IntegrationNotFound`."""

    async def store_pending_callback(
        self, attempt_id: str, encrypted_callback: bytes, now: datetime
    ) -> AuthorizationAttempt | None:
        """Keep the callback until it is confirmed. None if the attempt is not in its beginning, or over."""

    async def consume(self, attempt_id: str, now: datetime) -> AuthorizationAttempt | None:
        """Take a begun attempt, to be finished by this caller alone. None if it is taken, held or over."""

    async def consume_pending_callback(self, attempt_id: str, now: datetime) -> AuthorizationAttempt | None:
        """Take a held attempt, to be finished by this caller alone. None if it is not held, or over."""

    async def abandon(self, attempt: AuthorizationAttempt) -> None:
        """Remove what a taken attempt leaves behind: its pending integration, if it is pending."""

    async def remove_expired(self, before: datetime) -> int:
        """Remove attempts that ended before then, with the integrations still pending on them; how many there were."""
