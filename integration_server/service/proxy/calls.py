"""Calls to providers' APIs for backends.

The credentials never leave the server. A call stays within the provider's rate limits and the caller's deadline, and is
retried where that is safe. Every response of the provider is returned, also an error response; our own errors mean that
there is no response.
"""

import asyncio
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
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
from integration_server.service.background.detached_tasks import DetachedTasks, time_left
from integration_server.service.common_types import Clock
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.integrations.ports import IntegrationStore
from integration_server.service.provider_port import Provider, Providers
from integration_server.service.proxy.proxy_policy import (
    forwardable_headers,
    is_retry_safe,
    require_allowed_headers,
    require_no_credentials,
    require_valid_request,
    secrets_of,
)
from integration_server.service.proxy.rate_limiter import RateLimiters

_REPEATED_FAILURE_INTERVAL = timedelta(seconds=10)
"""A repeated failure is recorded once in this time, so that an outage does not cause a write for each call."""


@dataclass(eq=False, repr=False)
class ApiProxy:
    """Makes calls to providers' APIs. `deadline` applies where the caller sets none."""

    credentials: CredentialService
    integrations: IntegrationStore
    providers: Providers
    rate_limiters: RateLimiters
    tasks: DetachedTasks
    clock: Clock
    _: KW_ONLY
    deadline: timedelta
    max_request_bytes: int
    max_response_bytes: int

    async def call_provider(self, integration_id: IntegrationId, user_id: UserId, request: ApiRequest) -> ApiResponse:
        """The provider's response. Raises `InvalidField` for a disallowed request, `RateLimited`, `ProviderError`."""
        require_valid_request(request)
        if len(request.body) > self.max_request_bytes:
            raise InvalidField("body", f"has {len(request.body)} bytes; the maximum is {self.max_request_bytes}")
        fresh = await self.credentials.get_usable(integration_id, user_id)
        require_allowed_headers(request, self.provider_of(fresh.integration).allowed_request_headers)
        return await self.send(fresh, request)

    async def send(self, fresh: RefreshResult, request: ApiRequest) -> ApiResponse:
        """Send a valid request with these credentials, or with newer ones if the provider rejects them."""
        call = _Call(self, fresh, request)
        try:
            response = await call.response()
        except ProviderError as error:
            if call.was_sent:
                self._update_last_error(call.fresh.integration, error)
            raise
        rejection = ProviderRejected("credentials") if response.is_unauthorized else None
        is_success = response.status < 500 and not response.is_rate_limited
        self._update_last_error(call.fresh.integration, rejection, is_success=is_success)
        return replace(response, headers=forwardable_headers(response.headers, call.secrets()))

    def provider_of(self, integration: Integration) -> Provider:
        """The integration's provider with its config applied."""
        return self.providers[integration.integration_type].for_config(integration.config)

    def _update_last_error(
        self, integration: Integration, error: ProviderError | None, *, is_success: bool = False
    ) -> None:
        """Set or clear the integration's last error if it changes. The caller does not wait for the write."""
        last = integration.last_error
        if error is not None:
            now = self.clock()
            if last is None or last.error_class != error.reason or now - last.time >= _REPEATED_FAILURE_INTERVAL:
                self.tasks.start(self._record(integration, Failure(error.reason, now, str(error))))
        elif is_success and last is not None and not integration.lacks_required_scope:
            self.tasks.start(self._record(integration, None))

    async def _record(self, integration: Integration, failure: Failure | None) -> None:
        with suppress(StoreUnavailable):  # the next call or health check records the state
            await self.integrations.record_call(integration, failure)


class _Call:
    """One call with all its attempts."""

    def __init__(self, proxy: ApiProxy, fresh: RefreshResult, request: ApiRequest) -> None:
        self.fresh = fresh
        self.was_sent = False
        self._proxy = proxy
        self._request = request
        self._used_credentials: list[RefreshResult] = []
        left = time_left()
        self._deadline = _loop_time() + (proxy.deadline.total_seconds() if left is None else left)

    def secrets(self) -> frozenset[str]:
        """The secrets of all credentials that were used; the response must not reveal them."""
        provider = self._proxy.provider_of(self.fresh.integration)
        return frozenset(
            secret
            for used in self._used_credentials
            for secret in secrets_of(used.credentials, provider.request_auth(used.credentials))
        )

    async def response(self) -> ApiResponse:
        """The provider's final response. Raises `RateLimited` or `ProviderError`."""
        is_safe = is_retry_safe(self._request)
        was_lost = was_refreshed = False
        while True:
            try:
                response = await self._attempt()
            except ProviderUnavailable:
                if was_lost or not (is_safe and self.was_sent and self._seconds_left() > 0):
                    raise
                was_lost = True  # one lost connection is retried, a second one is not
                continue
            if response.is_unauthorized and not was_refreshed:
                was_refreshed = True
                refreshed = await self._proxy.credentials.newer(self.fresh)
                if refreshed is not None:
                    self.fresh = refreshed
                    continue
            if not response.is_rate_limited:
                return replace(response, was_retried=was_lost)
            if not is_safe:
                error = ProviderUnavailable("the provider asks for a later retry", retry_after=response.retry_after)
                error.provider_reason = response.reason
                raise error

    async def _attempt(self) -> ApiResponse:
        provider = self._proxy.provider_of(self.fresh.integration)
        require_no_credentials(self._request, provider.request_auth(self.fresh.credentials))
        limiter = self._proxy.rate_limiters.limiter(provider)
        async with limiter.permit(self.fresh.integration, self._seconds_left(), is_retry=self.was_sent) as observe:
            self.was_sent = True
            self._used_credentials.append(self.fresh)
            response = await provider.call_api(
                self.fresh.credentials,
                self._request,
                deadline=timedelta(seconds=self._seconds_left()),
                body_limit=self._proxy.max_response_bytes,
            )
            pause = observe(response)
        return replace(response, retry_after=pause) if response.is_rate_limited else response

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - _loop_time())


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
