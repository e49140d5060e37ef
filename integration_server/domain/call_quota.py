"""How many calls each caller makes at the same time and in a second, and the limits of both.

Callers are counted by a key: a service, a user of a service, or the address of a client.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import Protocol

from integration_server.domain.errors import QuotaExceeded


class CallCounts(Protocol):
    """Counts calls by key. A call is under way between `change(key, 1)` and `change(key, -1)`."""

    def in_flight(self, key: str) -> int:
        """The calls of the key that are under way."""

    def change(self, key: str, by: int) -> None:
        """Change the number of calls of the key that are under way in this process."""

    def add_to_rate(self, key: str, second: int, calls: int = 1) -> int:
        """Count calls of the key in a second of the system's monotonic clock; returns how many it has had."""

    def debt_end(self, key: str) -> int:
        """The end of the key's debt, in calls at its rate since the start of the clock."""

    def set_debt_end(self, key: str, end: int, now: int) -> None:
        """Set the end of the key's debt, unless a later one is known. Debts that have ended by `now` are forgotten."""


class LocalCounts:
    """The `CallCounts` of one process."""

    def __init__(self) -> None:
        self._in_flight: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._second = 0
        self._debt_ends: dict[str, int] = {}

    def in_flight(self, key: str) -> int:
        """The calls of the key that are under way."""
        return self._in_flight[key]

    def change(self, key: str, by: int) -> None:
        """Change the number of calls that are under way."""
        self._in_flight[key] += by
        if not self._in_flight[key]:
            del self._in_flight[key]

    def add_to_rate(self, key: str, second: int, calls: int = 1) -> int:
        """Count calls in a second."""
        if second != self._second:
            self._second = second
            self._calls.clear()
        self._calls[key] += calls
        return self._calls[key]

    def debt_end(self, key: str) -> int:
        """The end of the key's debt."""
        return self._debt_ends.get(key, 0)

    def set_debt_end(self, key: str, end: int, now: int) -> None:
        """Set the end of the key's debt."""
        for other in [other for other, debt_end in self._debt_ends.items() if debt_end <= now]:
            del self._debt_ends[other]
        self._debt_ends[key] = max(end, self.debt_end(key))


class CallRate:
    """The calls of each caller in this second. Raises `QuotaExceeded` beyond `per_second`.

    `counts` counts them, also those of other workers; None for this process only.

    A call with many items is let through while the caller is within its rate, and counts as one call for each item:
    what exceeds the rate is taken from the next seconds. Otherwise a low rate would admit no batch at all.

    Items that a stream resumes do not count, as far as the caller's allowance for them suffices: `max_resumed` items,
    which come back at the caller's rate. All clients can then resume at once after a restart, and one that does so
    again and again gets twice its rate.
    """

    def __init__(
        self,
        per_second: int,
        counts: CallCounts | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        max_resumed: int = 0,
    ) -> None:
        self.counts = LocalCounts() if counts is None else counts
        self._per_second = per_second
        self._max_resumed = max_resumed
        self._monotonic = monotonic

    def count(self, caller: str) -> None:
        """Count a call."""
        second = int(self._monotonic())
        if self.counts.add_to_rate(caller, second) + self._debt(caller, second) > self._per_second:
            raise self._exceeded(caller, second)

    def count_items(self, caller: str, items: int, resumed: int = 0) -> None:
        """Count the items of a call that is counted once already. Of these, `resumed` are resumed."""
        second, limit = int(self._monotonic()), self._per_second
        debt = self._debt(caller, second)
        if self.counts.add_to_rate(caller, second, 0) + debt > limit:  # other calls have counted theirs meanwhile
            raise self._exceeded(caller, second)
        items -= self._take_resumed(caller, second, resumed)
        excess = self.counts.add_to_rate(caller, second, max(0, items - 1)) + debt - limit
        if excess > 0:
            self.counts.set_debt_end(caller, (second + 1) * limit + excess, second * limit)

    def _take_resumed(self, caller: str, second: int, resumed: int) -> int:
        """How many of the resumed items the caller's allowance has left; they are taken from it."""
        key, now = f"{caller}\0\0resumed", second * self._per_second  # no user's name has a control character
        used = self._debt(key, second)
        taken = min(resumed, max(0, self._max_resumed - used))
        if taken:
            self.counts.set_debt_end(key, now + used + taken, now)
        return taken

    def _debt(self, caller: str, second: int) -> int:
        """What the items of earlier seconds take from this one and the next."""
        return max(0, self.counts.debt_end(caller) - second * self._per_second)

    def _exceeded(self, caller: str, second: int) -> QuotaExceeded:
        debt = self._debt(caller, second + 1)
        return QuotaExceeded("in this second", timedelta(seconds=1 + debt // self._per_second))


class CallQuota:
    """Limits each caller's concurrent calls and its calls per second."""

    def __init__(self, rate: CallRate, *, concurrency: int) -> None:
        self._rate = rate
        self._counts = rate.counts
        self._concurrency = concurrency

    def begin(self, caller: str) -> None:
        """Count a call, which `end` ends. Raises `QuotaExceeded`."""
        if self._counts.in_flight(caller) >= self._concurrency:
            raise QuotaExceeded("under way")
        self._rate.count(caller)
        self._counts.change(caller, 1)

    def end(self, caller: str) -> None:
        """End a call."""
        self._counts.change(caller, -1)


class ItemCharge:
    """Counts the items of a call as calls of its caller, once."""

    def __init__(self, rate: CallRate, caller: str, items: int) -> None:
        self._rate = rate
        self._caller = caller
        self._items = items
        self._is_counted = False

    def count(self, resumed: int = 0) -> None:
        """Count the items, of which the call resumes some. Raises `QuotaExceeded`. Later calls have no effect."""
        if not self._is_counted:
            self._is_counted = True
            self._rate.count_items(self._caller, self._items, resumed)


item_charge: ContextVar[ItemCharge | None] = ContextVar("item_charge", default=None)
"""Of the current stream, if its items are counted: it counts them as soon as it knows which of them it resumes."""
