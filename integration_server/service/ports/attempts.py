"""Attempts to connect."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.ports.integrations import NewIntegration


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """An attempt to connect, about to be stored. `attempt_id` is the nonce that the state carries."""

    attempt_id: str
    user_id: UserId
    integration_type: str
    redirect_uri: str
    return_url: str | None
    scopes: tuple[str, ...]
    sealed_verifier: bytes = field(repr=False)
    is_reconnection: bool
    create_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Attempt:
    """A stored attempt, taken by the one callback or confirmation that may finish it."""

    attempt_id: str
    integration_id: IntegrationId
    user_id: UserId
    integration_type: str
    redirect_uri: str
    return_url: str | None
    scopes: tuple[str, ...]
    sealed_verifier: bytes = field(repr=False)
    sealed_callback: bytes | None = field(repr=False)
    is_reconnection: bool
    expire_time: datetime


class AttemptStore(Protocol):
    """Attempts to connect. Each is begun, perhaps held for its confirmation, and taken once."""

    async def begin(self, attempt: NewAttempt, integration: NewIntegration) -> IntegrationId:
        """Store a pending integration together with the attempt that may finish it."""

    async def begin_again(self, attempt: NewAttempt, integration_id: IntegrationId) -> None:
        """Store an attempt to reconnect; the integration stays as it is. Raises `IntegrationNotFound`."""

    async def hold(self, attempt_id: str, sealed_callback: bytes, now: datetime) -> Attempt | None:
        """Keep the callback until it is confirmed. None if the attempt is not in its beginning, or over."""

    async def take(self, attempt_id: str, now: datetime) -> Attempt | None:
        """Take a begun attempt, to be finished by this caller alone. None if it is taken, held or over."""

    async def take_held(self, attempt_id: str, now: datetime) -> Attempt | None:
        """Take a held attempt, to be finished by this caller alone. None if it is not held, or over."""

    async def give_up(self, attempt: Attempt) -> None:
        """Remove what a taken attempt leaves behind: its pending integration, if it is pending."""

    async def remove_expired(self, before: datetime) -> int:
        """Remove attempts that ended before then, with the integrations still pending on them; how many there were."""
