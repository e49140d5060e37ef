"""Integrations remembered for seconds, sealed as they are stored, so that most backends need not wait for the database.

What is remembered is served only while the last look at the changes is recent. That bounds how long a replica serves
what another one has changed or disconnected (`LONGEST`), and means that nothing is served from here while the database
cannot be asked.
"""

from collections.abc import Callable
from datetime import timedelta

from cachetools import TTLCache

from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.ports import ChangePlace, Changes, IntegrationLookup, StoredIntegration

LONGEST = timedelta(seconds=0.8)
"""How long after a change an integration may still be served as it was; within a second with the way to the caller."""

LOOK_EVERY = timedelta(seconds=0.25)
"""How often to look at the changes: so that one slow look does not end the serving."""

_TIME_TO_LIVE = timedelta(seconds=5)
"""Notices are kept for longer (`PRUNE_EVERY`), so that none is pruned unseen while it matters to somebody."""

PRUNE_EVERY = timedelta(seconds=30)


class Memory:
    """The integrations that were read last, at most `size` of them.

    A reading may be overtaken by a change, and end after that is known. So whoever reads says so beforehand, and what
    was read is kept only if nothing was heard of the integration meanwhile.
    """

    def __init__(self, size: int, monotonic: Callable[[], float]) -> None:
        self._kept: TTLCache[IntegrationId, StoredIntegration] = TTLCache(
            size, _TIME_TO_LIVE.total_seconds(), timer=monotonic
        )
        self._readings: dict[IntegrationId, object] = {}

    def get(self, integration_id: IntegrationId) -> StoredIntegration | None:
        """What is remembered of it."""
        return self._kept.get(integration_id)

    def begin_reading(self, integration_id: IntegrationId) -> object:
        """To be told before reading; a later reading of the same integration takes its place."""
        reading = self._readings[integration_id] = object()
        return reading

    def end_reading(self, integration_id: IntegrationId, reading: object, found: StoredIntegration | None) -> None:
        """Keep what was found, unless it may have changed since the reading began."""
        if self._readings.get(integration_id) is not reading:
            return
        del self._readings[integration_id]
        if found is not None:
            self._kept[integration_id] = found

    def forget(self, integration_id: IntegrationId) -> None:
        """It has changed: what is known of it, or is being read, does not count."""
        self._kept.pop(integration_id, None)
        self._readings.pop(integration_id, None)

    def forget_all(self) -> None:
        """Anything may have changed."""
        self._kept.clear()
        self._readings.clear()


class RememberingLookup:
    """An `IntegrationLookup` over another, that remembers, and follows the changes."""

    def __init__(
        self, memory: Memory, integrations: IntegrationLookup, changes: Changes, monotonic: Callable[[], float]
    ) -> None:
        self._memory = memory
        self._integrations = integrations
        self._changes = changes
        self._monotonic = monotonic
        self._place: ChangePlace | None = None
        self._good_until = monotonic()

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""
        if self._monotonic() < self._good_until and (kept := self._memory.get(integration_id)) is not None:
            return kept if kept.integration.user_id == user_id else None
        reading, found = self._memory.begin_reading(integration_id), None
        try:
            found = await self._integrations.find(integration_id, user_id)
        finally:
            self._memory.end_reading(integration_id, reading, found if _is_usable(found) else None)
        return found

    async def follow(self) -> None:
        """Look at the changes once, and forget what they are about. To be called every `LOOK_EVERY`."""
        begun = self._monotonic()
        news = await self._changes.since(self._place)
        if self._place is None:
            self._memory.forget_all()  # nobody told what changed before
        for integration_id in news.integration_ids:
            self._memory.forget(integration_id)
        self._place = news.place
        self._good_until = begun + LONGEST.total_seconds()


def _is_usable(found: StoredIntegration | None) -> bool:
    """Others are not remembered: whoever has just connected, or switched one on, should not be told that it is off."""
    return found is not None and found.integration.is_usable
