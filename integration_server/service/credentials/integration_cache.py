"""The lookup of integrations with their encrypted credentials: a cache, above reads of the store that callers share.

The cache serves only while the change feed is up to date. This bounds how long a replica serves what another one has
changed or disconnected (`MAX_STALENESS`), and stops serving while the database does not respond. Entries in use are
read again before they expire, so that callers do not wait for that.

Callers that it cannot serve share the reads. Callers of the same integration share one read. Reads of different
integrations that begin within a millisecond become one statement. The first read after a quiet millisecond does not
wait for others.
"""

import asyncio
import json
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from operator import attrgetter
from sys import getsizeof
from typing import Any

from cachetools import LRUCache

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.call_budget import waiting_for_store
from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.integrations.ports import (
    FoundIntegrations,
    IntegrationLookup,
    IntegrationStore,
    IntegrationTarget,
    StoredIntegration,
)

MAX_STALENESS = timedelta(seconds=0.8)
"""How long after a change the old state may be served: within a second, with the time that a response takes."""

# How long a change can stay unknown that the feed does not report, as when somebody deletes its rows. Long enough that
# the renewal of what is in use costs little: 10,000 integrations are a statement of 50 rows a second.
_TTL = timedelta(minutes=5)
_RENEW_FROM, _RENEW_SPREAD = 0.5, 0.3  # of the TTL: what is used at least once a minute never expires
_RENEWAL_INTERVAL = 10.0  # seconds until an entry is due again whose renewal has failed
_FAILING_TTL = 5.0  # seconds: the feed does not report each failed refresh, and another replica may have recorded one

_texts_of = attrgetter(
    *("uid", "user_id", "integration_type", "name", "account_id", "account_label", "webhook_secret_id", "oauth_client")
)
_ENTRY_BYTES = 2048  # of all objects of an entry that have one size: at most nine times and four collections among them
_CONFIG_FACTOR = 6  # bytes of memory for a character of JSON, at most

# Characters of JSON: several times what providers have settings for. A config of 64 KiB takes up to 400 kB of memory,
# and garbage collection visits all its objects.
_MAX_CONFIG_LENGTH = 1024

_INTERVAL = 0.001  # seconds between two statements: less than a statement takes
_MAX_AGE = 0.2  # seconds: a read that hangs must not give later callers what another replica has changed meanwhile
_MAX_BYTES = 1024 * 1024  # of the rows of one statement; those that do not fit are read by the next
_MAX_READS = 100  # of one statement, whose rows hold the event loop for a millisecond


@dataclass(slots=True, eq=False)
class _Entry:
    found: StoredIntegration
    size: int  # in bytes
    renew_time: float  # on the cache's clock
    expire_time: float


