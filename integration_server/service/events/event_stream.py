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

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import CursorExpired, InvalidField, ServerStopping
from integration_server.domain.events import IntegrationEvent
from integration_server.domain.integration import UserId
from integration_server.service.common_types import Aead
from integration_server.service.credentials.credential_cipher import EncryptedTokens
from integration_server.service.events.ports import EventBatch, EventFilter, EventLog, LoggedEvent
from integration_server.service.provider_port import Providers

POLL_INTERVAL = timedelta(seconds=0.25)
"""How often the log is looked at while anybody watches."""

_HEARTBEAT = timedelta(seconds=15)  # so that a cursor does not grow old where little happens
_PAGE = 500  # events, of some hundred bytes each
_MAX_BATCHES = 8  # kept for streams that are a little behind
_PRUNE_MARGIN = timedelta(hours=1)  # than a cursor ends: an event's time is from before its transaction's end


@dataclass(frozen=True, slots=True)
class StreamItem:
    """What a stream says: an event, or that there is none, and where to go on after it."""

    cursor: str
    event: IntegrationEvent | None = None


@dataclass(frozen=True, slots=True)
class _StreamPosition:
    """How far a stream is: all before `batch` is told, and of `batch` all up to the number `after`."""

    batch: EventBatch
    after: int

    @classmethod
    def at(cls, high_water_mark: int) -> "_StreamPosition":
        """Where all is told up to the end of a batch."""
        return cls(EventBatch(high_water_mark, high_water_mark), 0)

    @property
    def is_between_batches(self) -> bool:
        return self.batch.low == self.batch.high


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The content of a cursor. Nothing that is as new as `time` is before its place."""

    position: _StreamPosition
    time: datetime


@dataclass(frozen=True, slots=True)
class _BufferedBatch:
    """A batch with all its events, in memory."""

    batch: EventBatch
    events: Sequence[LoggedEvent]


class EventBroadcaster:
    """The log's newest part, as the one reader of this process sees it."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._buffered: deque[_BufferedBatch] = deque(maxlen=_MAX_BATCHES)
        self._subscribers = 0
        self.high_water_mark: int | None = None
        self.time: datetime | None = None
        self.changed = asyncio.Event()

    @contextmanager
    def subscribed(self) -> Iterator[None]:
        """The reader reads while somebody is within."""
        self._subscribers += 1
        try:
            yield
        finally:
            self._subscribers -= 1

    async def poll(self) -> None:
        """Look at the log once, and wake everybody if there is something new."""
        if not self._subscribers:
            return
        if self.high_water_mark is None:
            self.high_water_mark, self.time = await self._log.high_water_mark()
            self.wake()
            return
        read_page = await self._log.read_page(self.high_water_mark, _PAGE + 1)
        self.time = read_page.time
        if not read_page.events:
            return  # the next batch begins where this one did
        if len(read_page.events) <= _PAGE:
            self._buffered.append(_BufferedBatch(read_page.batch, read_page.events))
        self.high_water_mark = read_page.batch.high
        self.wake()

    def batch_from(self, low: int) -> _BufferedBatch | None:
        """The batch that begins there, if it is in memory."""
        return next((buffered for buffered in self._buffered if buffered.batch.low == low), None)

    def wake(self) -> None:
        """Have everybody look again."""
        self.changed.set()
        self.changed = asyncio.Event()


