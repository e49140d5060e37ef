"""Calls to providers' APIs for backends: let in by credentials that never leave this server, within the provider's
limits, repeated where that is safe, and answered within the caller's deadline.

What the provider answers is an answer, also if it is an error. An error of ours is that there was none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from integration_server.domain.errors import (
    InvalidField,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    StoreUnavailable,
)
from integration_server.domain.integration import Failure, Integration, IntegrationId, UserId
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Clock
from integration_server.service.credentials.credential_service import CredentialService, RefreshResult
from integration_server.service.integrations.ports import IntegrationStore
from integration_server.service.provider_port import Provider, Providers
from integration_server.service.proxy.call_deadline import time_left
from integration_server.service.proxy.proxy_policy import (
    IDEMPOTENCY_KEY,
    IDEMPOTENT_METHODS,
    forwardable_headers,
    require_no_credentials,
    require_valid_request,
    secrets_of,
)
from integration_server.service.proxy.rate_limiter import RateLimiters

_REPEATED_FAILURE_INTERVAL = timedelta(seconds=10)
"""A failure like the last one, of a moment ago, is news to nobody: so an outage is not a write for each call."""


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """What a call may take: time where the caller sets none, and bytes in either direction."""

    deadline: timedelta = timedelta(seconds=30)
    request_bytes: int = 1 << 20
    response_bytes: int = 2 << 20


class ApiProxy:
    """Makes calls."""

    def __init__(
        self,
        credentials: CredentialService,
        integrations: IntegrationStore,
        providers: Providers,
        rate_limiters: RateLimiters,
        tasks: DetachedTasks,
        clock: Clock,
        limits: ProxyLimits,
    ) -> None:
        self._credentials = credentials
        self._integrations = integrations
        self._providers = providers
        self._rate_limiters = rate_limiters
        self._tasks = tasks
        self._clock = clock
        self._limits = limits

    async def call_provider(self, integration_id: IntegrationId, user_id: UserId, request: ApiRequest) -> ApiResponse:
        """The provider's answer. Raises `InvalidField` for what may not be sent, `RateLimited`, `ProviderError`."""
        require_valid_request(request)
        if len(request.body) > self._limits.request_bytes:
            raise InvalidField("body", f"has {len(request.body)} bytes; {self._limits.request_bytes} is the most")
        return await self.send(await self._credentials.get_usable(integration_id, user_id), request)

    async def send(self, fresh: RefreshResult, request: ApiRequest) -> ApiResponse:
        """Make a call with these credentials, or newer ones; `request` is passable."""
        call = _Call(
            request,
            fresh,
            self._credentials.refreshed,
            self.provider_of,
            self._rate_limiters,
            until=_loop_time() + _timeout_seconds(self._limits.deadline),
            response_bytes=self._limits.response_bytes,
        )
        try:
            response = await call.response()
        except ProviderError as error:
            if call.was_sent:
                self._update_last_error(call.fresh.integration, error)
            raise
        self._update_last_error(
            call.fresh.integration,
            _error_of(response),
            is_success=response.status < 500 and not response.is_rate_limited,
        )
        return replace(response, headers=forwardable_headers(response.headers, call.secrets()))

    def provider_of(self, integration: Integration) -> Provider:
        """The provider as the integration sees it."""
        return self._providers.get(integration.integration_type).for_config(integration.config)

    # --- what comes of a call for its integration

    def _update_last_error(
        self, integration: Integration, error: ProviderError | None, *, is_success: bool = False
    ) -> None:
        """Have the last error set or cleared, where that says something new. The caller does not wait for it."""
        last = integration.last_error
        if error is not None:
            now = self._clock()
            if last is None or last.error_class != error.reason or now - last.time >= _REPEATED_FAILURE_INTERVAL:
                self._tasks.start(self._record(integration, Failure(error.reason, now, str(error))))
        elif is_success and last is not None and not integration.lacks_required_scope:
            self._tasks.start(self._record(integration, None))

    async def _record(self, integration: Integration, failure: Failure | None) -> None:
        with suppress(StoreUnavailable):  # the next call or check sees how it stands
            await self._integrations.record_call(integration, failure)


class _Call:
    """One call with all its attempts, until `until` on the loop's clock."""

    def __init__(
        self,
        request: ApiRequest,
        fresh: RefreshResult,
        refresh: Callable[[RefreshResult], Awaitable[RefreshResult | None]],
        provider_of: Callable[[Integration], Provider],
        rate_limiters: RateLimiters,
        *,
        until: float,
        response_bytes: int,
    ) -> None:
        self.fresh = fresh
        self.was_sent = False
        self._request = request
        self._refresh = refresh
        self._provider_of = provider_of
        self._rate_limiters = rate_limiters
        self._until = until
        self._response_bytes = response_bytes
        self._is_safe = request.method in IDEMPOTENT_METHODS or bool(_idempotency_keys(request))
        self._used_credentials: list[RefreshResult] = []

    def secrets(self) -> frozenset[str]:
        """What the answer must not tell, of all credentials that were used."""
        return frozenset(
            secret
            for used in self._used_credentials
            for secret in secrets_of(used.credentials, self._provider().request_auth(used.credentials))
        )

    async def response(self) -> ApiResponse:
        """The provider's answer, once it is one. Raises `RateLimited` or `ProviderError`."""
        was_lost = was_refreshed = False
        while True:
            try:
                response = await self._attempt()
            except ProviderUnavailable:
                if was_lost or not self._may_retry():
                    raise
                was_lost = True  # a connection may be lost; one that is lost twice is more than that
                continue
            if response.is_unauthorized and not was_refreshed:
                was_refreshed = True
                refreshed = await self._refresh(self.fresh)
                if refreshed is not None:
                    self.fresh = refreshed
                    continue
            if not response.is_rate_limited:
                return replace(response, was_retried=was_lost)
            if not self._is_safe:
                raise ProviderUnavailable("the provider says wait", retry_after=response.retry_after)

    async def _attempt(self) -> ApiResponse:
        provider, integration = self._provider(), self.fresh.integration
        require_no_credentials(self._request, provider.request_auth(self.fresh.credentials))
        limiter = self._rate_limiters.limiter(provider)
        async with limiter.permit(integration, self._seconds_left(), is_retry=self.was_sent) as permit:
            self.was_sent = True
            self._used_credentials.append(self.fresh)
            response = await provider.call_api(
                self.fresh.credentials,
                self._request,
                deadline=timedelta(seconds=self._seconds_left()),
                body_limit=self._response_bytes,
            )
            pause = permit.observe(response)
        return replace(response, retry_after=pause) if response.is_rate_limited else response

    def _may_retry(self) -> bool:
        return self._is_safe and self.was_sent and self._seconds_left() > 0

    def _provider(self) -> Provider:
        return self._provider_of(self.fresh.integration)

    def _seconds_left(self) -> float:
        return max(0.0, self._until - _loop_time())


def _idempotency_keys(request: ApiRequest) -> Sequence[str]:
    """The idempotency keys of a request: by them the provider knows it when it comes again."""
    given = [value for name, value in request.headers if name.lower() == IDEMPOTENCY_KEY]
    return [key for key in (request.idempotency_key, *given) if key]


def _error_of(response: ApiResponse) -> ProviderError | None:
    """What an answer says against its integration."""
    return ProviderRejected("credentials") if response.is_unauthorized else None


def _timeout_seconds(usual: timedelta) -> float:
    left = time_left()
    return usual.total_seconds() if left is None else left


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
