"""Rate limits shared by all servers that use the same Redis: the `DistributedLimiter` over the library `limits`.

Redis is optional at run time: while it is unavailable, calls continue within the limits that each server counts for
itself, and it is tried again every few seconds.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import structlog
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from integration_server.domain.proxy_messages import RateLimit
from integration_server.service.proxy.rate_limiter import Exhausted

_REDIS_TIMEOUT = 0.5  # seconds; Redis is close, and a call waits for it
_RECONNECT_INTERVAL = 5.0  # seconds
_MIN_WAIT = 0.02  # seconds
_MARGIN = 1  # seconds (the minimum: Redis expires keys in whole seconds)
"""The time by which windows are longer than declared. The time between counting a call and its arrival at the provider
varies, and the clocks of servers differ."""


class RedisLimiter:
    """Counts calls in moving windows in Redis. Close it with `aclose`."""

    def __init__(self, url: str) -> None:
        self._pool = ConnectionPool.from_url(
            url, socket_timeout=_REDIS_TIMEOUT, socket_connect_timeout=_REDIS_TIMEOUT, max_connections=64
        )
        options: dict[str, Any] = {"connection_pool": self._pool}
        storage = RedisStorage(f"async+{url}", implementation="redispy", key_prefix="integrations", **options)
        self._windows = MovingWindowRateLimiter(storage)
        self._retry_time: float | None = None  # None while Redis is available
        self._log = structlog.get_logger(__name__)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def is_available(self) -> bool:
        """Whether Redis responds."""
        try:
            return await self._windows.storage.check()
        except (RedisError, OSError):
            return False

    async def acquire(self, counters: Sequence[tuple[str, RateLimit]]) -> Exhausted | None:
        """Count a call in each of the counters and return None, or return a counter that is exhausted."""
        if not counters or (self._retry_time is not None and time.monotonic() < self._retry_time):
            return None
        try:
            exhausted = await self._acquire([(name, _item(limit)) for name, limit in counters])
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            if self._retry_time is None:
                self._log.warning("rate_limit_store_unavailable", kind=type(error).__name__)
            self._retry_time = time.monotonic() + _RECONNECT_INTERVAL
            return None
        if self._retry_time is not None:
            self._retry_time = None
            self._log.info("rate_limit_store_recovered")
        return exhausted

    async def _acquire(self, counters: Sequence[tuple[str, RateLimitItem]]) -> Exhausted | None:
        # With several counters all are tested first, so that an exhausted counter does not use up the others.
        for check in [self._windows.test, self._windows.hit] if len(counters) > 1 else [self._windows.hit]:
            for name, item in counters:
                if not await check(item, name):
                    stats = await self._windows.get_window_stats(item, name)
                    return Exhausted(name, max(_MIN_WAIT, stats.reset_time - time.time()))
        return None


def _item(limit: RateLimit) -> RateLimitItem:
    return RateLimitItemPerSecond(limit.calls, math.ceil(limit.window.total_seconds()) + _MARGIN)
