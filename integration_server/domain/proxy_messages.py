"""Requests to a provider's API and its answers, as they pass through here. Everything in them may be personal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request, its path beneath the API's base address. `idempotency_key` says that repeating it does no harm."""

    method: str
    path: str
    query: Sequence[tuple[str, str]] = field(default=(), repr=False)
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    idempotency_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Quota:
    """What an answer tells of the provider's own limits: `remaining` more calls within `reset_after`."""

    remaining: int
    reset_after: timedelta


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """An answer. `is_rate_limited`: the request was turned away for now, until `retry_after` where that was said.

    `rejects_access_token`: the token is dead, though the status does not say so; `is_unauthorized` is either.
    `was_retried`: the request had been sent before, without an answer, and may have been carried out then.
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
        """Whether the credentials as such were refused (RFC 6750 §3.1), by the status or in the provider's own way."""
        return self.status == 401 or self.rejects_access_token


class LimitScope(StrEnum):
    """What shares a budget of calls."""

    APP = "app"
    """All integrations of the type: the provider counts the calls of our app."""

    INTEGRATION = "integration"
    """Each integration for itself: the provider counts the calls of an account."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many calls, at most, in any stretch of time of that length."""

    calls: int
    window: timedelta
    scope: LimitScope = LimitScope.INTEGRATION
