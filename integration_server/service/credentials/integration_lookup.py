"""The lookup of integrations with their encrypted credentials: a cache, above reads of the store that callers share.

Entries of the cache (`domain/integration_cache.py`) that are in use are read again before they expire, so that callers
do not wait for that.

Callers that it cannot serve share the reads. Callers of the same integration share one read. Reads of different
integrations that begin within a millisecond become one statement. The first read after a quiet millisecond does not
wait for others.
"""

import asyncio
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.call_budget import waiting_for_store
from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration, UserId
from integration_server.domain.integration_cache import RaceSafeCache, json_length
from integration_server.service.integrations.ports import (
    FoundIntegrations,
    IntegrationLookup,
    IntegrationStore,
    IntegrationTarget,
)

# Characters of JSON: several times what providers have settings for. A config of 64 KiB takes up to 400 kB of memory,
# and garbage collection visits all its objects.
_MAX_CONFIG_LENGTH = 1024

_INTERVAL = 0.001  # seconds between two statements: less than a statement takes
_MAX_AGE = 0.2  # seconds: a read that hangs must not give later callers what another replica has changed meanwhile
_MAX_BYTES = 1024 * 1024  # of the rows of one statement; those that do not fit are read by the next
_MAX_READS = 100  # of one statement, whose rows hold the event loop for a millisecond


