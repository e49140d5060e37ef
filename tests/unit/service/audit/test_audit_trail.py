import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.audit_queue import queued_bytes
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


async def put(trail: AuditTrail, entry: AuditEntry, *, waits: bool = True) -> None:
    """Queue an entry as the interceptor does."""
    if not trail.queue.enqueue(entry):
        await trail.enqueue_later(entry, waits=waits)


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


def room_for(entries: int) -> int:
    """The bytes of a queue with room for so many entries."""
    return entries * queued_bytes(entry(0))


async def test_a_full_queue_rejects_reads_but_not_changes(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, interval=NEVER, max_bytes=room_for(2)) as trail:
        assert [trail.queue.enqueue(entry(number)) for number in range(3)] == [True, True, False]
        trail.queue.append(entry(3))
        await trail.record(entry(4))
        assert [trail.queue.enqueue(entry(number)) for number in range(5, 8)] == [True, True, False]
    assert log.ids == [0, 1, 3, 4, 5, 6]


async def test_reads_wait_until_the_log_is_written(log: InMemoryAuditLog) -> None:
    """Callers that read faster than the log is written become as fast as it is; none is refused, no entry is lost."""
    most, readers, reads = 20, 7, 300
    pending: list[int] = []

    async def read_all(trail: AuditTrail, reader: int) -> None:
        for number in range(reads):
            await put(trail, entry(reads * reader + number))
            pending.append(len(trail.queue))

    async with AuditTrail(log, max_bytes=room_for(most), max_wait=NEVER) as trail, asyncio.TaskGroup() as group:
        for reader in range(readers):
            group.create_task(read_all(trail, reader))
    assert max(pending) == most
    assert sorted(log.ids) == list(range(readers * reads))


async def test_negative_control_without_waiting_reads_are_refused(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, max_bytes=room_for(2)) as trail:
        await put(trail, entry(1))
        await put(trail, entry(2))
        with pytest.raises(StoreUnavailable):
            await put(trail, entry(3), waits=False)


async def test_a_log_that_cannot_be_written_refuses_reads_in_the_end(log: InMemoryAuditLog) -> None:
    log.is_unavailable = True
    with capture_logs() as logs:
        async with AuditTrail(log, interval=AT_ONCE, max_bytes=room_for(1), max_wait=AT_ONCE) as trail:
            await put(trail, entry(1))
            with pytest.raises(StoreUnavailable, match="the audit log is written too slowly"):
                await put(trail, entry(2))
            log.is_unavailable = False
            await asyncio.wait_for(log.written.wait(), 60)
            await put(trail, entry(3))
    assert log.ids == [1, 3]
    assert [line["integration_id"] for line in logs if line["event"] == "audit_queue_full"] == [2]


async def test_what_an_empty_queue_has_no_room_for_is_refused_and_stops_nothing_else(log: InMemoryAuditLog) -> None:
    """The writer has nothing to write, and lets others run."""
    async with AuditTrail(log, interval=AT_ONCE, max_bytes=1, max_wait=AT_ONCE) as trail:
        with pytest.raises(StoreUnavailable):
            await put(trail, entry(1))
        await trail.record(entry(2))
    assert log.ids == [2]


async def test_what_waits_for_room_is_queued_in_the_order_of_the_calls(log: InMemoryAuditLog) -> None:
    log.is_unavailable = True
    async with AuditTrail(log, interval=AT_ONCE, max_bytes=room_for(2), max_wait=NEVER) as trail:
        waiting = [asyncio.create_task(put(trail, entry(number))) for number in range(10)]
        await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [True, True] + 8 * [False]
        waiting[5].cancel()
        log.is_unavailable = False
        await asyncio.gather(*waiting, return_exceptions=True)
    assert log.ids == [0, 1, 2, 3, 4, 6, 7, 8, 9]


async def test_equal_reads_that_wait_share_an_entry(log: InMemoryAuditLog) -> None:
    async with AuditTrail(log, interval=NEVER, max_bytes=room_for(1), max_wait=NEVER) as trail:
        await put(trail, entry(1))
        await asyncio.gather(*(put(trail, entry(2)) for _ in range(3)))
    assert [[(one.integration_id, one.call_count) for one in batch] for batch in log.batches] == [[(1, 1)], [(2, 3)]]


async def test_what_waits_does_not_wait_for_the_interval(log: InMemoryAuditLog) -> None:
    """Although there is room for less than a batch."""
    async with AuditTrail(log, interval=NEVER, max_bytes=room_for(1), max_wait=NEVER) as trail:
        await asyncio.wait_for(asyncio.gather(*(put(trail, entry(number)) for number in range(5))), 60)
    assert log.ids == [0, 1, 2, 3, 4]


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
