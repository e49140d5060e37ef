"""Integrations remembered for seconds, sealed as they are stored, so that most backends need not wait for the database.

What is remembered is served only while the last look at the changes is recent. That bounds how long a replica serves
what another one has changed or disconnected (`MAX_STALENESS`), and means that nothing is served from here while the
database
cannot be asked.
"""

from collections.abc import Callable
from datetime import timedelta

from cachetools import TTLCache

from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.integrations.ports import ChangeCursor, ChangeFeed, IntegrationLookup, StoredIntegration

MAX_STALENESS = timedelta(seconds=0.8)
"""How long after a change an integration may still be served as it was; within a second with the way to the caller."""

POLL_INTERVAL = timedelta(seconds=0.25)
"""How often to look at the changes: so that one slow look does not end the serving."""

_TTL = timedelta(seconds=5)
"""Notices are kept for longer (`PRUNE_INTERVAL`), so that none is pruned unseen while it matters to somebody."""

PRUNE_INTERVAL = timedelta(seconds=30)


class RaceSafeCache:
    """The integrations that were read last, at most `size` of them.

    A reading may be overtaken by a change, and end after that is known. So whoever reads says so beforehand, and what
    was read is kept only if nothing was heard of the integration meanwhile.
    """

    def __init__(self, size: int, monotonic: Callable[[], float]) -> None:
        self._entries: TTLCache[IntegrationId, StoredIntegration] = TTLCache(
            size, _TTL.total_seconds(), timer=monotonic
        )
        self._pending_reads: dict[IntegrationId, object] = {}

    def get(self, integration_id: IntegrationId) -> StoredIntegration | None:
        """What is remembered of it."""
        return self._entries.get(integration_id)

    def begin_read(self, integration_id: IntegrationId) -> object:
        """To be told before reading; a later reading of the same integration takes its place."""
        read_token = self._pending_reads[integration_id] = object()
        return read_token

    def end_read(self, integration_id: IntegrationId, read_token: object, found: StoredIntegration | None) -> None:
        """Keep what was found, unless it may have changed since the reading began."""
        if self._pending_reads.get(integration_id) is not read_token:
            return
        del self._pending_reads[integration_id]
        if found is not None:
            self._entries[integration_id] = found

    def invalidate(self, integration_id: IntegrationId) -> None:
        """It has changed: what is known of it, or is being read, does not count."""
        self._entries.pop(integration_id, None)
        self._pending_reads.pop(integration_id, None)

    def invalidate_all(self) -> None:
        """Anything may have changed."""
        self._entries.clear()
        self._pending_reads.clear()


class CachedLookup:
    """An `IntegrationLookup` over another, that remembers, and follows the changes."""

    def __init__(
        self,
        cache: RaceSafeCache,
        integrations: IntegrationLookup,
        change_feed: ChangeFeed,
        monotonic: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._integrations = integrations
        self._change_feed = change_feed
        self._monotonic = monotonic
        self._cursor: ChangeCursor | None = None
        self._fresh_until = monotonic()

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""
        if self._monotonic() < self._fresh_until and (cached := self._cache.get(integration_id)) is not None:
            return cached if cached.integration.user_id == user_id else None
        read_token, found = self._cache.begin_read(integration_id), None
        try:
            found = await self._integrations.find(integration_id, user_id)
        finally:
            self._cache.end_read(integration_id, read_token, found if _is_usable(found) else None)
        return found

    async def poll(self) -> None:
        """Look at the changes once, and forget what they are about. To be called every `POLL_INTERVAL`."""
        start = self._monotonic()
        batch = await self._change_feed.since(self._cursor)
        if self._cursor is None:
            self._cache.invalidate_all()  # nobody told what changed before
        for integration_id in batch.integration_ids:
            self._cache.invalidate(integration_id)
        self._cursor = batch.cursor
        self._fresh_until = start + MAX_STALENESS.total_seconds()


def _is_usable(found: StoredIntegration | None) -> bool:
    """Others are not remembered: whoever has just connected, or switched one on, should not be told that it is off."""
    return found is not None and found.integration.is_usable
