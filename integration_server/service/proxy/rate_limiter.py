"""Keeps calls within the rate limits of providers: a call waits here instead of being rejected by the provider.

Limits are declared by providers, and learned from their responses (`rate_limit_budget.py`). What responses report
applies to their account. It applies to all accounts of the type only after several accounts of several users in a row,
without a success of anybody between, have been rejected: otherwise one user, or one account that several users share,
could stop the calls of all others. A provider may limit each of its resources, such as its search, on its own: such a
limit applies to the calls of that resource (`RateLimit.resource`, `ApiResponse.rate_limit_resource`). Users who wait
for the same provider take turns (`fair_queue.py`), so that a flood of calls delays only the user who causes it.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Protocol

from cachetools import LRUCache

from integration_server.domain.errors import ProviderUnavailable, RateLimited
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.oauth_client import OWN_CLIENT, client_key
from integration_server.domain.proxy_messages import ApiResponse, LimitScope, RateLimit
from integration_server.service.common_types import Jitter, Record, record_nothing
from integration_server.service.provider_port import Provider
from integration_server.service.proxy.fair_queue import FairQueue, Lane, Waiter
from integration_server.service.proxy.rate_limit_budget import MAX_APP_PAUSE, MIN_PAUSE, AdaptiveLimit

_MAX_REPORTED_RESOURCES = 1000  # paths or resources, of one integration type

_SWEEP_INTERVAL = 1000  # permits

_APP_LIMIT_USERS = 3
"""How many users and how many accounts must be rejected before a limit applies to everybody."""

ObserveResponse = Callable[[ApiResponse], timedelta]


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A shared counter that has no capacity for `wait` seconds."""

    name: str
    wait: float


class DistributedLimiter(Protocol):
    """Counts calls for several processes. It never fails: while it is unavailable it permits all calls."""

    async def acquire(self, counters: Sequence[tuple[str, RateLimit]]) -> Exhausted | None:
        """Count a call in each of the named counters and return None, or return a counter that is exhausted."""


@dataclass(slots=True)
class _Rejected:
    """The users and accounts whose calls were rejected, up to `threshold` of each.

    Several users may have connected one account, and one user several.
    """

    threshold: int
    users: set[UserId] = field(default_factory=set)
    accounts: set[str | IntegrationId] = field(default_factory=set)

    def add(self, integration: Integration) -> bool:
        """Record a rejected call. Return whether the threshold of both is reached."""
        if len(self.users) < self.threshold:
            self.users.add(integration.user_id)
        if len(self.accounts) < self.threshold:
            self.accounts.add(integration.account_id or integration.integration_id)
        return min(len(self.users), len(self.accounts)) >= self.threshold


