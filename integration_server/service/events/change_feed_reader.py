"""Reads the change feed, once for all of a process's consumers.

A cache gets each change as soon as it is visible. Events wait for the horizon: below it nothing can become visible any
more, so that their order is final.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import UserId
from integration_server.service.events.ports import (
    ChangeBatch,
    ChangeCursor,
    ChangeFeed,
    ChangeListener,
    ChangeRange,
    EventFilter,
    LoggedEvent,
    SharedFeed,
)

POLL_INTERVAL = timedelta(seconds=0.25)
"""The longest time between two polls; a third of the cache's `MAX_STALENESS`, so that one slow poll is harmless."""

MIN_POLL_INTERVAL = timedelta(seconds=0.05)
"""The shortest time between two polls for notifications, however many changes are notified."""

_MAX_OWN_POLL_INTERVAL = 10.0  # seconds, also if another process says that there is nothing new
_MAX_DATABASE_ID_AGE = 10.0  # seconds: it changes with a restore only, but thousands of streams may begin at once
_MAX_BATCH = 10_000  # changes of some hundred bytes each
_MAX_EVENTS = 500  # in memory, per range
_MAX_BUFFERED = 1_000  # events that wait in memory for one stream; a stream that is further behind reads the log


class SharedEvent:
    """An event of a published range, for all streams that send it: the first of them sets `item` and its `cursor`."""

    __slots__ = ("cursor", "item", "logged", "positions")

    def __init__(self, positions: ChangeRange, logged: LoggedEvent) -> None:
        self.positions = positions
        self.logged = logged
        self.cursor: Any = None
        self.item: Any = None


class EventRange:
    """A range with all its events, in order. Each filter is applied once, for all streams that have it."""

    def __init__(self, positions: ChangeRange, events: Sequence[LoggedEvent]) -> None:
        self.positions = positions
        self.events = tuple(SharedEvent(positions, logged) for logged in events)
        self.by_user: defaultdict[UserId, list[SharedEvent]] = defaultdict(list)
        for shared in self.events:
            self.by_user[shared.logged.event.user_id].append(shared)
        self._selections: dict[EventFilter, Sequence[SharedEvent]] = {}

    def select(self, event_filter: EventFilter) -> Sequence[SharedEvent]:
        """The events that the filter matches."""
        selection = self._selections.get(event_filter)
        if selection is None:
            user_id = event_filter.user_id
            candidates = self.events if user_id is None else self.by_user.get(user_id, ())
            selection = tuple(shared for shared in candidates if event_filter.matches(shared.logged.event))
            self._selections[event_filter] = selection
        return selection


class Subscription:
    """The events that wait for one stream: all that match its filter from the position `start` on.

    At most `_MAX_BUFFERED` wait. Beyond that they are dropped and `start` moves behind them: the stream reads the log
    up to `start`, so that a slow client costs no more memory than a fast one. `changed` wakes the stream.
    """

    def __init__(self, event_filter: EventFilter, start: int) -> None:
        self.event_filter = event_filter
        self.start = start
        self.changed = asyncio.Event()
        self._waiting: deque[SharedEvent] = deque()

    def publish(self, published: EventRange) -> None:
        """Append the range's events that match the filter."""
        selection = published.select(self.event_filter)
        if published.positions.low < self.start:  # the cursor is of another replica, which had read further
            selection = [shared for shared in selection if shared.logged.position >= self.start]
        if len(self._waiting) + len(selection) > _MAX_BUFFERED:
            self.skip_to(max(self.start, published.positions.high))
        elif selection:
            self._waiting.extend(selection)
            self.changed.set()

    def skip_to(self, position: int) -> None:
        """Drop what waits: the stream reads the log below this position."""
        self._waiting.clear()
        self.start = position
        self.changed.set()

    @property
    def waiting_count(self) -> int:
        """The number of events that wait in memory."""
        return len(self._waiting)

    def next_event(self) -> SharedEvent | None:
        """The oldest event that waits; None clears `changed`."""
        if self._waiting:
            return self._waiting.popleft()
        self.changed.clear()
        return None


