"""The audit trail: entries on their way to the log, in batches.

What changes something is answered only when its entry is written; reads of credentials do not wait, and are written
with the next batch, at most a second later. A crash can lose that second of reads, and nothing else.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self

import structlog

from integration_server.domain.audit import AuditEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.service.ports import AuditLog

_MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class _Waiting:
    entry: AuditEntry
    written: asyncio.Event = field(default_factory=asyncio.Event)


class AuditTrail:
    """Takes entries, and writes them within `interval`. Leaving the context writes what is left."""

    def __init__(
        self, log: AuditLog, *, interval: timedelta = timedelta(seconds=1), most_waiting: int = 50_000
    ) -> None:
        self._log = log
        self._most_waiting = most_waiting  # by default some seconds of reads at full load, and about 20 MB
        self._interval = interval.total_seconds()
        self._waiting: list[_Waiting] = []
        self._is_urgent = asyncio.Event()
        self._logger = structlog.get_logger(__name__)

    async def __aenter__(self) -> Self:
        self._writer = asyncio.get_running_loop().create_task(self._write_batches())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        with suppress(StoreUnavailable):
            while self._waiting:
                await self._write_batch()
        if self._waiting:
            self._logger.error("audit_entries_lost", entries=len(self._waiting))

    def note(self, entry: AuditEntry) -> bool:
        """Have an entry written soon. False, and it is not taken, while too many wait."""
        if len(self._waiting) >= self._most_waiting:
            self._logger.error("audit_entry_refused", action=entry.action, integration_id=entry.integration_id)
            return False
        self._waiting.append(_Waiting(entry))
        return True

    async def record(self, entry: AuditEntry) -> None:
        """Have an entry written, and return when it is. One of these is always taken: it tells of what is done."""
        waiting = _Waiting(entry)
        self._waiting.append(waiting)
        self._is_urgent.set()
        await waiting.written.wait()

    async def _write_batches(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._is_urgent.wait()
            except TimeoutError:
                pass
            self._is_urgent.clear()
            try:
                while self._waiting:
                    await self._write_batch()
            except StoreUnavailable:
                self._logger.warning("audit_entries_wait", entries=len(self._waiting))
                await asyncio.sleep(self._interval)
                self._is_urgent.set()

    async def _write_batch(self) -> None:
        batch = self._waiting[:_MOST_AT_ONCE]
        await self._log.append([waiting.entry for waiting in batch])
        del self._waiting[: len(batch)]
        for waiting in batch:
            waiting.written.set()
