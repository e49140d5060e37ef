"""Requests to a provider's API and its responses. All their contents may be personal data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request. `path` extends the API's base URL. A request with an `idempotency_key` may be sent again."""

    method: str
    path: str
    query: Sequence[tuple[str, str]] = field(default=(), repr=False)
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    idempotency_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Quota:
    """The provider's own limit as a response reports it: `remaining` more calls within `reset_after`."""

    remaining: int
    reset_after: timedelta


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """A response.

    Attributes:
        is_rate_limited: the provider rejected the request because of too many calls.
        retry_after: the time until a retry may succeed, if the provider reports it.
        rejects_access_token: the access token is invalid, although the status does not say so.
        was_retried: the request had been sent before without a response, and may have been executed then.
    """

    status: int
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)
    is_rate_limited: bool = False
    retry_after: timedelta | None = None
    quotas: Sequence[Quota] = ()
    rejects_access_token: bool = False
    was_retried: bool = False

    @property
    def is_unauthorized(self) -> bool:
        """Whether the credentials were rejected (RFC 6750 §3.1), by the status or in the provider's own way."""
        return self.status == 401 or self.rejects_access_token


class LimitScope(StrEnum):
    """Which calls count together."""

    APP = "app"
    """The calls of all integrations of the type: the provider counts per app."""

    INTEGRATION = "integration"
    """The calls of each integration: the provider counts per account."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `calls` calls in any period of length `window`."""

    calls: int
    window: timedelta
    scope: LimitScope = LimitScope.INTEGRATION
