"""Keeps calls within what providers allow: a call waits for its turn, rather than being turned away at the provider.

How much a provider takes is declared, and learned from its answers: one that says wait is left alone until then, and
afterwards gets one call at a time, then two, then four; one that tells how much is left gets no more than that.

Turns are fair: the users who wait for a provider take them in a circle, so that one user's flood delays that user's
own calls. docs/api-proxy.md says more.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from integration_server.domain.errors import ProviderUnavailable, RateLimited
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.domain.proxy_messages import ApiResponse, LimitScope, RateLimit
from integration_server.service.common_types import Jitter
from integration_server.service.provider_port import Provider
from integration_server.service.proxy.fair_queue import FairQueue, Waiter
from integration_server.service.proxy.rate_limit_budget import MIN_PAUSE, AdaptiveLimit

_SWEEP_INTERVAL = 1000  # turns


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A place in which no further call is counted for so many seconds."""

    name: str
    wait: float


class DistributedLimiter(Protocol):
    """Counts calls for several processes. It never fails: while it cannot count it lets calls go."""

    async def acquire(self, counters: Sequence[tuple[str, RateLimit]]) -> "Exhausted | None":
        """None if a call was counted in each of the named places; else one that is full."""


class NoDistributedLimiter:
    """For a process that is alone."""

    async def acquire(self, counters: Sequence[tuple[str, RateLimit]]) -> Exhausted | None:
        """Let all calls go."""
        del counters
        return None


