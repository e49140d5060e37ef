from datetime import timedelta

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.audit_queue import BATCH_SIZE, AuditQueue
from tests.fakes.clock import NOON

SECOND = timedelta(seconds=1)


def read(integration_id: int, *, seconds: float = 0, caller: str = "caller", outcome: str = "OK") -> AuditEntry:
    time = NOON + timedelta(seconds=seconds)
    return AuditEntry(time, caller, Action.READ_CREDENTIALS, integration_id=integration_id, outcome=outcome)


def counts(queue: AuditQueue) -> list[int]:
    """How many calls share each entry."""
    return [queued.record().call_count for queued in queue.first(BATCH_SIZE)]


def test_equal_reads_within_a_second_share_an_entry() -> None:
    queue = AuditQueue(SECOND, 10)
    for seconds in (0, 0.2, 0.9, 1, 1.5, 2.1):
        assert queue.enqueue(read(1, seconds=seconds))
    assert [(queued.entry.time - NOON, queued.call_count) for queued in queue.first(10)] == [
        (timedelta(seconds=0), 3),
        (timedelta(seconds=1), 2),
        (timedelta(seconds=2.1), 1),
    ]
    assert queue.age(NOON + 5 * SECOND) == 5 * SECOND


def test_other_calls_share_no_entry() -> None:
    queue = AuditQueue(SECOND, 10)
    change = AuditEntry(NOON, "caller", Action.REFRESH, integration_id=1)
    others = [read(1), read(2), read(1, caller="b"), read(1, outcome="NOT_FOUND"), read(1, seconds=-1), change, change]
    assert all(map(queue.enqueue, others))
    assert counts(queue) == [1] * len(others)


def test_a_repeated_read_shares_the_entry_of_the_first_or_has_its_own() -> None:
    queue = AuditQueue(SECOND, 10)
    first = read(1)
    assert queue.enqueue(first)
    assert all(queue.enqueue_again(first, NOON + timedelta(seconds=seconds)) for seconds in (0.5, 0.9, 1, 1.1))
    assert counts(queue) == [3, 2]


def test_an_entry_that_is_about_to_be_written_is_not_shared() -> None:
    queue = AuditQueue(SECOND, 10)
    queue.enqueue(read(1))
    queue.end_sharing()
    queue.enqueue(read(1))
    assert counts(queue) == [1, 1]


def test_a_full_queue_refuses_what_shares_no_entry() -> None:
    refused: list[AuditEntry] = []
    queue = AuditQueue(SECOND, 1, on_refusal=refused.append)
    assert [queue.enqueue(read(number)) for number in (1, 1, 2)] == [True, True, False]
    assert not queue.enqueue_again(read(3), NOON)
    assert (counts(queue), [entry.integration_id for entry in refused]) == ([2], [2, 3])
    queue.append(read(4))  # of a change that is already made
    queue.remove_first(1)
    assert [queued.entry.integration_id for queued in queue.first(BATCH_SIZE)] == [4]


def test_a_complete_batch_is_reported_once() -> None:
    reports: list[int] = []
    queue = AuditQueue(SECOND, 2 * BATCH_SIZE, on_batch=lambda: reports.append(len(queue)))
    for number in range(BATCH_SIZE + 5):
        queue.enqueue(read(number))
    assert reports == [BATCH_SIZE]


def test_an_empty_queue_has_no_age() -> None:
    assert AuditQueue(SECOND, 1).age(NOON) == timedelta(0)
