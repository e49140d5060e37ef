"""Requests to a provider's API and its responses. All their contents may be personal data."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request. `path` extends the API's base URL. A request with an `idempotency_key` may be sent again.

    `api` is the name of the API, if the provider has several; empty for the main one. `sub_account` is an account below
    the integration's own whose token the request uses; empty for the own one.
    """

    method: str
    path: str
    query: Sequence[tuple[str, str]] = field(default=(), repr=False)
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    idempotency_key: str = field(default="", repr=False)
    api: str = ""
    sub_account: str = ""


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
        rejects_access_token: whether the access token is invalid; None if only the status says so.
        was_retried: the request had been sent before without a response, and may have been executed then.
        reason: the provider's code for an error, from the codes that it declares.
        is_client_fault: our app at the provider is at fault, and not the account.
        rate_limit_resource: the resource whose limits the response is about, if it names one; empty for all of them.
        secrets: what the request carried besides the secrets of the integration.
    """

    status: int
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)
    is_rate_limited: bool = False
    retry_after: timedelta | None = None
    quotas: Sequence[Quota] = ()
    rejects_access_token: bool | None = None
    was_retried: bool = False
    reason: str | None = None
    is_client_fault: bool = False
    rate_limit_resource: str | None = None
    secrets: Collection[str] = field(default=(), repr=False)

    @property
    def is_unauthorized(self) -> bool:
        """Whether the credentials were rejected (RFC 6750 §3.1), by the status or in the provider's own way."""
        return self.status == 401 if self.rejects_access_token is None else self.rejects_access_token


async def _no_parts() -> AsyncIterator[bytes]:
    parts: Sequence[bytes] = ()
    for part in parts:
        yield part


@dataclass(frozen=True, slots=True)
class ApiStream:
    """A response whose body has not arrived yet: `chunks` are its parts as sent, after what `response` has of it.

    Reading a part raises `ProviderUnavailable` if the body ends early.
    """

    response: ApiResponse
    chunks: AsyncIterator[bytes] = field(default_factory=_no_parts, repr=False)


class LimitScope(StrEnum):
    """Which calls count together."""

    APP = "app"
    """The calls of all integrations of the type: the provider counts per app."""

    INTEGRATION = "integration"
    """The calls of each integration: the provider counts per account."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `calls` calls in any period of length `window`: all calls, or those of one `resource`."""

    calls: int
    window: timedelta
    scope: LimitScope = LimitScope.INTEGRATION
    resource: str = ""