class ProviderRateLimiter:
    """Lets the calls to one provider go, one after the other, when budgets allow."""

    def __init__(
        self,
        integration_type: str,
        limits: Sequence[RateLimit],
        shared: DistributedLimiter,
        monotonic: Callable[[], float],
        jitter: Jitter,
        *,
        calls_at_once: int | None = None,
    ) -> None:
        self._type = integration_type
        self._calls_at_once = calls_at_once
        self._limits = {scope: [limit for limit in limits if limit.scope is scope] for scope in LimitScope}
        self._shared = shared
        self._exhausted_until: dict[str, float] = {}
        self._now = monotonic
        self._jitter = jitter
        self._app = AdaptiveLimit(self._limits[LimitScope.APP], jitter)
        self._adaptive_limits: dict[IntegrationId, AdaptiveLimit] = {}
        self._queue = FairQueue()
        self._dispatcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._permit_count = 0

    @asynccontextmanager
    async def permit(self, integration: Integration, within: float, *, is_retry: bool) -> AsyncIterator["Permit"]:
        """Wait for a turn at most so many seconds; the call is made in the block.

        Raises `RateLimited`, or `ProviderUnavailable` where the provider itself wants to be left alone for longer.
        """
        await self._wait(Waiter(integration.user_id, integration.integration_id), within, is_retry=is_retry)
        permit = Permit(self._observed_limit(integration.integration_id), self._now)
        try:
            yield permit
        finally:
            self._end(integration.integration_id, was_sent=True)

    async def _wait(self, waiter: Waiter, within: float, *, is_retry: bool) -> None:
        self._require_in_time(waiter, within, is_retry=is_retry)
        self._queue.add(waiter, at_front=is_retry)
        self._wake()
        try:
            async with asyncio.timeout(within):
                await waiter.permit
        except TimeoutError:
            self._cancel_waiter(waiter)
            raise self._timeout_error(waiter, MIN_PAUSE, self._now()) from None
        except asyncio.CancelledError:
            self._cancel_waiter(waiter)
            raise

    def _require_in_time(self, waiter: Waiter, within: float, *, is_retry: bool) -> None:
        now = self._now()
        user_id, integration_id = waiter.user_id, waiter.integration_id
        in_app, in_own = self._queue.count_ahead(user_id), self._queue.count_waiting(user_id, integration_id)
        if is_retry:
            in_app = in_own = 0  # it goes in front
        app = self._app.estimated_wait(now, in_app)
        own = self._limit_of(integration_id).estimated_wait(now, in_own)
        estimated_wait = max(
            app,
            own,
            self._exhausted_for(self._type, now),
            self._exhausted_for(self._integration_key(integration_id), now),
        )
        if estimated_wait > within:
            raise self._timeout_error(waiter, estimated_wait, now)

    def _timeout_error(self, waiter: Waiter, estimated_wait: float, now: float) -> RateLimited | ProviderUnavailable:
        reported = max(self._app.provider_wait(now), self._limit_of(waiter.integration_id).provider_wait(now))
        if reported >= estimated_wait:
            return ProviderUnavailable("the provider wants no calls for now", retry_after=timedelta(seconds=reported))
        return RateLimited(timedelta(seconds=estimated_wait))

    def _cancel_waiter(self, waiter: Waiter) -> None:
        if waiter.permit.done() and not waiter.permit.cancelled():
            self._end(waiter.integration_id, was_sent=False)  # its turn came in the same moment
        else:
            waiter.permit.cancel()
            self._queue.remove(waiter)
            self._changed.set()

    # --- letting go

    def _wake(self) -> None:
        self._changed.set()
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch(), name=f"gate-{self._type}")

    async def _dispatch(self) -> None:
        while self._queue:
            waiter, wait = self._next()
            if waiter is not None:
                exhausted = await self._shared.acquire(self._counters(waiter.integration_id))
                if exhausted is not None:
                    self._exhausted_until[exhausted.name] = self._now() + exhausted.wait
                elif not waiter.permit.done():  # did not give up meanwhile
                    self._queue.remove(waiter)
                    self._begin(waiter)
                continue
            self._changed.clear()
            try:
                async with asyncio.timeout(None if math.isinf(wait) else wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _next(self) -> tuple[Waiter | None, float]:
        """Whose turn it is; or None, and the seconds after which to look again."""
        now = self._now()
        wait = max(self._app.wait_time(now), self._exhausted_for(self._type, now))
        if wait > 0:
            return None, wait
        soonest = math.inf
        for waiter in self._queue.heads():
            own = self._limit_of(waiter.integration_id).wait_time(now)
            wait_time = max(own, self._exhausted_for(self._integration_key(waiter.integration_id), now))
            if wait_time <= 0:
                return waiter, 0.0
            soonest = min(soonest, wait_time)
        return None, soonest

    def _counters(self, integration_id: IntegrationId) -> Sequence[tuple[str, RateLimit]]:
        app = [(self._type, limit) for limit in self._limits[LimitScope.APP]]
        own = [(self._integration_key(integration_id), limit) for limit in self._limits[LimitScope.INTEGRATION]]
        return [*app, *own]

    def _integration_key(self, integration_id: IntegrationId) -> str:
        return f"{self._type}/{integration_id}"

    def _exhausted_for(self, name: str, now: float) -> float:
        """Seconds for which a shared place is full, as far as is known."""
        return self._exhausted_until.get(name, 0.0) - now

    # --- counting

    def _begin(self, waiter: Waiter) -> None:
        now = self._now()
        self._app.begin(now)
        self._limit_of(waiter.integration_id).begin(now)
        waiter.permit.set_result(None)

    def _end(self, integration_id: IntegrationId, *, was_sent: bool) -> None:
        now = self._now()
        self._app.end(now, was_sent=was_sent)
        self._adaptive_limits[integration_id].end(now, was_sent=was_sent)
        self._changed.set()
        self._permit_count += 1
        if self._permit_count % _SWEEP_INTERVAL == 0:
            self._adaptive_limits = {
                key: adaptive_limit
                for key, adaptive_limit in self._adaptive_limits.items()
                if not adaptive_limit.is_empty(now)
            }
            self._exhausted_until = {name: until for name, until in self._exhausted_until.items() if until > now}

    def _observed_limit(self, integration_id: IntegrationId) -> AdaptiveLimit:
        """Whose budget answers tell of: where only the app has limits that is the app's, else the account's."""
        only_app = self._limits[LimitScope.APP] and not self._limits[LimitScope.INTEGRATION]
        return self._app if only_app else self._adaptive_limits[integration_id]

    def _limit_of(self, integration_id: IntegrationId) -> AdaptiveLimit:
        adaptive_limit = self._adaptive_limits.get(integration_id)
        if adaptive_limit is None:
            limits = self._limits[LimitScope.INTEGRATION]
            adaptive_limit = self._adaptive_limits[integration_id] = AdaptiveLimit(
                limits, self._jitter, self._calls_at_once
            )
        return adaptive_limit


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to make one call."""

    _adaptive_limit: AdaptiveLimit
    _now: Callable[[], float]

    def observe(self, response: ApiResponse) -> timedelta:
        """Say what came of it; for how long the provider wants no further call."""
        self._adaptive_limit.observe(response, self._now())
        return timedelta(seconds=self._adaptive_limit.provider_wait(self._now()))


class RateLimiters:
    """The gates of all providers. `monotonic` tells seconds."""

    def __init__(self, shared: DistributedLimiter, monotonic: Callable[[], float], jitter: Jitter) -> None:
        self._shared = shared
        self._monotonic = monotonic
        self._jitter = jitter
        self._limiters: dict[str, ProviderRateLimiter] = {}

    def limiter(self, provider: Provider) -> ProviderRateLimiter:
        """The gate to a provider, within its limits."""
        integration_type = provider.integration_type
        if integration_type not in self._limiters:
            self._limiters[integration_type] = ProviderRateLimiter(
                integration_type,
                provider.rate_limits,
                self._shared,
                self._monotonic,
                self._jitter,
                calls_at_once=provider.calls_at_once,
            )
        return self._limiters[integration_type]
