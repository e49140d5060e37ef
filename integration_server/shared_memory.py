"""What the worker processes of a server share in memory: counts of calls, the state of the change feed, heartbeats.

Imports nothing of ours.
"""

import mmap
import os
from array import array
from functools import lru_cache
from hashlib import blake2b

_ROWS = 2
_SLOTS = 16_384  # of a row; a key has one in each
_KNOWN_KEYS = 4_096  # whose slots are kept: callers make many calls
_COUNT_BITS = 32
_COUNT = (1 << _COUNT_BITS) - 1


class SharedMemory:
    """Memory that the workers of a server share: they are forks of the process that creates it.

    Each worker writes only numbers of its own, so that no lock is necessary, and what a worker that was killed leaves
    can be removed. A key has a slot in each of two rows, which others may have too: its count is the smaller one. Two
    keys that share both slots are counted together, which happens to one of 270 million pairs; nobody can choose such
    a pair, because the slots depend on a secret of this start.
    """

    def __init__(self, workers: int, *, secret: bytes = b"") -> None:
        self.workers = workers
        self.secret = secret or os.urandom(32)
        numbers = _ROWS * _SLOTS * workers
        self.in_flight = memoryview(mmap.mmap(-1, 4 * numbers)).cast("i")
        self.rates = memoryview(mmap.mmap(-1, 8 * numbers)).cast("Q")  # second, and calls in it
        self.debt_ends = memoryview(mmap.mmap(-1, 8 * numbers)).cast("Q")
        self.beats = memoryview(mmap.mmap(-1, 8 * workers)).cast("Q")
        self.feed_changes = memoryview(mmap.mmap(-1, 8)).cast("Q")
        self.feed_time = memoryview(mmap.mmap(-1, 8)).cast("d")

    def clear_calls(self, worker: int) -> None:
        """Forget the calls of a worker, which has ended."""
        self.in_flight[worker :: self.workers] = memoryview(array("i", bytes(4 * _ROWS * _SLOTS)))


class SharedCounts:
    """The `CallCounts` of one worker, over all workers.

    Workers that begin calls of a key in the same microsecond do not see each other's: the count may then be too low by
    one for each further worker.
    """

    def __init__(self, memory: SharedMemory, worker: int) -> None:
        self._workers = memory.workers
        self._worker = worker
        self._in_flight = memory.in_flight
        self._rates = memory.rates
        self._debt_ends = memory.debt_ends
        self._secret = memory.secret
        self._slots = lru_cache(_KNOWN_KEYS)(self._find_slots)

    def in_flight(self, key: str) -> int:
        """The calls of the key that are under way in all workers."""
        numbers, workers = self._in_flight, self._workers
        first, second = self._slots(key)
        return min(sum(numbers[first : first + workers]), sum(numbers[second : second + workers]))

    def change(self, key: str, by: int) -> None:
        """Change the number of calls that are under way in this worker."""
        for slot in self._slots(key):
            self._in_flight[slot + self._worker] += by

    def add_to_rate(self, key: str, second: int, calls: int = 1) -> int:
        """Count calls in a second; returns how many all workers have had."""
        numbers, beginning = self._rates, second << _COUNT_BITS
        counts = []
        for slot in self._slots(key):
            own = slot + self._worker
            numbers[own] = max(numbers[own], beginning) + calls
            of_workers = numbers[slot : slot + self._workers]
            counts.append(sum(packed & _COUNT for packed in of_workers if packed >> _COUNT_BITS == second))
        return min(counts)

    def debt_end(self, key: str) -> int:
        """The end of the key's debt, which is the latest that a worker has set."""
        ends, workers = self._debt_ends, self._workers
        first, second = self._slots(key)
        return min(max(ends[first : first + workers]), max(ends[second : second + workers]))

    def set_debt_end(self, key: str, end: int, now: int) -> None:  # nothing has to be forgotten
        """Set the end of the key's debt."""
        for slot in self._slots(key):
            own = slot + self._worker
            self._debt_ends[own] = max(self._debt_ends[own], end)

    def _find_slots(self, key: str) -> tuple[int, int]:
        """The indexes of the first worker's numbers in each row."""
        digest = int.from_bytes(blake2b(key.encode(), key=self._secret, digest_size=8).digest())
        first, second = digest % _SLOTS, (digest >> 32) % _SLOTS
        return first * self._workers, (_SLOTS + second) * self._workers


class SharedFeedState:
    """What the worker that `leads` knows about the change feed, for the others: most of their polls find nothing."""

    def __init__(self, memory: SharedMemory, *, leads: bool) -> None:
        self.leads = leads
        self._changes = memory.feed_changes
        self._time = memory.feed_time

    @property
    def changes(self) -> int:
        """A number that differs after each poll that has found something."""
        return self._changes[0]

    @property
    def time(self) -> float:
        """When the last poll began, in seconds of the system's monotonic clock. To be read before `changes`."""
        return self._time[0]

    def publish(self, poll_time: float, *, has_changes: bool) -> None:
        """Record a poll."""
        self._changes[0] += has_changes
        self._time[0] = poll_time