@dataclass(eq=False, repr=False)
class ProviderRateLimiter:
    """Permits the calls of one OAuth client to its provider, one after the other, as the provider's limits allow.

    A provider counts the calls of each of its apps. `monotonic` is in seconds.

    `shared` also counts the calls of other processes; None for a single process.
    """

    integration_type: str
    limits: Sequence[RateLimit]
    shared: DistributedLimiter | None
    monotonic: Callable[[], float]
    jitter: Jitter
    calls_at_once: int | None = None
    app_limit_users: int = _APP_LIMIT_USERS
    oauth_client: str = OWN_CLIENT
    record_wait: Record = record_nothing  # seconds, integration type
    record_refusal: Record = record_nothing  # integration type

    def __post_init__(self) -> None:
        # By resource; empty for the limits of all calls together.
        self._apps: dict[str, AdaptiveLimit] = {}
        self._rejected: LRUCache[str, _Rejected] = LRUCache(_MAX_REPORTED_RESOURCES)  # since the last success
        self._integrations: dict[Lane, AdaptiveLimit] = {}
        self._reported_resources: LRUCache[str, str] = LRUCache(_MAX_REPORTED_RESOURCES)
        self._exhausted_until: dict[str, float] = {}
        self._queue = FairQueue()
        self._dispatcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._permit_count = 0

    @asynccontextmanager
    async def permit(
        self, integration: Integration, within: float, *, is_retry: bool, resource: str = "", path: str = ""
    ) -> AsyncIterator[ObserveResponse]:
        """Wait for at most `within` seconds until a call may start; the call is made in the block.

        `resource` is the one that the provider declares for the call; empty for none. If a response to a call with the
        same `path` (with its method) has named another, that one is used.
        The block calls the yielded function with the response. It returns how long the provider accepts no more calls.
        Raises `RateLimited`, or `ProviderUnavailable` if the provider itself has asked for a longer pause.
        """
        resource = self._reported_resources.get(path, resource)
        waiter = Waiter(integration.user_id, integration.integration_id, resource)
        begin = self.monotonic()
        try:
            await self._wait(waiter, within, is_retry=is_retry)
        except (ProviderUnavailable, RateLimited):
            self.record_refusal(self.integration_type)
            raise
        self.record_wait(self.monotonic() - begin, self.integration_type)
        try:
            yield partial(self._observe, integration, resource, path)
        finally:
            self._end(waiter, was_sent=True)

    async def _wait(self, waiter: Waiter, within: float, *, is_retry: bool) -> None:
        self._require_in_time(waiter, within, is_retry=is_retry)
        self._queue.add(waiter, at_front=is_retry)
        self._changed.set()
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch(), name=f"rate-limiter-{self.integration_type}")
        try:
            async with asyncio.timeout(within):
                await waiter.permit
        except TimeoutError:
            self._cancel_waiter(waiter)
            raise self._timeout_error(waiter, MIN_PAUSE, self.monotonic()) from None
        except asyncio.CancelledError:
            self._cancel_waiter(waiter)
            raise

    def _require_in_time(self, waiter: Waiter, within: float, *, is_retry: bool) -> None:
        """Raise at once if the call cannot start in time."""
        now = self.monotonic()
        # A retry goes to the front.
        ahead_in_provider_queue = 0 if is_retry else self._queue.count_ahead(waiter.user_id)
        ahead_in_own_queue = 0 if is_retry else self._queue.count_waiting(waiter.user_id, waiter.lane)
        estimated_wait = max(
            *(limit.estimated_wait(now, ahead_in_provider_queue) for limit in self._app_limits_of(waiter.resource)),
            *(limit.estimated_wait(now, ahead_in_own_queue) for limit in self._own_limits_of(waiter.lane)),
            self._exhausted_seconds(waiter, now),
        )
        if estimated_wait > within:
            raise self._timeout_error(waiter, estimated_wait, now)

    def _timeout_error(self, waiter: Waiter, estimated_wait: float, now: float) -> RateLimited | ProviderUnavailable:
        reported = max(limit.provider_wait(now) for limit in self._limits_of(waiter))
        if reported >= estimated_wait:
            return ProviderUnavailable("the provider accepts no calls now", retry_after=timedelta(seconds=reported))
        return RateLimited(timedelta(seconds=estimated_wait))

    def _cancel_waiter(self, waiter: Waiter) -> None:
        if waiter.permit.done() and not waiter.permit.cancelled():
            self._end(waiter, was_sent=False)  # permitted in the same moment
        else:
            waiter.permit.cancel()
            self._queue.remove(waiter)
            self._changed.set()

    # --- dispatching

    async def _dispatch(self) -> None:
        while self._queue:
            waiter, wait = self._next_waiter()
            if waiter is not None:
                counters = self._counters(waiter)
                exhausted = await self.shared.acquire(counters) if self.shared else None
                if exhausted is not None:
                    self._exhausted_until[exhausted.name] = self.monotonic() + exhausted.wait
                elif not waiter.permit.done():  # not cancelled in the meantime
                    self._queue.remove(waiter)
                    self._begin(waiter)
                continue
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(wait) else wait):
                    await self._changed.wait()

    def _next_waiter(self) -> tuple[Waiter | None, float]:
        """The next waiter to permit; or None, and the seconds after which to check again."""
        now = self.monotonic()
        soonest = self._app_limit("").wait_time(now)
        if soonest > 0:
            return None, soonest
        soonest = math.inf
        for waiter in self._queue.heads():
            waits = (limit.wait_time(now) for limit in self._limits_of(waiter))
            wait = max(*waits, self._exhausted_seconds(waiter, now))
            if wait <= 0:
                return waiter, 0.0
            soonest = min(soonest, wait)
        return None, soonest

    def _counters(self, waiter: Waiter) -> Sequence[tuple[str, RateLimit]]:
        return [
            (self._counter_name(limit, waiter.integration_id), limit)
            for limit in self.limits
            if limit.resource in {"", waiter.resource}
        ]

    def _counter_name(self, limit: RateLimit, integration_id: IntegrationId) -> str:
        key = client_key(self.integration_type, self.oauth_client)
        name = key if limit.scope is LimitScope.APP else f"{self.integration_type}:{integration_id}"
        return f"{name}#{limit.resource}" if limit.resource else name

    def _exhausted_seconds(self, waiter: Waiter, now: float) -> float:
        """Seconds for which a shared counter of a call is known to be exhausted."""
        if not self._exhausted_until:
            return 0.0
        return max((self._exhausted_until.get(name, 0.0) - now for name, _ in self._counters(waiter)), default=0.0)

    # --- the limits of a call

    def _limits_of(self, waiter: Waiter) -> Iterator[AdaptiveLimit]:
        yield from self._app_limits_of(waiter.resource)
        yield from self._own_limits_of(waiter.lane)

    def _app_limits_of(self, resource: str) -> Iterator[AdaptiveLimit]:
        yield from map(self._app_limit, dict.fromkeys(("", resource)))

    def _own_limits_of(self, lane: Lane) -> Iterator[AdaptiveLimit]:
        integration_id, resource = lane
        yield from (self._own_limit((integration_id, scope)) for scope in dict.fromkeys(("", resource)))

    def _app_limit(self, resource: str) -> AdaptiveLimit:
        if resource not in self._apps:
            limits = self._declared(LimitScope.APP, resource)
            self._apps[resource] = AdaptiveLimit(limits, self.jitter, max_pause=MAX_APP_PAUSE)
        return self._apps[resource]

    def _own_limit(self, lane: Lane) -> AdaptiveLimit:
        if lane not in self._integrations:
            limits = self._declared(LimitScope.INTEGRATION, lane[1])
            self._integrations[lane] = AdaptiveLimit(limits, self.jitter, None if lane[1] else self.calls_at_once)
        return self._integrations[lane]

    def _declared(self, scope: LimitScope, resource: str) -> Sequence[RateLimit]:
        return [limit for limit in self.limits if limit.scope is scope and limit.resource == resource]

    # --- counting

    def _begin(self, waiter: Waiter) -> None:
        now = self.monotonic()
        for limit in self._limits_of(waiter):
            limit.begin(now)
        waiter.permit.set_result(None)

    def _end(self, waiter: Waiter, *, was_sent: bool) -> None:
        now = self.monotonic()
        for limit in self._limits_of(waiter):
            limit.end(now, was_sent=was_sent)
        self._changed.set()
        self._permit_count += 1
        if self._permit_count % _SWEEP_INTERVAL == 0:
            self._integrations = {
                lane: integration for lane, integration in self._integrations.items() if not integration.is_empty(now)
            }
            self._apps = {resource: app for resource, app in self._apps.items() if not app.is_empty(now)}
            self._exhausted_until = {name: until for name, until in self._exhausted_until.items() if until > now}

    def _observe(self, integration: Integration, resource: str, path: str, response: ApiResponse) -> timedelta:
        reported = response.rate_limit_resource
        if reported and reported != resource:
            self._reported_resources[path] = reported
        resource = resource if reported is None else reported
        now = self.monotonic()
        own, app = self._own_limit((integration.integration_id, resource)), self._app_limit(resource)
        own.observe(response, now)
        if not response.is_rate_limited:
            for name in {"", resource}:
                self._rejected.pop(name, None)
                self._app_limit(name).observe_success(now)
            if resource:
                self._own_limit((integration.integration_id, "")).observe_success(now)
        else:
            if resource not in self._rejected:
                self._rejected[resource] = _Rejected(self.app_limit_users)
            if self._rejected[resource].add(integration):
                app.pause(own.provider_wait(now), now)
                del self._rejected[resource]
        return timedelta(seconds=max(own.provider_wait(now), app.provider_wait(now)))