class EventBuffer:
    """Publishes ranges of events to the subscriptions that they concern, which are found by user.

    `horizon` is where the next range begins, None before the first poll.
    """

    def __init__(self) -> None:
        self._subscriptions: dict[UserId | None, dict[Subscription, None]] = {}
        self._pending: list[LoggedEvent] = []
        self._incomplete_below = 0  # events below it may be missing from `_pending`
        self.horizon: int | None = None
        self.time: datetime | None = None

    def add(self, batch: ChangeBatch) -> None:
        """Take the events of a poll, and publish those below its horizon."""
        self.time = batch.time
        if self._subscriptions:
            self._pending += batch.events
        if batch.changed_ids is None or len(self._pending) > _MAX_EVENTS or not self._subscriptions:
            self._pending.clear()
            self._incomplete_below = batch.cursor.end
        low, high = self.horizon, batch.cursor.horizon
        was_restored = low is not None and low > batch.cursor.end  # from an older backup
        if low is not None and not was_restored:
            # After a pause of the reader, its cursor may begin again below what is published.
            self._pending = [logged for logged in self._pending if logged.position >= low]
            high = max(low, high)
        final = sorted((logged for logged in self._pending if logged.position < high), key=lambda logged: logged.number)
        is_complete = low is not None and low >= self._incomplete_below and not was_restored
        if is_complete and not final:
            return  # the next range begins where this one does
        self._pending = [logged for logged in self._pending if logged.position >= high]
        self.horizon = high
        if low is not None and is_complete:
            published = EventRange(ChangeRange(low, high), final)
            for user_id in (None, *published.by_user):
                for subscription in self._subscriptions.get(user_id, ()):
                    subscription.publish(published)
        elif high != low:
            for subscription in self._all():
                subscription.skip_to(high if was_restored else max(high, subscription.start))

    @contextmanager
    def subscribed(self, event_filter: EventFilter, begin: int = 0) -> Iterator[Subscription]:
        """A subscription to the events from the current horizon on, but not before the position `begin`."""
        subscription = Subscription(event_filter, max(begin, self.horizon or 0))
        group = self._subscriptions.setdefault(event_filter.user_id, {})
        group[subscription] = None
        try:
            yield subscription
        finally:
            del group[subscription]
            if not group:
                self._subscriptions.pop(event_filter.user_id, None)

    @property
    def has_pending(self) -> bool:
        """Whether events wait for the horizon."""
        return bool(self._pending)

    @property
    def waiting_counts(self) -> Sequence[int]:
        """For each stream, the number of events that wait for it in memory."""
        return [subscription.waiting_count for subscription in self._all()]

    def wake(self) -> None:
        """Wake all streams."""
        for subscription in self._all():
            subscription.changed.set()

    def _all(self) -> Iterator[Subscription]:
        # Copies: another thread may add a subscription meanwhile, or read them for the metrics.
        return (subscription for group in list(self._subscriptions.values()) for subscription in list(group))


