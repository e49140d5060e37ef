"""Telling what happens to integrations to everybody who watches, each from its own place and at its own pace.

One look at the log serves all streams of a process: what is new is handed to them from memory. A stream that is behind
reads the log by itself, a page at a time, until it has caught up. So a slow one holds nobody up, loses nothing, and
costs no more memory than a quick one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.errors import CursorExpired, InvalidField, ServerStopping
from integration_server.domain.events import IntegrationEvent
from integration_server.domain.integration import UserId
from integration_server.domain.reach import EVERYTHING, Reach
from integration_server.service.ports import EventBatch, EventLog, EventWish, LoggedEvent, Providers, Sealer
from integration_server.service.sealing import SealedTokens

LOOK_EVERY = timedelta(seconds=0.25)
"""How often the log is looked at while anybody watches."""

_HEARTBEAT = timedelta(seconds=15)  # so that a cursor does not grow old where little happens
_PAGE = 500  # events, of some hundred bytes each
_MOST_BATCHES = 8  # kept for streams that are a little behind
_PRUNE_LATER = timedelta(hours=1)  # than a cursor ends: an event's time is from before its transaction's end


@dataclass(frozen=True, slots=True)
class Told:
    """What a stream says: an event, or that there is none, and where to go on after it."""

    cursor: str
    event: IntegrationEvent | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a stream is: all before `batch` is told, and of `batch` all up to the number `after`."""

    batch: EventBatch
    after: int

    @classmethod
    def at(cls, end: int) -> "_Place":
        """Where all is told up to the end of a batch."""
        return cls(EventBatch(end, end), 0)

    @property
    def is_between_batches(self) -> bool:
        return self.batch.low == self.batch.high


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The content of a cursor. Nothing that is as new as `time` is before its place."""

    place: _Place
    time: datetime


@dataclass(frozen=True, slots=True)
class _Caught:
    """A batch with all its events, in memory."""

    batch: EventBatch
    events: Sequence[LoggedEvent]


class Feed:
    """The log's newest part, as the one reader of this process sees it."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._caught: deque[_Caught] = deque(maxlen=_MOST_BATCHES)
        self._watchers = 0
        self.end: int | None = None
        self.time: datetime | None = None
        self.changed = asyncio.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The reader reads while somebody is within."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1

    async def look(self) -> None:
        """Look at the log once, and wake everybody if there is something new."""
        if not self._watchers:
            return
        if self.end is None:
            self.end, self.time = await self._log.end()
            self.wake()
            return
        glance = await self._log.glance(self.end, _PAGE + 1)
        self.time = glance.time
        if not glance.events:
            return  # the next batch begins where this one did
        if len(glance.events) <= _PAGE:
            self._caught.append(_Caught(glance.batch, glance.events))
        self.end = glance.batch.high
        self.wake()

    def batch_from(self, low: int) -> _Caught | None:
        """The batch that begins there, if it is in memory."""
        return next((caught for caught in self._caught if caught.batch.low == low), None)

    def wake(self) -> None:
        """Have everybody look again."""
        self.changed.set()
        self.changed = asyncio.Event()