class RaceSafeCache:
    """The integrations that were used last, of at most `max_bytes` of memory; a `ChangeListener`.

    A change may become known while a read is under way that does not contain it. A read is therefore announced, and
    cached only if no change of the integration became known meanwhile.

    An entry that is used after a part of its `ttl` is to be renewed (`take_due`). The part differs from entry to entry,
    so that what was read at one time does not have to be read again at one time.
    """

    def __init__(
        self,
        max_bytes: int,
        monotonic: Callable[[], float],
        *,
        ttl: timedelta = _TTL,
        max_staleness: timedelta = MAX_STALENESS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._entries: LRUCache[IntegrationId, _Entry] = LRUCache(max_bytes, getsizeof=attrgetter("size"))
        self._pending_reads: dict[IntegrationId, set[object]] = {}
        self._due: dict[IntegrationId, UserId] = {}
        self._monotonic = monotonic
        self._ttl = ttl.total_seconds()
        self._max_staleness = max_staleness.total_seconds()
        self._jitter = jitter
        self._fresh_until = monotonic()

    def get(self, integration_id: IntegrationId, user_id: UserId | None) -> StoredIntegration | None:
        """The user's integration (None: any user's), if it is cached and the feed is up to date.

        Another user's is not found here, like one that does not exist: the caller then asks the store in both cases, so
        that the time of a response does not tell them apart.
        """
        entry = self._entries.get(integration_id)
        now = self._monotonic()
        if entry is None or now >= self._fresh_until or now >= entry.expire_time:
            return None
        found = entry.found
        if user_id is not None and user_id != found.integration.user_id:
            return None
        if now >= entry.renew_time:
            self._due[integration_id] = found.integration.user_id
            entry.renew_time = now + _RENEWAL_INTERVAL
        return found

    def take_due(self) -> Sequence[tuple[IntegrationId, UserId]]:
        """The integrations whose entries are in use and would expire soon, since the last call."""
        due, self._due = self._due, {}
        return [target for target in due.items() if target[0] in self._entries]

    @property
    def size(self) -> int:
        """The memory that the entries take, in bytes."""
        return int(self._entries.currsize)

    def begin_read(self, integration_id: IntegrationId) -> object:
        """Announce a read of the store; returns its token."""
        read_token = object()
        self._pending_reads.setdefault(integration_id, set()).add(read_token)
        return read_token

    def is_pending(self, integration_id: IntegrationId, read_token: object) -> bool:
        """Whether no change of the integration became known since this read was announced."""
        return read_token in self._pending_reads.get(integration_id, ())

    def end_read(self, integration_id: IntegrationId, read_token: object, found: StoredIntegration | None) -> None:
        """Cache the result of a read, unless the integration changed since the read began."""
        pending = self._pending_reads.get(integration_id, set())
        if read_token not in pending:
            return
        pending.discard(read_token)
        if not pending:
            del self._pending_reads[integration_id]
        if found is not None:
            self._put(integration_id, found)

    def _put(self, integration_id: IntegrationId, found: StoredIntegration) -> None:
        size, now = _size_of(found), self._monotonic()
        if size > self._entries.maxsize:
            return
        previous = self._entries.get(integration_id)
        if previous is not None and previous.found == found:
            found = previous.found  # the very object, so that what was made from it stays valid
        if found.integration.refresh_failures or found.integration.refresh_retry_time is not None:
            ttl, renew_time = min(self._ttl, _FAILING_TTL), math.inf
        else:
            ttl, renew_time = self._ttl, now + self._ttl * (_RENEW_FROM + _RENEW_SPREAD * self._jitter())
        self._entries[integration_id] = _Entry(found, size, renew_time, now + ttl)

    def invalidate(self, integration_id: IntegrationId) -> None:
        """Drop an integration that changed, and any read of it."""
        self._entries.pop(integration_id, None)
        self._pending_reads.pop(integration_id, None)

    def apply_changes(self, integration_ids: Collection[IntegrationId] | None, poll_time: float) -> None:
        """Drop the integrations that changed (None: all), and serve until `MAX_STALENESS` after the poll."""
        if integration_ids is None:
            self._entries.clear()
            self._pending_reads.clear()
        for integration_id in integration_ids or ():
            self.invalidate(integration_id)
        self._fresh_until = poll_time + self._max_staleness


def _size_of(found: StoredIntegration) -> int:
    """The memory that an entry takes, in bytes: its objects, and for the config what its JSON can become."""
    integration = found.integration
    texts = [found.encrypted_credentials or b"", *_texts_of(integration), *integration.scopes]
    texts += integration.missing_scopes
    if integration.last_error is not None:
        texts += integration.last_error.error_class, integration.last_error.message
    config = _CONFIG_FACTOR * _json_length(integration.config)
    return _ENTRY_BYTES + sum(map(getsizeof, texts)) + config


def _json_length(config: Mapping[str, Any]) -> int:
    return len(json.dumps(config)) if config else 0


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
        return _json_length(found.integration.config) <= self._max_config_length


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
            loop.call_at(max(self._next_time, now), self._send)
        read = _Read(target, self._cache.begin_read(target[0]), now)
        self._waiting.append(read)
        return read

    def _send(self) -> None:
        self._next_time = asyncio.get_running_loop().time() + self._interval
        waiting, self._waiting = self._waiting, []
        for begin in range(0, len(waiting), _MAX_READS):
            task = asyncio.get_running_loop().create_task(self._run(waiting[begin : begin + _MAX_READS]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

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
