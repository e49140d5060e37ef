"""Calls to providers' APIs for backends: let in by credentials that never leave this server, within the provider's
limits, repeated where that is safe, and answered within the caller's deadline.

What the provider answers is an answer, also if it is an error. An error of ours is that there was none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from integration_server.domain.calls import ApiAnswer, ApiRequest
from integration_server.domain.errors import (
    InvalidField,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    StoreUnavailable,
)
from integration_server.domain.integration import Failure, Integration, IntegrationId, UserId
from integration_server.service.credentials import FreshCredentials, GivingCredentials
from integration_server.service.deadlines import time_left
from integration_server.service.passing import (
    IDEMPOTENCY_KEY,
    IDEMPOTENT_METHODS,
    passed_on,
    require_no_credentials,
    require_passable,
    secrets_of,
)
from integration_server.service.ports import Clock, IntegrationStore, Provider, Providers
from integration_server.service.tasks import ServerTasks
from integration_server.service.throttling import Throttling

_NOTED_AGAIN_AFTER = timedelta(seconds=10)
"""A failure like the last one, of a moment ago, is news to nobody: so an outage is not a write for each call."""


@dataclass(frozen=True, slots=True)
class CallBounds:
    """What a call may take: time where the caller sets none, and bytes in either direction."""

    deadline: timedelta = timedelta(seconds=30)
    request_bytes: int = 1 << 20
    answer_bytes: int = 2 << 20


class Calling:
    """Makes calls."""

    def __init__(
        self,
        credentials: GivingCredentials,
        integrations: IntegrationStore,
        providers: Providers,
        throttling: Throttling,
        tasks: ServerTasks,
        clock: Clock,
        bounds: CallBounds,
    ) -> None:
        self._credentials = credentials
        self._integrations = integrations
        self._providers = providers
        self._throttling = throttling
        self._tasks = tasks
        self._clock = clock
        self._bounds = bounds

    async def call_provider(self, integration_id: IntegrationId, user_id: UserId, request: ApiRequest) -> ApiAnswer:
        """The provider's answer. Raises `InvalidField` for what may not be sent, `RateLimited`, `ProviderError`."""
        require_passable(request)
        if len(request.body) > self._bounds.request_bytes:
            raise InvalidField("body", f"has {len(request.body)} bytes; {self._bounds.request_bytes} is the most")
        return await self.send(await self._credentials.usable(integration_id, user_id), request)

    async def send(self, fresh: FreshCredentials, request: ApiRequest) -> ApiAnswer:
        """Make a call with these credentials, or newer ones; `request` is passable."""
        call = _Call(
            request,
            fresh,
            self._credentials.renewed,
            self.provider_of,
            self._throttling,
            until=_elapsed() + _seconds_given(self._bounds.deadline),
            answer_bytes=self._bounds.answer_bytes,
        )
        try:
            answer = await call.answer()
        except ProviderError as error:
            if call.was_sent:
                self._note(call.fresh.integration, error)
            raise
        self._note(call.fresh.integration, _against(answer), is_good=answer.status < 500 and not answer.asks_to_wait)
        return replace(answer, headers=passed_on(answer.headers, call.secrets()))

    def provider_of(self, integration: Integration) -> Provider:
        """The provider as the integration sees it."""
        return self._providers.get(integration.integration_type).at(integration.config)

    # --- what comes of a call for its integration

    def _note(self, integration: Integration, error: ProviderError | None, *, is_good: bool = False) -> None:
        """Have the last error set or cleared, where that says something new. The caller does not wait for it."""
        last = integration.last_error
        if error is not None:
            now = self._clock()
            if last is None or last.error_class != error.reason or now - last.time >= _NOTED_AGAIN_AFTER:
                self._tasks.start(self._record(integration, Failure(error.reason, now, str(error))))
        elif is_good and last is not None and not integration.lacks_required_scope:
            self._tasks.start(self._record(integration, None))

    async def _record(self, integration: Integration, failure: Failure | None) -> None:
        with suppress(StoreUnavailable):  # the next call or check sees how it stands
            await self._integrations.record_call(integration, failure)


class _Call:
    """One call with all its attempts, until `until` on the loop's clock."""

    def __init__(
        self,
        request: ApiRequest,
        fresh: FreshCredentials,
        renew: Callable[[FreshCredentials], Awaitable[FreshCredentials | None]],
        provider_of: Callable[[Integration], Provider],
        throttling: Throttling,
        *,
        until: float,
        answer_bytes: int,
    ) -> None:
        self.fresh = fresh
        self.was_sent = False
        self._request = request
        self._renew = renew
        self._provider_of = provider_of
        self._throttling = throttling
        self._until = until
        self._answer_bytes = answer_bytes
        self._is_safe = request.method in IDEMPOTENT_METHODS or bool(_keys(request))
        self._used: list[FreshCredentials] = []

    def secrets(self) -> frozenset[str]:
        """What the answer must not tell, of all credentials that were used."""
        return frozenset(
            secret
            for used in self._used
            for secret in secrets_of(used.credentials, self._provider().request_auth(used.credentials))
        )

    async def answer(self) -> ApiAnswer:
        """The provider's answer, once it is one. Raises `RateLimited` or `ProviderError`."""
        was_lost = was_renewed = False
        while True:
            try:
                answer = await self._attempt()
            except ProviderUnavailable:
                if was_lost or not self._may_repeat():
                    raise
                was_lost = True  # a connection may be lost; one that is lost twice is more than that
                continue
            if answer.is_unauthorized and not was_renewed:
                was_renewed = True
                renewed = await self._renew(self.fresh)
                if renewed is not None:
                    self.fresh = renewed
                    continue
            if not answer.asks_to_wait:
                return replace(answer, is_to_repetition=was_lost)
            if not self._is_safe:
                raise ProviderUnavailable("the provider says wait", retry_after=answer.retry_after)

    async def _attempt(self) -> ApiAnswer:
        provider, integration = self._provider(), self.fresh.integration
        require_no_credentials(self._request, provider.request_auth(self.fresh.credentials))
        gate = self._throttling.gate(provider)
        async with gate.turn(integration, self._left(), again=self.was_sent) as turn:
            self.was_sent = True
            self._used.append(self.fresh)
            answer = await provider.call_api(
                self.fresh.credentials,
                self._request,
                deadline=timedelta(seconds=self._left()),
                body_limit=self._answer_bytes,
            )
            pause = turn.answered(answer)
        return replace(answer, retry_after=pause) if answer.asks_to_wait else answer

    def _may_repeat(self) -> bool:
        return self._is_safe and self.was_sent and self._left() > 0

    def _provider(self) -> Provider:
        return self._provider_of(self.fresh.integration)

    def _left(self) -> float:
        return max(0.0, self._until - _elapsed())


def _keys(request: ApiRequest) -> Sequence[str]:
    """The idempotency keys of a request: by them the provider knows it when it comes again."""
    given = [value for name, value in request.headers if name.lower() == IDEMPOTENCY_KEY]
    return [key for key in (request.idempotency_key, *given) if key]


def _against(answer: ApiAnswer) -> ProviderError | None:
    """What an answer says against its integration."""
    return ProviderRejected("credentials") if answer.is_unauthorized else None


def _seconds_given(usual: timedelta) -> float:
    left = time_left()
    return usual.total_seconds() if left is None else left


def _elapsed() -> float:
    return asyncio.get_running_loop().time()
