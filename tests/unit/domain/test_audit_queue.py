import tracemalloc
from dataclasses import replace
from datetime import timedelta
from sys import getsizeof

import pytest

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.audit_queue import BATCH_SIZE, AuditQueue, queued_bytes
from tests.fakes.clock import NOON

SECOND = timedelta(seconds=1)
MEBIBYTE = 1 << 20


def read(integration_id: int, *, seconds: float = 0, caller: str = "caller", outcome: str = "OK") -> AuditEntry:
    time = NOON + timedelta(seconds=seconds)
    return AuditEntry(time, caller, Action.READ_CREDENTIALS, integration_id=integration_id, outcome=outcome)


def counts(queue: AuditQueue) -> list[int]:
    """How many calls share each entry."""
    return [queued.record().call_count for queued in queue.first(BATCH_SIZE)]


def test_equal_reads_within_a_second_share_an_entry() -> None:
    queue = AuditQueue(SECOND, MEBIBYTE)
    for seconds in (0, 0.2, 0.9, 1, 1.5, 2.1):
        assert queue.enqueue(read(1, seconds=seconds))
    assert [(queued.entry.time - NOON, queued.call_count) for queued in queue.first(10)] == [
        (timedelta(seconds=0), 3),
        (timedelta(seconds=1), 2),
        (timedelta(seconds=2.1), 1),
    ]
    assert queue.age(NOON + 5 * SECOND) == 5 * SECOND


def test_other_calls_share_no_entry() -> None:
    queue = AuditQueue(SECOND, MEBIBYTE)
    change = AuditEntry(NOON, "caller", Action.REFRESH, integration_id=1)
    others = [read(1), read(2), read(1, caller="b"), read(1, outcome="NOT_FOUND"), read(1, seconds=-1), change, change]
    assert all(map(queue.enqueue, others))
    assert counts(queue) == [1] * len(others)


def test_a_repeated_read_shares_the_entry_of_the_first_or_has_its_own() -> None:
    queue = AuditQueue(SECOND, MEBIBYTE)
    first = read(1)
    assert queue.enqueue(first)
    assert all(queue.enqueue_again(first, NOON + timedelta(seconds=seconds)) for seconds in (0.5, 0.9, 1, 1.1))
    assert counts(queue) == [3, 2]


def test_an_entry_that_is_about_to_be_written_is_not_shared() -> None:
    queue = AuditQueue(SECOND, MEBIBYTE)
    queue.enqueue(read(1))
    queue.end_sharing()
    queue.enqueue(read(1))
    assert counts(queue) == [1, 1]


def test_a_full_queue_refuses_what_shares_no_entry() -> None:
    queue = AuditQueue(SECOND, queued_bytes(read(1)))
    assert [queue.enqueue(read(number)) for number in (1, 1, 2)] == [True, True, False]
    assert not queue.enqueue_again(read(3), NOON)
    assert counts(queue) == [2]
    queue.append(read(4))  # of a change that is already made
    queue.remove_first(1)
    assert [queued.entry.integration_id for queued in queue.first(BATCH_SIZE)] == [4]


@pytest.mark.parametrize(
    ("character", "at_least", "at_most"), [("", 1500, 2100), ("a", 300, 700), ("\U0001f600", 300, 700)]
)
def test_entries_are_measured_and_not_counted(character: str, at_least: int, at_most: int) -> None:
    queue = AuditQueue(SECOND, MEBIBYTE)
    entries = [replace(read(number), user_id=128 * character, details=300 * character) for number in range(3000)]
    queued = sum(map(queue.enqueue, entries))
    assert at_least < queued < at_most
    texts = sum(getsizeof(text) for entry in entries[:queued] for text in (entry.user_id, entry.details) if text)
    assert texts < MEBIBYTE
    queue.remove_first(queued)
    assert sum(map(queue.enqueue, map(read, range(3000, 6000)))) > 1500, "what is removed makes room"


def test_an_entry_takes_no_more_memory_than_its_size() -> None:
    queue, sizes = AuditQueue(SECOND, 1 << 30), 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(3000):
            one = replace(read(1000 + number, seconds=number), user_id=f"{number}" + number % 128 * "\U0001f600")
            assert queue.enqueue(one)
            sizes += queued_bytes(one)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.75 * sizes < taken < sizes


def test_a_complete_batch_is_reported_once() -> None:
    reports: list[int] = []
    queue = AuditQueue(SECOND, MEBIBYTE, on_batch=lambda: reports.append(len(queue)))
    for number in range(BATCH_SIZE + 5):
        queue.enqueue(read(number))
    assert reports == [BATCH_SIZE]


def test_an_empty_queue_has_no_age() -> None:
    assert AuditQueue(SECOND, 1).age(NOON) == timedelta(0)
