import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.service.audit.audit_trail import AuditEntryLost, AuditTrail
from tests.fakes.clock import NOON

LONG = timedelta(hours=1)
SOON = timedelta(milliseconds=1)


def entry(number: int) -> AuditEntry:
    return AuditEntry(NOON, "caller", Action.READ_CREDENTIALS, integration_id=number)


class MemoryLog:
    """An `AuditLog` that keeps each batch in memory."""

    def __init__(self) -> None:
        self.batches: list[Sequence[AuditEntry]] = []
        self.away = False
        self.cannot_take: set[int] = set()
        self.written = asyncio.Event()

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Keep the batch."""
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable
        if any(one.integration_id in self.cannot_take for one in entries):
            raise ValueError("secret")
        self.batches.append(entries)
        self.written.set()

    @property
    def ids(self) -> list[int]:
        """The ids of all entries, in order."""
        return [one.integration_id for batch in self.batches for one in batch]


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


async def test_queued_entries_are_written_in_one_batch(log: MemoryLog) -> None:
    async with AuditTrail(log, interval=SOON) as trail:
        assert all(trail.enqueue(entry(number)) for number in range(100))
        await asyncio.wait_for(log.written.wait(), 60)
    assert log.ids == list(range(100))
    assert len(log.batches) == 1


async def test_record_writes_its_entry_and_the_queued_ones(log: MemoryLog) -> None:
    async with AuditTrail(log, interval=LONG) as trail:
        trail.enqueue(entry(1))
        await trail.record(entry(2))
        assert log.ids == [1, 2]


async def test_leaving_the_context_writes_the_rest(log: MemoryLog) -> None:
    async with AuditTrail(log, interval=LONG) as trail:
        trail.enqueue(entry(1))
    assert log.ids == [1]


async def test_entries_keep_their_order_while_the_database_is_unavailable(log: MemoryLog) -> None:
    async with AuditTrail(log, interval=SOON) as trail:
        log.away = True
        recorded = asyncio.create_task(trail.record(entry(1)))
        await asyncio.sleep(0)
        trail.enqueue(entry(2))
        assert not log.batches
        log.away = False
        await recorded
    assert log.ids == [1, 2]


async def test_a_full_queue_rejects_reads_but_not_changes(log: MemoryLog) -> None:
    async with AuditTrail(log, interval=LONG, max_pending=2) as trail:
        assert [trail.enqueue(entry(number)) for number in range(3)] == [True, True, False]
        await trail.record(entry(3))
    assert log.ids == [0, 1, 3]


async def test_an_entry_that_cannot_be_stored_is_reported_and_does_not_block_others(log: MemoryLog) -> None:
    log.cannot_take = {2}
    with capture_logs() as logs:
        async with AuditTrail(log, interval=LONG) as trail:
            for number in (1, 2, 3):
                trail.enqueue(entry(number))
            await trail.record(entry(4))
            with pytest.raises(AuditEntryLost):
                await trail.record(entry(2))
            await trail.record(entry(5))
    assert log.ids == [1, 3, 4, 5]
    assert [(line["event"], line["kind"]) for line in logs] == [("audit_entry_lost", "ValueError")] * 2
    assert "secret" not in str(logs)