@dataclass(eq=False, repr=False)
class RateLimiters:
    """The rate limiters of all OAuth clients. `monotonic` is in seconds.

    `share` is the part of each declared limit that this process may use, of several that do not know of each other's
    calls: at least one call.
    """

    shared: DistributedLimiter | None
    monotonic: Callable[[], float]
    jitter: Jitter
    record_wait: Record = record_nothing
    record_refusal: Record = record_nothing
    share: float = 1

    def __post_init__(self) -> None:
        self._limiters: dict[str, ProviderRateLimiter] = {}

    def limiter(self, provider: Provider) -> ProviderRateLimiter:
        """The rate limiter of a provider's client."""
        key = client_key(provider.integration_type, provider.oauth_client.name)
        if key not in self._limiters:
            self._limiters[key] = ProviderRateLimiter(
                provider.integration_type,
                [replace(limit, calls=self._share_of(limit.calls)) for limit in provider.rate_limits]
                if self.shared is None
                else provider.rate_limits,
                self.shared,
                self.monotonic,
                self.jitter,
                None if provider.calls_at_once is None else self._share_of(provider.calls_at_once),
                oauth_client=provider.oauth_client.name,
                record_wait=self.record_wait,
                record_refusal=self.record_refusal,
            )
        return self._limiters[key]

    def _share_of(self, calls: int) -> int:
        return max(1, int(calls * self.share))
