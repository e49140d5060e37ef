"""The audit trail: writes the queued entries to the audit log in batches.

RPCs that change state respond after their entry is written. Entries of reads are written with the next batch, at most
a second later: a crash can lose a second of them. While the queue is full, reads wait for a moment before they respond,
and changes before they begin: callers then call as fast as the log is written.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Protocol, Self

import structlog

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.audit_queue import BATCH_SIZE, AuditQueue, QueuedEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import UserId

# Six to eight thousand entries: more than callers read in a second, and six batches. A queue that is longer than what
# is written at a time gains nothing: it only moves the moment at which reads have to be as slow as the writes.
_MAX_BYTES = 4 * 1024 * 1024

_MAX_WAIT = timedelta(seconds=2)  # a caller that waits longer would give up, or call again
_FULL = "the audit log is written too slowly: too many calls wait for it"

_NO_USER = UserId("")
audit_user: ContextVar[UserId] = ContextVar("audit_user", default=_NO_USER)
"""The user in the entry of the current call, for requests that do not name their user. It must be verified.

gRPC runs each call in its own task.
"""


class AuditLog(Protocol):
    """The append-only store of the audit trail."""

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Store entries, all or none, in this order. One call at a time. Raises `StoreUnavailable`."""


class AuditEntryLost(Exception):
    """The log cannot store an entry: a bug in this program."""


class AuditTrail:
    """Writes the entries of its `queue` after `interval`, or as soon as there is a batch of them, or as soon as
    somebody waits for one. Leaving the context writes the rest.

    Calls wait for `max_wait` at most while the queue has `max_bytes`.
    """

    def __init__(
        self,
        log: AuditLog,
        *,
        interval: timedelta = timedelta(seconds=1),
        max_bytes: int = _MAX_BYTES,
        max_wait: timedelta = _MAX_WAIT,
    ) -> None:
        self._log = log
        self._max_wait = max_wait.total_seconds()
        self._interval = interval.total_seconds()
        self._flush_requested = asyncio.Event()
        self.queue = AuditQueue(interval, max_bytes, self._flush_requested.set)
        # For room, in the order of their calls; None for what is to begin, whose entry is not known yet.
        self._waiting: dict[asyncio.Future[None], AuditEntry | None] = {}
        self._written: dict[QueuedEntry, asyncio.Future[None]] = {}
        self._logger = structlog.get_logger(__name__)

    async def __aenter__(self) -> Self:
        self._writer = asyncio.get_running_loop().create_task(self._write_batches())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        with suppress(StoreUnavailable):
            while self.queue:
                await self._write_pending()
        if self.queue:
            self._logger.error("audit_entries_lost", entries=len(self.queue))

    async def enqueue_later(self, entry: AuditEntry, *, waits: bool = True) -> None:
        """Queue an entry that the full queue has refused, as soon as it has room.

        Raises `StoreUnavailable` if that takes too long: then the log cannot be written, or far too slowly. `waits` is
        False for a call that has ended.
        """
        if not await self._is_admitted(entry, self._max_wait if waits else 0):
            self._logger.error("audit_queue_full", action=entry.action, integration_id=entry.integration_id)
            raise StoreUnavailable(_FULL)

    async def wait_for_room(self, action: Action) -> None:
        """Return as soon as the queue has room. Raises `StoreUnavailable` as `enqueue_later`.

        For an action that changes something, before it begins: afterwards its entry is queued in any case.
        """
        if not self.queue.has_room and not await self._is_admitted(None, self._max_wait):
            self._logger.error("audit_queue_full", action=action)
            raise StoreUnavailable(_FULL)

    async def _is_admitted(self, entry: AuditEntry | None, timeout: float) -> bool:
        """Wait until an entry is queued, or until another could be. Returns False if that takes too long."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[admitted] = entry
        self._flush_requested.set()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await admitted
        finally:
            self._waiting.pop(admitted, None)
        return not admitted.cancelled()  # what is admitted as the time ends is queued

    async def record(self, entry: AuditEntry) -> None:
        """Write an entry, and return once it is written. Raises `AuditEntryLost`.

        The queue's limit does not apply: the entry is about a change that is already made.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._written[self.queue.append(entry)] = written
        self._flush_requested.set()
        await written

    def _admit_waiting(self) -> None:
        """Queue what waits for room, in its order, as far as there is room."""
        while self._waiting:
            admitted, entry = next(iter(self._waiting.items()))
            if not admitted.done():  # done: the call has ended
                if not (self.queue.has_room if entry is None else self.queue.enqueue(entry)):
                    return
                admitted.set_result(None)
            del self._waiting[admitted]

    async def _write_batches(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._flush_requested.wait()
            self._flush_requested.clear()
            try:
                await self._write_pending()
            except StoreUnavailable:
                self._logger.warning("audit_entries_delayed", entries=len(self.queue))
                await asyncio.sleep(self._interval)
                self._flush_requested.set()

    async def _write_pending(self) -> None:
        """Write what is queued now. What is queued meanwhile waits: the batches would become ever smaller."""
        self.queue.end_sharing()
        remaining = len(self.queue)
        while remaining > 0:
            size = min(remaining, BATCH_SIZE)
            await self._write_batch(size)
            remaining -= size
        # Not for an empty queue, even if somebody waits: it will not have more room.
        if len(self.queue) >= (1 if self._waiting else BATCH_SIZE):
            self._flush_requested.set()

    async def _write_batch(self, size: int) -> None:
        batch = self.queue.first(size)
        failure: Exception | None = None
        try:
            await self._log.append([queued.record() for queued in batch])
        except StoreUnavailable:
            raise
        except Exception as error:
            if len(batch) > 1:  # retry one by one, so that one bad entry does not lose the others
                for _ in batch:
                    await self._write_batch(1)
                return
            failure = error
        self.queue.remove_first(len(batch))
        self._admit_waiting()
        if failure is not None:
            entry, kind = batch[0].entry, type(failure).__qualname__
            self._logger.error("audit_entry_lost", action=entry.action, integration_id=entry.integration_id, kind=kind)
        for written in (self._written.pop(queued, None) for queued in batch):
            if written is not None and not written.done():  # done: the caller has stopped waiting
                written.set_exception(AuditEntryLost()) if failure else written.set_result(None)
