"""Reads of integrations that concurrent callers share: below the cache, for the callers that it cannot serve.

Callers of the same integration share one read. Reads of different integrations that begin within a millisecond become
one statement. The first read after a quiet millisecond does not wait for others.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.background.detached_tasks import DetachedTasks, waiting_for_store
from integration_server.service.credentials.integration_cache import RaceSafeCache
from integration_server.service.integrations.ports import FoundIntegrations, IntegrationStore, StoredIntegration

_INTERVAL = 0.001  # seconds between two statements: less than a statement takes
_MAX_AGE = 0.2  # seconds: a read that hangs must not give later callers what another replica has changed meanwhile
_MAX_BYTES = 1024 * 1024  # of the rows of one statement; those that do not fit are read by the next
_MAX_READS = 100  # of one statement, whose rows hold the event loop for a millisecond

_Target = tuple[IntegrationId, UserId]


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    target: _Target
    token: object  # of the cache
    begin_time: float  # on the clock of the event loop
    result: asyncio.Future[StoredIntegration] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


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
        tasks: DetachedTasks,
        *,
        interval: float = _INTERVAL,
        max_age: float = _MAX_AGE,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        self._cache = cache
        self._store = store
        self._tasks = tasks
        self._interval = interval
        self._max_age = max_age
        self._max_bytes = max_bytes
        self.find_many = store.find_many  # is one statement already
        self._reads: dict[_Target, _Read] = {}
        self._waiting: list[_Read] = []
        self._next_time = 0.0  # of a statement, on the clock of the event loop

    async def get(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        """The user's integration. Raises `IntegrationNotFound` or `StoreUnavailable`."""
        target = integration_id, user_id
        read = self._reads.get(target)
        if read is None or not self._may_join(read):
            read = self._reads[target] = self._begin(target)
        with waiting_for_store():
            return await asyncio.shield(read.result)

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
            self._tasks.start(self._run(waiting[begin : begin + _MAX_READS]))

    async def _run(self, reads: Sequence[_Read]) -> None:
        try:
            found = await self._find([read.target for read in reads])
        except BaseException as error:
            for read in reads:
                # At the end of the server its tasks are cancelled, and its calls are not.
                self._end(read, StoreUnavailable() if isinstance(error, asyncio.CancelledError) else error)
            if not isinstance(error, Exception):
                raise
            return
        rest = [read for read in reads if read.target[0] in found.omitted]
        for read in reads:
            if read not in rest:
                self._end(read, found.of(read.target) or IntegrationNotFound())
        if rest:
            await self._run(rest)

    async def _find(self, targets: Sequence[_Target]) -> FoundIntegrations:
        if len(targets) > 1:
            return await self._store.find_many(targets, self._max_bytes)
        found = await self._store.find(*targets[0])
        return FoundIntegrations({} if found is None else {targets[0][0]: found})

    def _end(self, read: _Read, outcome: StoredIntegration | BaseException) -> None:
        self._cache.end_read(read.target[0], read.token, None)  # each caller caches what it gets
        if self._reads.get(read.target) is read:
            del self._reads[read.target]
        if isinstance(outcome, BaseException):
            read.result.set_exception(outcome)
            read.result.exception()  # marks it as retrieved: all callers may be gone
        else:
            read.result.set_result(outcome)