@dataclass(eq=False, repr=False)
class ChangeFeedReader:
    """The one reader of a process. It reads while there is a cache or a subscriber.

    Of several processes on one machine, one polls the feed at each interval. The others poll after a notification, and
    when that one has found something (`shared`); otherwise what it has not found is not there for them either. None, or
    one that is late: this process polls by itself. `monotonic` is the system's clock.
    """

    feed: ChangeFeed
    cache: ChangeListener | None
    monotonic: Callable[[], float]
    shared: SharedFeed | None = None
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        self._cursor: ChangeCursor | None = None
        self._current_time: float | None = None
        self._seen_changes = -1
        self._subscribers = 0
        self._listeners: dict[ChangeListener, int] = {}
        self._latest: ChangeBatch | None = None
        self._poll_time: float | None = None
        self._lock = asyncio.Lock()
        self._database_id_time: float | None = None
        self._connection = 0
        self._polled_database_id = ""
        self.database_id = ""
        self.events = EventBuffer()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keeps the reader reading."""
        self._subscribers += 1
        try:
            yield
        finally:
            self._subscribers -= 1

    @contextmanager
    def following(self, listener: ChangeListener) -> Iterator[None]:
        """Keeps the reader reading, and passes changes to the listener as soon as they are visible, after the cache.

        A listener is called once for each poll, however often it follows.
        """
        self._listeners[listener] = self._listeners.get(listener, 0) + 1
        try:
            with self.reading():
                yield
        finally:
            self._listeners[listener] -= 1
            if not self._listeners[listener]:
                del self._listeners[listener]

    @property
    def position(self) -> tuple[int, datetime]:
        """The horizon of the latest poll, and its time. All changes below the horizon were passed on.

        Raises `LookupError` before the first poll.
        """
        if self._latest is None:
            raise LookupError("the change feed was not read yet")
        return self._latest.cursor.horizon, self._latest.time

    @property
    def lag(self) -> float | None:
        """Seconds since the feed was last read; None while it is not read."""
        return None if self._cursor is None or self._current_time is None else self.monotonic() - self._current_time

    async def read_database_id(self) -> str:
        """The identity of the database, to which cursors are bound, at most `_MAX_DATABASE_ID_AGE` old.

        Streams of another one, which was in its place before, end. Raises `StoreUnavailable`.
        """
        now = self.monotonic()
        if self._database_id_time is None or now - self._database_id_time > _MAX_DATABASE_ID_AGE:
            known, self.database_id = self.database_id, await self.feed.read_database_id()
            self._database_id_time = now
            if self.database_id != known:
                self.events.wake()
        return self.database_id

    async def poll_when_due(self) -> None:
        """Poll unless another process does. To be called every `POLL_INTERVAL`."""
        if not self._has_consumers:
            self._cursor = None  # the log may be long by the time of the next subscriber
        elif not self._is_current():
            await self.poll()

    async def poll_when_notified(self) -> None:
        """Wait for a notification, poll, and pause for `MIN_POLL_INTERVAL`. To be called again at once."""
        await self.feed.wait_for_change()
        try:
            if self._has_consumers:
                await self.poll()
        finally:
            await self.pause(MIN_POLL_INTERVAL.total_seconds())

    @property
    def _has_consumers(self) -> bool:
        return self.cache is not None or self._subscribers > 0

    async def poll(self) -> ChangeBatch:
        """Read the new changes, and pass them to all consumers. Raises `StoreUnavailable`."""
        async with self._lock:
            start = self.monotonic()
            seen = -1 if self.shared is None else self.shared.changes
            try:
                if self.database_id and self._database_id_time is None:
                    await self.read_database_id()
                batch = await self.feed.poll(self._cursor, _MAX_BATCH)
                if self.feed.connection != self._connection:
                    # A failover between two polls shows as a new connection only: no poll has failed.
                    self._connection, self._database_id_time = self.feed.connection, None
                    if self.database_id:
                        await self.read_database_id()
            except StoreUnavailable:
                self._database_id_time = None  # another database may come in its place
                raise
            if self._cursor is not None and batch.changed_ids is None:
                self._database_id_time = None  # this may be the log of another one
            if self._polled_database_id not in ("", self.database_id):
                batch = ChangeBatch(batch.cursor, batch.time)  # its changes are not those since the poll before
            self._polled_database_id = self.database_id
            self._cursor, self._poll_time, self._current_time, self._seen_changes = batch.cursor, start, start, seen
            self._latest = batch
            if self.cache is not None:
                self.cache.apply_changes(batch.changed_ids, start)
            self.events.add(batch)
            for listener in self._listeners:
                listener.apply_changes(batch.changed_ids, start)
            if self.shared is not None and self.shared.leads:
                has_changes = batch.changed_ids is None or bool(batch.changed_ids) or bool(batch.events)
                self.shared.publish(start, has_changes=has_changes)
            return batch

    def _is_current(self) -> bool:
        """Whether a poll would find nothing, because another process has polled and has found nothing new.

        What was visible to that process before it counted a change, is visible to a later poll of this one.
        """
        if self.shared is None or self.shared.leads or self._poll_time is None or self._cursor is None:
            return False
        time, now = self.shared.time, self.monotonic()
        if self.shared.changes != self._seen_changes or self.events.has_pending:
            return False
        time = max(time, self._poll_time)
        if now - time > 2 * POLL_INTERVAL.total_seconds() or now - self._poll_time > _MAX_OWN_POLL_INTERVAL:
            return False
        self._current_time = time
        if self.cache is not None:
            self.cache.apply_changes((), time)
        return True
