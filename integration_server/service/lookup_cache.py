"""A cache of lookups: results are kept for a moment, and few lookups run at a time, because anybody can cause some."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from cachetools import TTLCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MAX_ENTRIES = 10_000
_MAX_CONCURRENT = 2  # so that unverified requests take few of the database's connections


class LookupCache(Generic[K, V]):
    """Caches what `find` finds for `found_ttl` seconds, and that it finds nothing for `not_found_ttl`.

    `monotonic` is in seconds.
    """

    def __init__(
        self,
        find: Callable[[K], Awaitable[V | None]],
        monotonic: Callable[[], float],
        *,
        found_ttl: float,
        not_found_ttl: float,
        max_concurrent: int = _MAX_CONCURRENT,
    ) -> None:
        self._find = find
        self._found: TTLCache[K, V] = TTLCache(_MAX_ENTRIES, found_ttl, monotonic)
        self._not_found: TTLCache[K, None] = TTLCache(_MAX_ENTRIES, not_found_ttl, monotonic)
        self._lookups = asyncio.Semaphore(max_concurrent)

    async def find(self, key: K) -> V | None:
        """What belongs to the key."""
        if not self._is_cached(key):
            async with self._lookups:
                if not self._is_cached(key):  # another task may have looked it up
                    found = await self._find(key)
                    if found is None:
                        self._not_found[key] = None
                        return None
                    self._found[key] = found
                    return found
        return self._found.get(key)

    def forget(self, key: K) -> None:
        """Look the key up again, because it has changed."""
        self._found.pop(key, None)
        self._not_found.pop(key, None)

    def _is_cached(self, key: K) -> bool:
        return key in self._not_found or key in self._found
