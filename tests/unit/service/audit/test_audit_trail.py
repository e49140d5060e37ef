import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.errors import StoreUnavailable
from integration_server.service.audit.audit_trail import AuditEntryLost, AuditTrail
from tests.fakes.clock import NOON

NEVER = timedelta(hours=1)
AT_ONCE = timedelta(milliseconds=1)


def entry(number: int) -> AuditEntry:
    return AuditEntry(NOON, "caller", Action.READ_CREDENTIALS, integration_id=number)


class InMemoryAuditLog:
    """An `AuditLog` that keeps each batch in memory."""

    def __init__(self) -> None:
        self.batches: list[Sequence[AuditEntry]] = []
        self.is_unavailable = False
        self.rejected_ids: set[int] = set()
        self.written = asyncio.Event()

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Store the batch. Raises `ValueError` for a rejected id."""
        await asyncio.sleep(0)
        if self.is_unavailable:
            raise StoreUnavailable
        if any(entry.integration_id in self.rejected_ids for entry in entries):
            raise ValueError("secret")
        self.batches.append(entries)
        self.written.set()

    @property
    def ids(self) -> list[int]:
        """The ids of all entries, in order."""
        return [entry.integration_id for batch in self.batches for entry in batch]


@pytest.fixture
def log() -> InMemoryAuditLog:
    return InMemoryAuditLog()


async def test_queued_entries_are_written_in_one_batch(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, interval=AT_ONCE) as trail:
        assert all(trail.queue.enqueue(entry(number)) for number in range(100))
        await asyncio.wait_for(log.written.wait(), 60)
    assert log.ids == list(range(100))
    assert len(log.batches) == 1


async def test_record_writes_its_entry_and_the_queued_ones(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, interval=NEVER) as trail:
        trail.queue.enqueue(entry(1))
        await trail.record(entry(2))
        assert log.ids == [1, 2]


async def test_leaving_the_context_writes_the_rest(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, interval=NEVER) as trail:
        trail.queue.enqueue(entry(1))
    assert log.ids == [1]


async def test_entries_keep_their_order_while_the_database_is_unavailable(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, interval=AT_ONCE) as trail:
        log.is_unavailable = True
        recorded = asyncio.create_task(trail.record(entry(1)))
        await asyncio.sleep(0)
        trail.queue.enqueue(entry(2))
        assert not log.batches
        log.is_unavailable = False
        await recorded
    assert log.ids == [1, 2]


async def test_a_full_queue_rejects_reads_but_not_changes(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, interval=NEVER, max_pending=2) as trail:
        assert [trail.queue.enqueue(entry(number)) for number in range(3)] == [True, True, False]
        await trail.record(entry(3))
    assert log.ids == [0, 1, 3]


async def test_an_entry_that_cannot_be_stored_is_reported_and_does_not_block_others(log: InMemoryAuditLog) -> None:
    log.rejected_ids = {2}
    with capture_logs() as logs:
        async with AuditTrail(log, interval=NEVER) as trail:
            for number in (1, 2, 3):
                trail.queue.enqueue(entry(number))
            await trail.record(entry(4))
            with pytest.raises(AuditEntryLost):
                await trail.record(entry(2))
            await trail.record(entry(5))
    assert log.ids == [1, 3, 4, 5]
    assert [(line["event"], line["kind"]) for line in logs] == [("audit_entry_lost", "ValueError")] * 2
    assert "secret" not in str(logs)


async def test_an_entry_that_is_being_written_is_not_shared(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, interval=NEVER) as trail:
        trail.queue.enqueue(entry(1))
        await trail.record(entry(2))
        trail.queue.enqueue(entry(1))
    assert [[entry.call_count for entry in batch] for batch in log.batches] == [[1, 1], [1]]


async def test_what_is_queued_during_a_write_waits_for_the_next_one(log: InMemoryAuditLog) -> None:
    """Or each entry would be a batch of its own under load."""
    async with AuditTrail(log, interval=NEVER) as trail:
        for number in range(50):
            trail.queue.enqueue(entry(number))
            await asyncio.sleep(0)
        await trail.record(entry(50))
        for number in range(51, 100):
            trail.queue.enqueue(entry(number))
            await asyncio.sleep(0)
        assert [len(batch) for batch in log.batches] == [51]


async def test_a_thousand_entries_are_written_before_the_interval_ends(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, interval=NEVER) as trail:
        for number in range(1000):
            trail.queue.enqueue(entry(number))
        await asyncio.wait_for(log.written.wait(), 60)
        assert [len(batch) for batch in log.batches] == [1000]