class CachedLookup:
    """An `IntegrationLookup` that reads the cache first, then the store. It does not cache what has a large config."""

    def __init__(
        self, cache: RaceSafeCache, integrations: IntegrationLookup, *, max_config_length: int = _MAX_CONFIG_LENGTH
    ) -> None:
        self._cache = cache
        self._integrations = integrations
        self._max_config_length = max_config_length
        self.hits = self.misses = 0

    async def get(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        """The user's integration. Raises `IntegrationNotFound`."""
        if (cached := self._cache.get(integration_id, user_id)) is not None:
            self.hits += 1
            return cached
        self.misses += 1
        read_token, cacheable = self._cache.begin_read(integration_id), None
        try:
            found = await self._integrations.get(integration_id, user_id)
            cacheable = self._cacheable(found)
            return found
        finally:
            self._cache.end_read(integration_id, read_token, cacheable)

    async def find_many(
        self,
        targets: Collection[IntegrationTarget],
        max_bytes: int,
        allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> FoundIntegrations:
        """The integrations of the targets: one read of the store for all that are not cached.

        Those of types that are not allowed are read, so that the time does not tell them from those that do not exist.
        """
        cached: dict[IntegrationId, StoredIntegration] = {}
        missing: list[IntegrationTarget] = []
        for target in targets:
            hit = self._cache.get(*target)
            if hit is None or not allowed_types.allows(hit.integration.integration_type):
                missing.append(target)
            else:
                cached[target[0]] = hit
        self.hits += len(targets) - len(missing)
        if not missing:
            return FoundIntegrations(cached)
        self.misses += len(missing)
        found = await self._read(missing, max_bytes, allowed_types)
        return FoundIntegrations({**cached, **found.by_id}, found.omitted)

    async def renew(self) -> None:
        """Read again the entries that are in use and would expire soon. To be called every second.

        What the store does not have any more is dropped: the change feed has missed a change.
        """
        due = self._cache.take_due()
        for begin in range(0, len(due), _MAX_READS):
            targets = due[begin : begin + _MAX_READS]
            found = await self._read(targets, _MAX_BYTES, ALL_INTEGRATION_TYPES)
            for integration_id, _ in targets:
                is_omitted = integration_id in found.omitted  # it is due again soon
                if not is_omitted and self._cacheable(found.by_id.get(integration_id)) is None:
                    self._cache.invalidate(integration_id)

    async def _read(
        self, targets: Sequence[IntegrationTarget], max_bytes: int, allowed_types: AllowedTypes
    ) -> FoundIntegrations:
        """Read with one statement, and cache what was found."""
        reads = {
            integration_id: self._cache.begin_read(integration_id)
            for integration_id in {target[0] for target in targets}
        }
        found = FoundIntegrations({})
        try:
            found = await self._integrations.find_many(targets, max_bytes, allowed_types)
        finally:
            for integration_id, read_token in reads.items():
                self._cache.end_read(integration_id, read_token, self._cacheable(found.by_id.get(integration_id)))
        return found

    def is_current(self, integration: Integration) -> bool:
        """Whether `get` would return this very object, out of the cache."""
        cached = self._cache.get(integration.integration_id, integration.user_id)
        if cached is None or cached.integration is not integration:
            return False
        self.hits += 1
        return True

    def _cacheable(self, found: StoredIntegration | None) -> StoredIntegration | None:
        # Others are not cached: an integration that was just connected or activated works at once.
        return found if found is not None and found.integration.is_usable and self._is_small(found) else None

    def _is_small(self, found: StoredIntegration) -> bool:
        return json_length(found.integration.config) <= self._max_config_length


# --- reads of the store -----------------------------------------------------------------------------------------------

_Target = tuple[IntegrationId, UserId]


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    target: _Target
    token: object  # of the cache
    begin_time: float  # on the clock of the event loop
    waiters: list[asyncio.Future[StoredIntegration]] = field(default_factory=list)


class SharedReads:
    """An `IntegrationLookup` over the store.

    A caller joins a read only while the cache has learned of no change since that read was announced: what a caller
    gets is never older than its call. A read belongs to the server, so that a caller that leaves ends it for nobody. An
    id that does not exist, or is another user's, takes the same statement as any other.
    """

    def __init__(
        self,
        cache: RaceSafeCache,
        store: IntegrationStore,
        *,
        interval: float = _INTERVAL,
        max_age: float = _MAX_AGE,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        self._cache = cache
        self._store = store
        self._interval = interval
        self._max_age = max_age
        self._max_bytes = max_bytes
        self.find_many = store.find_many  # is one statement already
        self._reads: dict[_Target, _Read] = {}
        self._waiting: list[_Read] = []
        self._next_time = 0.0  # of a statement, on the clock of the event loop
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself keeps only weak references

    async def aclose(self) -> None:
        """End the reads that are under way. The calls that have begun them have ended."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def get(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        """The user's integration. Raises `IntegrationNotFound` or `StoreUnavailable`."""
        target = integration_id, user_id
        read = self._reads.get(target)
        if read is None or not self._may_join(read):
            read = self._reads[target] = self._begin(target)
        # Its own future, as of `asyncio.shield`, which costs more: a caller that leaves does not cancel the read.
        own: asyncio.Future[StoredIntegration] = asyncio.get_running_loop().create_future()
        read.waiters.append(own)
        with waiting_for_store():
            return await own

    def _may_join(self, read: _Read) -> bool:
        is_unchanged = self._cache.is_pending(read.target[0], read.token)
        return is_unchanged and asyncio.get_running_loop().time() - read.begin_time < self._max_age

    def _begin(self, target: _Target) -> _Read:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._waiting:
            if now >= self._next_time:
                self._start(self._run_waiting())  # with those that begin before this task does
            else:
                loop.call_at(self._next_time, lambda: self._start(self._run_waiting()))
        read = _Read(target, self._cache.begin_read(target[0]), now)
        self._waiting.append(read)
        return read

    def _start(self, run: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_waiting(self) -> None:
        self._next_time = asyncio.get_running_loop().time() + self._interval
        waiting, self._waiting = self._waiting, []
        for begin in range(_MAX_READS, len(waiting), _MAX_READS):
            self._start(self._run(waiting[begin : begin + _MAX_READS]))
        await self._run(waiting[:_MAX_READS])

    async def _run(self, reads: Sequence[_Read]) -> None:
        try:
            rest = await self._read(reads)
        except BaseException as error:
            for read in reads:
                # At the end of the server its tasks are cancelled, and its calls are not.
                self._end(read, StoreUnavailable() if isinstance(error, asyncio.CancelledError) else error)
            if not isinstance(error, Exception):
                raise
            return
        if rest:
            await self._run(rest)

    async def _read(self, reads: Sequence[_Read]) -> Sequence[_Read]:
        """Read with one statement. Returns the reads whose rows did not fit into it."""
        if len(reads) == 1:
            self._end(reads[0], await self._store.find(*reads[0].target) or IntegrationNotFound())
            return ()
        found = await self._store.find_many([read.target for read in reads], self._max_bytes)
        rest = [read for read in reads if read.target[0] in found.omitted]
        for read in reads:
            if read not in rest:
                self._end(read, found.of(read.target) or IntegrationNotFound())
        return rest

    def _end(self, read: _Read, outcome: StoredIntegration | BaseException) -> None:
        self._cache.end_read(read.target[0], read.token, None)  # each caller caches what it gets
        if self._reads.get(read.target) is read:
            del self._reads[read.target]
        for waiter in read.waiters:
            if waiter.done():  # its caller is gone
                continue
            if isinstance(outcome, BaseException):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)
