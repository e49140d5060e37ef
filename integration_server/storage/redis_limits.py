"""Calls to providers, counted for all servers that share a Redis: a `DistributedLimiter`.

Redis is a help, not a need: while it does not answer, calls go on within what each server counts for itself, and it is
asked again every few seconds.
"""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import structlog
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from integration_server.domain.proxy_messages import RateLimit
from integration_server.service.proxy.rate_limiter import Exhausted

_REDIS_TIMEOUT = 0.5  # seconds: it is beside us, and a call waits for it
_RECONNECT_INTERVAL = 5.0
_MIN_WAIT = 0.02
_MARGIN = 1  # second, and the least: Redis forgets in whole ones
"""By how much windows are longer here than declared: between counting and arriving at the provider a call takes time,
and not always the same, and the clocks of servers differ."""


class RedisLimiter:
    """Counts in moving windows of the `limits` library. Open it with `async with`."""

    def __init__(self, url: str) -> None:
        self._pool = ConnectionPool.from_url(
            url, socket_timeout=_REDIS_TIMEOUT, socket_connect_timeout=_REDIS_TIMEOUT, max_connections=64
        )
        options: dict[str, Any] = {"connection_pool": self._pool}
        storage = RedisStorage(f"async+{url}", implementation="redispy", key_prefix="integrations", **options)
        self._windows = MovingWindowRateLimiter(storage)
        self._unavailable_until = 0.0
        self._is_unavailable = False
        self._log = structlog.get_logger(__name__)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._stack.push_async_callback(self._pool.aclose)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def acquire(self, limits: Sequence[tuple[str, RateLimit]]) -> Exhausted | None:
        """None if a call was counted in each place; else one that is full."""
        if not limits or time.monotonic() < self._unavailable_until:
            return None
        try:
            exhausted = await self._acquire([(name, _item(limit)) for name, limit in limits])
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self._unavailable_until = time.monotonic() + _RECONNECT_INTERVAL
            if not self._is_unavailable:
                self._is_unavailable = True
                self._log.warning("rate_limit_store_unavailable", kind=type(error).__name__)
            return None
        if self._is_unavailable:
            self._is_unavailable = False
            self._log.info("rate_limit_store_recovered")
        return exhausted

    async def _acquire(self, limits: Sequence[tuple[str, RateLimitItem]]) -> Exhausted | None:
        if len(limits) > 1:  # look first: a place that is full should cost the others nothing
            for name, item in limits:
                if not await self._windows.test(item, name):
                    return await self._exhausted(name, item)
        for name, item in limits:
            if not await self._windows.hit(item, name):
                return await self._exhausted(name, item)
        return None

    async def _exhausted(self, name: str, item: RateLimitItem) -> Exhausted:
        stats = await self._windows.get_window_stats(item, name)
        return Exhausted(name, max(_MIN_WAIT, stats.reset_time - time.time()))


def _item(limit: RateLimit) -> RateLimitItem:
    seconds = -int(-limit.window.total_seconds() // 1)  # rounded up
    return RateLimitItemPerSecond(limit.calls, seconds + _MARGIN)
