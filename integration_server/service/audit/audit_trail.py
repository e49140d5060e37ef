"""The audit trail: queues entries and writes them to the audit log in batches.

RPCs that change state respond after their entry is written. Entries of reads are written with the next batch, at most
a second later: a crash can lose a second of them. Equal reads of that second share one entry.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol, Self

import structlog

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import UserId

_BATCH_SIZE = 1000

_READS = frozenset({Action.READ_CREDENTIALS, Action.READ_WEBHOOKS, Action.READ_UNROUTED_WEBHOOKS})
"""The actions whose equal calls may share an entry: they change nothing."""

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


@dataclass(slots=True)
class _Pending:
    """An entry that is not written yet, and the number of calls that share it."""

    entry: AuditEntry
    written: asyncio.Future[None] | None = None
    call_count: int = 1

    def record(self) -> AuditEntry:
        """The entry to write."""
        return self.entry if self.call_count == 1 else replace(self.entry, call_count=self.call_count)


class AuditTrail:
    """Queues entries, and writes all that are queued after `interval`, or as soon as there are a thousand, or as soon
    as somebody waits for one. Leaving the context writes the rest.
    """

    def __init__(self, log: AuditLog, *, interval: timedelta = timedelta(seconds=1), max_pending: int = 50_000) -> None:
        self._log = log
        self._max_pending = max_pending  # the default is some seconds of reads at full load, and about 20 MB
        self._interval = interval
        self._pending: list[_Pending] = []
        self._shared: dict[tuple[object, ...], _Pending] = {}
        self._flush_requested = asyncio.Event()
        self._logger = structlog.get_logger(__name__)

    async def __aenter__(self) -> Self:
        self._writer = asyncio.get_running_loop().create_task(self._write_batches())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        with suppress(StoreUnavailable):
            while self._pending:
                await self._write_pending()
        if self._pending:
            self._logger.error("audit_entries_lost", entries=len(self._pending))

    @property
    def pending_count(self) -> int:
        """The number of entries that are not written yet."""
        return len(self._pending)

    def pending_age(self, now: datetime) -> timedelta:
        """The age of the oldest entry that is not written yet; 0 if there is none."""
        oldest = next(iter(self._pending), None)
        return timedelta(0) if oldest is None else now - oldest.entry.time

    def enqueue(self, entry: AuditEntry) -> bool:
        """Queue an entry, or count a read with an equal one. Returns False, without doing so, if the queue is full."""
        call = entry.call
        shared = self._shared.get(call) if entry.action in _READS else None
        if shared is not None and timedelta(0) <= entry.time - shared.entry.time < self._interval:
            shared.call_count += 1
            return True
        if len(self._pending) >= self._max_pending:
            self._logger.error("audit_queue_full", action=entry.action, integration_id=entry.integration_id)
            return False
        pending = _Pending(entry)
        self._pending.append(pending)
        if entry.action in _READS:
            self._shared[call] = pending
        if len(self._pending) == _BATCH_SIZE:
            self._flush_requested.set()
        return True

    def enqueue_again(self, entry: AuditEntry, time: datetime) -> bool:
        """Queue or count a call that is equal to that of an entry. Returns False if the queue is full."""
        shared = self._shared.get(entry.call)
        if shared is not None and timedelta(0) <= time - shared.entry.time < self._interval:
            shared.call_count += 1
            return True
        return self.enqueue(replace(entry, time=time))

    async def record(self, entry: AuditEntry) -> None:
        """Write an entry, and return once it is written. Raises `AuditEntryLost`.

        The queue's limit does not apply: the entry is about a change that is already made.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(entry, written))
        self._flush_requested.set()
        await written

    async def _write_batches(self) -> None:
        interval = self._interval.total_seconds()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._flush_requested.wait()
            self._flush_requested.clear()
            try:
                await self._write_pending()
            except StoreUnavailable:
                self._logger.warning("audit_entries_delayed", entries=len(self._pending))
                await asyncio.sleep(interval)
                self._flush_requested.set()

    async def _write_pending(self) -> None:
        """Write what is queued now. What is queued meanwhile waits: the batches would become ever smaller."""
        self._shared.clear()
        remaining = len(self._pending)
        while remaining > 0:
            size = min(remaining, _BATCH_SIZE)
            await self._write_batch(size)
            remaining -= size
        if len(self._pending) >= _BATCH_SIZE:
            self._flush_requested.set()

    async def _write_batch(self, size: int) -> None:
        batch = self._pending[:size]
        failure: Exception | None = None
        try:
            await self._log.append([pending.record() for pending in batch])
        except StoreUnavailable:
            raise
        except Exception as error:
            if len(batch) > 1:  # retry one by one, so that one bad entry does not lose the others
                for _ in batch:
                    await self._write_batch(1)
                return
            failure = error
        del self._pending[: len(batch)]
        if failure is not None:
            entry, kind = batch[0].entry, type(failure).__qualname__
            self._logger.error("audit_entry_lost", action=entry.action, integration_id=entry.integration_id, kind=kind)
        for written in (pending.written for pending in batch):
            if written is not None and not written.done():  # done: the caller has stopped waiting
                written.set_exception(AuditEntryLost()) if failure else written.set_result(None)