class EventStream:
    """Streams of events. They are kept for `retention`, after which a cursor is too old."""

    def __init__(
        self,
        log: EventLog,
        providers: Providers,
        aead: Aead,
        *,
        retention: timedelta,
        heartbeat: timedelta = _HEARTBEAT,
    ) -> None:
        self._log = log
        self._providers = providers
        self._cursors = EncryptedTokens(aead, "event-cursor", _Cursor)
        self._retention = retention
        self._heartbeat = heartbeat.total_seconds()
        self._broadcaster = EventBroadcaster(log)
        self._stopping = False

    async def poll(self) -> None:
        """Look at the log once. To be called every `POLL_INTERVAL`."""
        await self._broadcaster.poll()

    async def prune(self) -> None:
        """Forget events that no cursor can come before any more."""
        while await self._log.prune(self._retention + _PRUNE_MARGIN):
            pass

    def drain(self) -> None:
        """End all streams: the server is about to stop."""
        self._stopping = True
        self._broadcaster.wake()

    async def watch(
        self,
        user_id: UserId | None,
        integration_type: str,
        cursor: str,
        allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> AsyncGenerator[StreamItem]:
        """Events from the cursor on, or from now on if it is empty, until the caller has enough or the server stops.

        An empty type means all within reach. Raises `CursorExpired` or `ServerStopping`.
        """
        if integration_type:
            integration_type = self._providers.get(integration_type).integration_type  # where it went by an alias
        types = frozenset({integration_type}) if integration_type else allowed_types.integration_types
        event_filter = EventFilter(user_id, types)
        with self._broadcaster.subscribed():
            at = await self._begin(cursor)
            yield StreamItem(await self._cursors.make(at))
            heartbeat_at = self._next_heartbeat()
            events: Sequence[LoggedEvent]
            while not self._stopping:
                changed = self._broadcaster.changed  # before looking: what comes meanwhile wakes us
                if (buffered := self._next_in_memory(at.position)) is not None:
                    batch, events = buffered.batch, [one for one in buffered.events if event_filter.matches(one.event)]
                    next_at = _Cursor(_StreamPosition.at(batch.high), _newest(buffered.events))
                elif (next_batch := self._next_in_log(at.position)) is not None:
                    batch, events = next_batch, await self._log.read(next_batch, at.position.after, event_filter, _PAGE)
                    next_at = _after_page(at, batch, events)
                elif await _is_set(changed, heartbeat_at):
                    continue
                else:
                    at = _Cursor(at.position, max(at.time, self._broadcaster.time or at.time))
                    yield StreamItem(await self._cursors.make(at))
                    heartbeat_at = self._next_heartbeat()
                    continue
                for logged in events:
                    yield await self._item(batch, logged)
                    heartbeat_at = self._next_heartbeat()
                at = next_at
        raise ServerStopping

    def _next_heartbeat(self) -> float:
        return asyncio.get_running_loop().time() + self._heartbeat

    async def _begin(self, cursor: str) -> _Cursor:
        high_water_mark, now = await self._log.high_water_mark()
        if not cursor:
            return _Cursor(_StreamPosition.at(high_water_mark), now)
        given = await self._cursors.read(cursor)
        if given is None:
            raise InvalidField("cursor", "was not made here")
        # One from before the database was put back, or from another, speaks of what is yet to come.
        if given.time < now - self._retention or given.position.batch.high > high_water_mark:
            raise CursorExpired
        return given

    def _next_in_memory(self, position: _StreamPosition) -> _BufferedBatch | None:
        return self._broadcaster.batch_from(position.batch.high) if position.is_between_batches else None

    def _next_in_log(self, position: _StreamPosition) -> EventBatch | None:
        """What to read now; None where that is nothing."""
        if not position.is_between_batches:
            return position.batch
        high_water_mark = self._broadcaster.high_water_mark
        return (
            EventBatch(position.batch.high, high_water_mark)
            if high_water_mark is not None and high_water_mark > position.batch.high
            else None
        )

    async def _item(self, batch: EventBatch, logged: LoggedEvent) -> StreamItem:
        cursor = _Cursor(_StreamPosition(batch, logged.number), logged.event.event_time)
        return StreamItem(await self._cursors.make(cursor), logged.event)


def _after_page(at: _Cursor, batch: EventBatch, events: Sequence[LoggedEvent]) -> _Cursor:
    time = _newest(events) if events else at.time
    if len(events) == _PAGE:
        return _Cursor(_StreamPosition(batch, events[-1].number), time)
    return _Cursor(_StreamPosition.at(batch.high), time)


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
