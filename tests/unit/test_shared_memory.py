"""Calls are counted by key: in one process, and together over workers, which write only numbers of their own."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from integration_server.domain.call_quota import CallCounts, CallRate, LocalCounts
from integration_server.domain.errors import QuotaExceeded
from integration_server.shared_memory import SharedCounts, SharedMemory


def shared(workers: int) -> Sequence[SharedCounts]:
    memory = SharedMemory(workers)
    return [SharedCounts(memory, number) for number in range(workers)]


@pytest.mark.parametrize("counts", [LocalCounts(), *shared(1), shared(3)[2]], ids=["local", "one", "last of three"])
def test_all_counts_agree_on_random_calls(counts: CallCounts) -> None:
    generator, expected = random.Random(17), Counter[str]()
    for _ in range(2_000):
        key = f"caller-{generator.randrange(40)}"
        by = generator.choice([1, 1, -1]) if expected[key] else 1
        counts.change(key, by)
        expected[key] += by
        assert counts.in_flight(key) == expected[key]
    assert counts.in_flight("nobody") == 0


@pytest.mark.parametrize("workers", [1, 2, 5, 64])
def test_the_calls_of_all_workers_count_together(workers: int) -> None:
    every = shared(workers)
    for counts in every:
        counts.change("ada", 2)
        counts.change("bob", 1)
    assert {counts.in_flight("ada") for counts in every} == {2 * workers}
    every[0].change("ada", -2)
    assert {counts.in_flight("ada") for counts in every} == {2 * workers - 2}
    assert every[0].in_flight("bob") == workers


def test_negative_control_local_counts_do_not_know_each_other() -> None:
    one, other = LocalCounts(), LocalCounts()
    one.change("ada", 5)
    assert (one.in_flight("ada"), other.in_flight("ada")) == (5, 0)


@pytest.mark.parametrize("second", [0, 1, 1_000_000, 2**32 - 2])
def test_the_rate_of_a_second_is_that_of_all_workers_and_ends_with_it(second: int) -> None:
    one, other = shared(2)
    assert [one.add_to_rate("ada", second), other.add_to_rate("ada", second)] == [1, 2]
    assert one.add_to_rate("ada", second) == 3
    assert one.add_to_rate("bob", second) == 1
    # The other worker may see the next second first.
    assert other.add_to_rate("ada", second + 1) == 1
    assert one.add_to_rate("ada", second) == 3
    assert one.add_to_rate("ada", second + 1) == 2


@pytest.mark.parametrize("shares", [True, False], ids=["", "negative control"])
def test_what_batches_exceed_the_rate_by_counts_in_all_workers(shares: bool) -> None:
    """A caller that sends each batch to another worker gets no more than one that sends all of them to one."""
    now = 1000.0
    every = shared(4) if shares else [LocalCounts() for _ in range(4)]
    rates = [CallRate(10, counts, lambda: now) for counts in every]
    items = 0
    for step in range(400):
        now = 1000.0 + step / 4
        rate = rates[step % 4]
        try:
            rate.count("ada")
            rate.count_items("ada", 100)
        except QuotaExceeded:
            continue
        items += 100
        rate.count("bob")  # is not concerned
    assert (items <= 100 * 10 + 100) is shares


def test_debts_that_have_ended_are_forgotten() -> None:
    now = 0.0
    counts = LocalCounts()
    rate = CallRate(10, counts, lambda: now)
    for number in range(100):
        now = number * 5.0
        rate.count_items(f"caller-{number}", 30)
    assert len(counts._debt_ends) == 1
    with pytest.raises(QuotaExceeded):
        rate.count("caller-99")
    now += 3
    rate.count("caller-99")


def test_what_a_killed_worker_had_under_way_is_forgotten_and_nothing_else() -> None:
    memory = SharedMemory(3)
    every = [SharedCounts(memory, number) for number in range(3)]
    for counts in every:
        counts.change("ada", 7)
    memory.clear_calls(1)
    assert every[0].in_flight("ada") == 14
    every[1].change("ada", 1)  # of the process that takes its place
    assert every[2].in_flight("ada") == 15


def test_callers_are_hardly_ever_counted_together() -> None:
    """100 callers at their limit, and thousands of others: none of them is refused for another one's calls."""
    counts = SharedCounts(SharedMemory(2, secret=b"always the same"), 0)
    for number in range(100):
        counts.change(f"busy-{number}", 2_000)
    wrong = [number for number in range(5_000) if counts.in_flight(f"other-{number}")]
    assert len(wrong) < 10  # 0.2 are expected
    assert all(counts.in_flight(f"busy-{number}") == 2_000 for number in range(100))


def test_nobody_can_choose_names_that_are_counted_together() -> None:
    first, second = (shared(1)[0]._find_slots("ada") for _ in range(2))
    assert first != second  # the slots depend on a secret of the start; equal ones have a probability of 2⁻²⁸
