"""The audit trail: queues entries and writes them to the audit log in batches.

RPCs that change state respond after their entry is written. Entries of reads are written with the next batch, at most
a second later: a crash can lose a second of them.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Protocol, Self

import structlog

from integration_server.domain.audit import AuditEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import UserId

_BATCH_SIZE = 1000

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
    """Queues entries and writes them within `interval`. Leaving the context writes the rest."""

    def __init__(self, log: AuditLog, *, interval: timedelta = timedelta(seconds=1), max_pending: int = 50_000) -> None:
        self._log = log
        self._max_pending = max_pending  # the default is some seconds of reads at full load, and about 20 MB
        self._interval = interval.total_seconds()
        self._pending: list[tuple[AuditEntry, asyncio.Future[None] | None]] = []
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
                await self._write_batch()
        if self._pending:
            self._logger.error("audit_entries_lost", entries=len(self._pending))

    @property
    def pending_count(self) -> int:
        """The number of entries that are not written yet."""
        return len(self._pending)

    def pending_age(self, now: datetime) -> timedelta:
        """The age of the oldest entry that is not written yet; 0 if there is none."""
        oldest = next(iter(self._pending), None)
        return timedelta(0) if oldest is None else now - oldest[0].time

    def enqueue(self, entry: AuditEntry) -> bool:
        """Queue an entry. Returns False, without queuing it, while the queue is full."""
        if len(self._pending) >= self._max_pending:
            self._logger.error("audit_queue_full", action=entry.action, integration_id=entry.integration_id)
            return False
        self._pending.append((entry, None))
        return True

    async def record(self, entry: AuditEntry) -> None:
        """Write an entry, and return once it is written. Raises `AuditEntryLost`.

        The queue's limit does not apply: the entry is about a change that is already made.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((entry, written))
        self._flush_requested.set()
        await written

    async def _write_batches(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._flush_requested.wait()
            self._flush_requested.clear()
            try:
                while self._pending:
                    await self._write_batch()
            except StoreUnavailable:
                self._logger.warning("audit_entries_delayed", entries=len(self._pending))
                await asyncio.sleep(self._interval)
                self._flush_requested.set()

    async def _write_batch(self, limit: int = _BATCH_SIZE) -> None:
        batch = self._pending[:limit]
        failure: Exception | None = None
        try:
            await self._log.append([entry for entry, _ in batch])
        except StoreUnavailable:
            raise
        except Exception as error:
            if len(batch) > 1:  # retry one by one, so that one bad entry does not lose the others
                for _ in batch:
                    await self._write_batch(limit=1)
                return
            failure = error
        del self._pending[: len(batch)]
        if failure is not None:
            entry, kind = batch[0][0], type(failure).__qualname__
            self._logger.error("audit_entry_lost", action=entry.action, integration_id=entry.integration_id, kind=kind)
        for _, written in batch:
            if written is not None and not written.done():  # done: the caller has stopped waiting
                written.set_exception(AuditEntryLost()) if failure else written.set_result(None)
