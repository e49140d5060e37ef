"""Reads the change feed, once for all of a process's consumers.

A cache gets each change as soon as it is visible. Events wait for the horizon: below it nothing can become visible any
more, so that their order is final.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.service.events.ports import (
    ChangeBatch,
    ChangeCursor,
    ChangeFeed,
    ChangeListener,
    ChangeRange,
    LoggedEvent,
)

POLL_INTERVAL = timedelta(seconds=0.25)
"""The longest time between two polls; a third of the cache's `MAX_STALENESS`, so that one slow poll is harmless."""

MIN_POLL_INTERVAL = timedelta(seconds=0.05)
"""The shortest time between two polls, however many changes are notified."""

_MAX_BATCH = 10_000  # changes of some hundred bytes each
_MAX_EVENTS = 500  # in memory, per range
_MAX_RANGES = 8  # for streams that are a little behind


@dataclass(frozen=True, slots=True)
class EventRange:
    """A range with all its events, in order."""

    positions: ChangeRange
    events: Sequence[LoggedEvent]


class EventBuffer:
    """The newest ranges of events, for the streams that keep up.

    `horizon` is where the next range begins, None before the first poll. `changed` is set, and replaced, when it moves.
    """

    def __init__(self) -> None:
        self._ranges: deque[EventRange] = deque(maxlen=_MAX_RANGES)
        self._pending: list[LoggedEvent] = []
        self._incomplete_below = 0  # events below it may be missing from `_pending`
        self.horizon: int | None = None
        self.time: datetime | None = None
        self.changed = asyncio.Event()

    def add(self, batch: ChangeBatch) -> None:
        """Take the events of a poll, and publish those below its horizon."""
        self.time = batch.time
        self._pending += batch.events
        if batch.changed_ids is None or len(self._pending) > _MAX_EVENTS:
            self._pending.clear()
            self._incomplete_below = batch.cursor.end
        low, high = self.horizon, batch.cursor.horizon
        if low is not None and low <= batch.cursor.end:  # else an older database was restored
            # After a pause of the reader, its cursor may begin again below what is published.
            self._pending = [one for one in self._pending if one.position >= low]
            high = max(low, high)
        final = sorted((one for one in self._pending if one.position < high), key=lambda logged: logged.number)
        if low is not None and low >= self._incomplete_below:
            if not final:
                return  # the next range begins where this one does
            self._ranges.append(EventRange(ChangeRange(low, high), final))
        self._pending = [one for one in self._pending if one.position >= high]
        if high != low:
            self.horizon = high
            self.wake()

    def range_from(self, low: int) -> EventRange | None:
        """The range that begins there, if it is in memory."""
        return next((one for one in self._ranges if one.positions.low == low), None)

    def wake(self) -> None:
        """Wake all that wait for `changed`."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(eq=False, repr=False)
class ChangeFeedReader:
    """The one reader of a process. It reads while there is a cache or a subscriber."""

    feed: ChangeFeed
    cache: ChangeListener | None
    monotonic: Callable[[], float]

    def __post_init__(self) -> None:
        self._cursor: ChangeCursor | None = None
        self._subscribers = 0
        self._lock = asyncio.Lock()
        self.events = EventBuffer()

    @contextmanager
    def subscribed(self) -> Iterator[None]:
        """Keeps the reader reading."""
        self._subscribers += 1
        try:
            yield
        finally:
            self._subscribers -= 1

    async def poll_when_due(self) -> None:
        """Poll after a notification, or after `POLL_INTERVAL`. To be called every `MIN_POLL_INTERVAL`."""
        await self.feed.wait_for_change(POLL_INTERVAL - MIN_POLL_INTERVAL)
        if self.cache is not None or self._subscribers:
            await self.poll()
        else:
            self._cursor = None  # the log may be long by the time of the next subscriber

    async def poll(self) -> ChangeBatch:
        """Read the new changes, and pass them to all consumers. Raises `StoreUnavailable`."""
        async with self._lock:
            start = self.monotonic()
            batch = await self.feed.poll(self._cursor, _MAX_BATCH)
            self._cursor = batch.cursor
            if self.cache is not None:
                self.cache.apply_changes(batch.changed_ids, start)
            self.events.add(batch)
            return batch