class Watching:
    """Streams of events. They are kept for `keep`, after which a cursor is too old."""

    def __init__(
        self,
        log: EventLog,
        providers: Providers,
        sealer: Sealer,
        *,
        keep: timedelta,
        heartbeat: timedelta = _HEARTBEAT,
    ) -> None:
        self._log = log
        self._providers = providers
        self._cursors = SealedTokens(sealer, "event-cursor", _Cursor)
        self._keep = keep
        self._heartbeat = heartbeat.total_seconds()
        self._feed = Feed(log)
        self._stopping = False

    async def look(self) -> None:
        """Look at the log once. To be called every `LOOK_EVERY`."""
        await self._feed.look()

    async def prune(self) -> None:
        """Forget events that no cursor can come before any more."""
        while await self._log.prune(self._keep + _PRUNE_LATER):
            pass

    def drain(self) -> None:
        """End all streams: the server is about to stop."""
        self._stopping = True
        self._feed.wake()

    async def watch(
        self, user_id: UserId | None, integration_type: str, cursor: str, reach: Reach = EVERYTHING
    ) -> AsyncGenerator[Told]:
        """Events from the cursor on, or from now on if it is empty, until the caller has enough or the server stops.

        An empty type means all within reach. Raises `CursorExpired` or `ServerStopping`.
        """
        if integration_type:
            integration_type = self._providers.get(integration_type).integration_type  # where it went by an alias
        types = frozenset({integration_type}) if integration_type else reach.integration_types
        wish = EventWish(user_id, types)
        with self._feed.watched():
            at = await self._begin(cursor)
            yield Told(await self._cursors.make(at))
            quiet = self._quiet_until()
            events: Sequence[LoggedEvent]
            while not self._stopping:
                changed = self._feed.changed  # before looking: what comes meanwhile wakes us
                if (caught := self._next_in_memory(at.place)) is not None:
                    batch, events = caught.batch, [one for one in caught.events if wish.covers(one.event)]
                    next_at = _Cursor(_Place.at(batch.high), _newest(caught.events))
                elif (next_batch := self._next_in_log(at.place)) is not None:
                    batch, events = next_batch, await self._log.read(next_batch, at.place.after, wish, _PAGE)
                    next_at = _after_page(at, batch, events)
                elif await _is_set(changed, quiet):
                    continue
                else:
                    at = _Cursor(at.place, max(at.time, self._feed.time or at.time))
                    yield Told(await self._cursors.make(at))
                    quiet = self._quiet_until()
                    continue
                for logged in events:
                    yield await self._told(batch, logged)
                    quiet = self._quiet_until()
                at = next_at
        raise ServerStopping

    def _quiet_until(self) -> float:
        return asyncio.get_running_loop().time() + self._heartbeat

    async def _begin(self, cursor: str) -> _Cursor:
        end, now = await self._log.end()
        if not cursor:
            return _Cursor(_Place.at(end), now)
        given = await self._cursors.read(cursor)
        if given is None:
            raise InvalidField("cursor", "was not made here")
        # One from before the database was put back, or from another, speaks of what is yet to come.
        if given.time < now - self._keep or given.place.batch.high > end:
            raise CursorExpired
        return given

    def _next_in_memory(self, place: _Place) -> _Caught | None:
        return self._feed.batch_from(place.batch.high) if place.is_between_batches else None

    def _next_in_log(self, place: _Place) -> EventBatch | None:
        """What to read now; None where that is nothing."""
        if not place.is_between_batches:
            return place.batch
        end = self._feed.end
        return EventBatch(place.batch.high, end) if end is not None and end > place.batch.high else None

    async def _told(self, batch: EventBatch, logged: LoggedEvent) -> Told:
        cursor = _Cursor(_Place(batch, logged.number), logged.event.event_time)
        return Told(await self._cursors.make(cursor), logged.event)


def _after_page(at: _Cursor, batch: EventBatch, events: Sequence[LoggedEvent]) -> _Cursor:
    time = _newest(events) if events else at.time
    if len(events) == _PAGE:
        return _Cursor(_Place(batch, events[-1].number), time)
    return _Cursor(_Place.at(batch.high), time)


async def _is_set(changed: asyncio.Event, until: float) -> bool:
    """Wait for something new. False if there is nothing by then, on the loop's clock."""
    if asyncio.get_running_loop().time() >= until:
        return False  # even if there is: others' events must not keep a heartbeat back
    try:
        async with asyncio.timeout_at(until):
            await changed.wait()
    except TimeoutError:
        return False
    return True


def _newest(events: Sequence[LoggedEvent]) -> datetime:
    return max(logged.event.event_time for logged in events)
