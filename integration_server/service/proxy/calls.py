"""Calls to providers' APIs for backends.

The credentials never leave the server. A call stays within the provider's rate limits and the caller's deadline, and is
retried where that is safe. Every response of the provider is returned, also an error response; our own errors mean that
there is no response.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, replace
from datetime import timedelta

from integration_server.domain.call_budget import time_left
from integration_server.domain.errors import (
    InvalidField,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    StoreUnavailable,
)
from integration_server.domain.integration import Failure, Integration, IntegrationId, UserId
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, ApiStream
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Clock, loop_time
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
from integration_server.service.request_body import RequestBody

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
    stream_idle_timeout: timedelta

    async def call_provider(self, integration_id: IntegrationId, user_id: UserId, request: ApiRequest) -> ApiResponse:
        """The provider's response. Raises `InvalidField` for a disallowed request, `RateLimited`, `ProviderError`."""
        require_valid_request(request)
        if len(request.body) > self.max_request_bytes:
            raise InvalidField("body", f"has {len(request.body)} bytes; the maximum is {self.max_request_bytes}")
        fresh = await self.credentials.get_usable(integration_id, user_id)
        require_allowed_headers(request, self.providers[fresh.integration.integration_type].allowed_request_headers)
        return await self.send(fresh, request)

    @asynccontextmanager
    async def stream_provider(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        request: ApiRequest,
        parts: AsyncIterator[bytes],
        *,
        content_length: int | None = None,
        within: float | None = None,
    ) -> AsyncIterator[ApiStream]:
        """As `call_provider`, with bodies in parts: `request.body` and then `parts`. Leaving the context ends both.

        `within` is the time that the caller waits at most, in seconds; None without a deadline. It bounds the wait for
        a permit and for retries, all before the first part. The bodies themselves have no limits; instead either side
        may stall for at most `stream_idle_timeout`.
        """
        require_valid_request(request)
        fresh = await self.credentials.get_usable(integration_id, user_id)
        provider = await self._provider_of(fresh.integration)
        require_allowed_headers(request, provider.allowed_request_headers)
        body = await RequestBody.of(request, parts, content_length, self.stream_idle_timeout)
        call = _Call(self, provider, fresh, replace(request, body=b""), body, within)
        with self._recording_error(call):
            async with call.response(call.stream_once) as stream:
                self._record_response(call, stream.response)
                headers = forwardable_headers(stream.response.headers, call.secrets(stream.response))
                yield replace(stream, response=replace(stream.response, headers=headers))

    async def send(self, fresh: RefreshResult, request: ApiRequest) -> ApiResponse:
        """Send a valid request with these credentials, or with newer ones if the provider rejects them."""
        call = _Call(self, await self._provider_of(fresh.integration), fresh, request, None, time_left())
        with self._recording_error(call):
            async with call.response(call.send_once) as complete:
                response = complete.response
                self._record_response(call, response)
        return replace(response, headers=forwardable_headers(response.headers, call.secrets(response)), secrets=())

    @contextmanager
    def _recording_error(self, call: "_Call") -> Iterator[None]:
        try:
            yield
        except ProviderError as error:
            if call.was_sent:
                self._update_last_error(call.fresh.integration, error)
            raise

    def _record_response(self, call: "_Call", response: ApiResponse) -> None:
        rejection = ProviderRejected("credentials") if response.is_unauthorized else None
        is_success = response.status < 500 and not response.is_rate_limited
        self._update_last_error(call.fresh.integration, rejection, is_success=is_success)

    async def _provider_of(self, integration: Integration) -> Provider:
        """The integration's provider with its client and its config."""
        provider = await self.providers.for_client(integration.integration_type, integration.oauth_client)
        return provider.for_config(integration.config)

    def _update_last_error(
        self, integration: Integration, error: ProviderError | None, *, is_success: bool = False
    ) -> None:
        """Set or clear the integration's last error if it changes. The caller does not wait for the write."""
        last = integration.last_error
        if isinstance(error, ProviderMisconfigured):
            return  # the fault of our client, and not of the integration
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
    """One call with all its attempts. A call whose `body` has been taken is not attempted again."""

    def __init__(
        self,
        proxy: ApiProxy,
        provider: Provider,
        fresh: RefreshResult,
        request: ApiRequest,
        body: RequestBody | None,
        within: float | None,
    ) -> None:
        self.fresh = fresh
        self._provider = provider
        self.was_sent = False
        self._proxy = proxy
        self._request = request
        self._body = body
        self._used_credentials: list[RefreshResult] = []
        self._deadline = loop_time() + (proxy.deadline.total_seconds() if within is None else within)

    def secrets(self, response: ApiResponse) -> frozenset[str]:
        """The secrets of all credentials that were used; the response must not reveal them."""
        return frozenset(
            secret
            for used in self._used_credentials
            for secret in secrets_of(used.credentials, self._provider.request_auth(used.credentials))
        ).union(response.secrets)

    @asynccontextmanager
    async def response(self, attempt: Callable[[], AbstractAsyncContextManager[ApiStream]]) -> AsyncIterator[ApiStream]:
        """The provider's final response, while its attempt lasts. Raises `RateLimited` or `ProviderError`."""
        was_lost = was_refreshed = False
        while True:
            async with AsyncExitStack() as stack:
                try:
                    found = await stack.enter_async_context(attempt())
                except ProviderUnavailable:
                    if was_lost or not (self._is_repeatable and self.was_sent and self._seconds_left() > 0):
                        raise
                    was_lost = True  # one lost connection is retried, a second one is not
                    continue
                response = found.response
                if response.is_unauthorized and not was_refreshed:
                    was_refreshed = True
                    refreshed = await self._proxy.credentials.newer(self.fresh)
                    if refreshed is not None and not self._is_body_taken:
                        self.fresh = refreshed
                        continue
                if not response.is_rate_limited:
                    yield replace(found, response=replace(response, was_retried=was_lost))
                    return
                if not self._is_repeatable:
                    error = ProviderUnavailable("the provider asks for a later retry", retry_after=response.retry_after)
                    error.provider_reason = response.reason
                    raise error

    @asynccontextmanager
    async def send_once(self) -> AsyncIterator[ApiStream]:
        """One attempt, which is over when its whole response is there: it has no further parts."""
        async with self._permit() as (provider, observe):
            response = observe(
                await provider.call_api(
                    self.fresh.credentials,
                    self._request,
                    deadline=timedelta(seconds=self._seconds_left()),
                    body_limit=self._proxy.max_response_bytes,
                )
            )
        yield ApiStream(response)

    @asynccontextmanager
    async def stream_once(self) -> AsyncIterator[ApiStream]:
        """One attempt, which counts as a call of the provider until its response has been read."""
        timeout = self._proxy.stream_idle_timeout
        async with (
            self._permit() as (provider, observe),
            provider.stream_api(self.fresh.credentials, self._request, self._body, idle_timeout=timeout) as stream,
        ):
            yield replace(stream, response=observe(stream.response))

    @asynccontextmanager
    async def _permit(self) -> AsyncIterator[tuple[Provider, Callable[[ApiResponse], ApiResponse]]]:
        provider = self._provider
        require_no_credentials(self._request, provider.request_auth(self.fresh.credentials))
        limiter = self._proxy.rate_limiters.limiter(provider)
        permit = limiter.permit(
            self.fresh.integration,
            self._seconds_left(),
            is_retry=self.was_sent,
            resource=provider.rate_limit_resource(self._request),
            path=f"{self._request.method} {self._request.api} {self._request.path}",
        )
        async with permit as observe:

            def observed(response: ApiResponse) -> ApiResponse:
                pause = observe(response)
                return replace(response, retry_after=pause) if response.is_rate_limited else response

            self.was_sent = True
            self._used_credentials.append(self.fresh)
            yield provider, observed

    @property
    def _is_body_taken(self) -> bool:
        return self._body is not None and self._body.was_taken

    @property
    def _is_repeatable(self) -> bool:
        return is_retry_safe(self._request) and not self._is_body_taken

    def _seconds_left(self) -> float:
        return max(0.0, self._deadline - loop_time())
