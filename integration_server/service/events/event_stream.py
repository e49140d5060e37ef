"""The event stream: sends the events of integrations to each watcher, from its cursor and at its own pace.

A stream that keeps up is served from the buffer that all streams share; each event is encoded once for all of them. A
stream that is behind reads the log itself, a page at a time. A slow watcher therefore delays no other, loses nothing,
and costs no more memory than a fast one. `Pacer` leaves the event loop to other calls while many streams have events.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import CursorExpired, InvalidField, QuotaExceeded, ServerStopping
from integration_server.domain.events import IntegrationEvent
from integration_server.domain.integration import UserId
from integration_server.service.common_types import Aead, loop_time
from integration_server.service.credentials.credential_cipher import EncryptedTokens
from integration_server.service.events.change_feed_reader import ChangeFeedReader, Subscription
from integration_server.service.events.pacer import Pacer
from integration_server.service.events.ports import ChangeFeed, ChangeRange, EventFilter, LoggedEvent
from integration_server.service.provider_port import Providers

_PAGE_SIZE = 500  # events, of some hundred bytes each
_PRUNE_MARGIN = timedelta(
    hours=1
)  # the longest transaction whose events no cursor misses: their time is before its end

_SENDS_PER_ITERATION = 8
"""Events that all streams together send in one iteration of the event loop: about a millisecond of CPU. Other calls run
between two iterations."""

_MAX_SEND = timedelta(seconds=60)
"""How long a client may take to read one event while gRPC's own buffer (64 KiB, hundreds of events) is full."""

_MAX_TURN = timedelta(seconds=0.05)
"""How long a client may take to read an event before its stream's turn, which allows several sends, ends. Streams whose
clients do not read would keep theirs, and all send at once when they can."""


@dataclass(slots=True, eq=False)
class StreamItem:
    """An event, or a heartbeat if None, with the cursor that resumes after it. Streams share the item of an event.

    `response` is for who encodes the item: once, for all streams.
    """

    cursor: str
    event: IntegrationEvent | None = None
    response: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The content of a cursor: everything below `positions` is sent, and of it the numbers up to `after`.

    `time` is the age of the cursor: events after it are newer, except those of long transactions. The positions are
    those of one database: `database_id`, which a stream gives the cursors that it issues.
    """

    positions: ChangeRange
    after: int
    time: datetime
    database_id: str = ""

    @classmethod
    def at_horizon(cls, horizon: int, time: datetime) -> "_Cursor":
        """Everything below `horizon` is sent."""
        return cls(ChangeRange(horizon, horizon), 0, time)

    @property
    def is_at_horizon(self) -> bool:
        return self.positions.low == self.positions.high


@dataclass(eq=False, repr=False)
class EventStream:
    """Streams of events. A cursor expires after `retention`; a quiet stream gets a new one after each `heartbeat`.

    A stream whose client takes longer than `max_send` to read an event ends; one whose client takes longer than
    `max_turn` waits for its next turn. `binds_cursors` to the database is off only for negative controls.
    """

    feed: ChangeFeed
    reader: ChangeFeedReader
    providers: Providers
    aead: Aead
    _: KW_ONLY
    retention: timedelta
    heartbeat: timedelta
    max_send: timedelta = _MAX_SEND
    max_turn: timedelta = _MAX_TURN
    sends_per_iteration: int = _SENDS_PER_ITERATION
    binds_cursors: bool = True

    def __post_init__(self) -> None:
        self._buffer = self.reader.events
        self._cursors = EncryptedTokens(self.aead, "event-cursor", _Cursor)
        self._pacer = Pacer(self.sends_per_iteration)
        self._stopping = False

    async def prune(self) -> None:
        """Delete the changes that no valid cursor precedes."""
        while await self.feed.prune(self.retention + _PRUNE_MARGIN):
            pass

    def stop(self) -> None:
        """End all streams with `ServerStopping`, after an item with the cursor that resumes."""
        self._stopping = True
        self._buffer.wake()

    async def watch(
        self,
        user_id: UserId | None,
        integration_type: str,
        cursor: str,
        allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> AsyncGenerator[StreamItem]:
        """Events after the cursor, or from now on if it is empty, until the caller or the server stops.

        An empty type means all allowed types. Raises `CursorExpired`, `QuotaExceeded`, `ServerStopping`
        or `StoreUnavailable`.
        """
        if integration_type:
            integration_type = self.providers[integration_type].integration_type  # resolves an alias
        types = frozenset({integration_type}) if integration_type else allowed_types.integration_types
        with self.reader.reading():
            current = await self._begin(cursor)
            with self._buffer.subscribed(EventFilter(user_id, types), current.positions.high) as subscription:
                database_id = current.database_id
                if not cursor:
                    current = _Cursor.at_horizon(subscription.start, current.time)
                yield StreamItem(await self._make_cursor(current, database_id))
                async with aclosing(self._items_after(current, subscription, database_id)) as items:
                    async for item in items:
                        yield item

    async def _items_after(
        self, current: _Cursor, subscription: Subscription, database_id: str
    ) -> AsyncGenerator[StreamItem]:
        """The items after a cursor, until the server stops.

        Raises `QuotaExceeded` if they are read too slowly, and `CursorExpired` once another database has taken the
        place of this one.
        """
        page = _LogPage(current.positions, deque(), current)
        time = asyncio.get_running_loop().time
        heartbeat, max_send, max_turn = (
            limit.total_seconds() for limit in (self.heartbeat, self.max_send, self.max_turn)
        )
        heartbeat_at, sends = time() + heartbeat, 0
        while not self._stopping:
            if self.binds_cursors and self.reader.database_id != database_id:
                raise CursorExpired
            if page.events:
                logged = page.events.popleft()
                after, item = await self._encode(page.positions, logged, database_id)
                current = after if page.events else page.end
            elif current.positions.low < subscription.start:
                page = await self._read_log(current, subscription)
                if not page.events:
                    current = page.end
                continue
            elif (shared := subscription.next_event()) is not None:
                if shared.item is None:
                    shared.cursor, shared.item = await self._encode(shared.positions, shared.logged, database_id)
                current, item = shared.cursor, shared.item
            elif await _is_set(subscription.changed, heartbeat_at):
                continue
            else:
                current = self._renewed(current, subscription)
                item = StreamItem(await self._make_cursor(current, database_id))
            if not sends:
                sends = await self._pacer.turn(1 + len(page.events) + subscription.waiting_count)
            send_time = time()
            yield item
            now = time()
            heartbeat_at = now + heartbeat
            if now - send_time > max_send:
                raise QuotaExceeded("whose events are read too slowly; resume after the last cursor")
            sends = 0 if now - send_time > max_turn else sends - 1
        yield StreamItem(await self._make_cursor(current, database_id))
        raise ServerStopping

    async def _make_cursor(self, current: _Cursor, database_id: str) -> str:
        return await self._cursors.make(replace(current, database_id=database_id))

    async def _encode(
        self, positions: ChangeRange, logged: LoggedEvent, database_id: str
    ) -> tuple[_Cursor, StreamItem]:
        """The item of an event, and the cursor after it."""
        after = _Cursor(positions, logged.number, logged.event.event_time, database_id)
        return after, StreamItem(await self._cursors.make(after), logged.event)

    def _renewed(self, current: _Cursor, subscription: Subscription) -> _Cursor:
        """The cursor of a stream that has nothing to send, as of now."""
        time = max(current.time, self._buffer.time or current.time)
        if subscription.changed.is_set():  # an event has arrived in this moment, and is sent next
            return _Cursor(current.positions, current.after, time)
        return _Cursor.at_horizon(max(current.positions.high, self._buffer.horizon or 0), time)

    async def _begin(self, cursor: str) -> _Cursor:
        await self.reader.read_database_id()
        batch = await self.reader.poll()  # second: it notices when another database has taken the place
        database_id = self.reader.database_id
        if not cursor:
            return replace(_Cursor.at_horizon(self._buffer.horizon or 0, batch.time), database_id=database_id)
        start = await self._cursors.read(cursor)
        if start is None:
            raise InvalidField("cursor", "was not issued by this server")
        if self.binds_cursors and start.database_id != database_id:
            raise CursorExpired
        if start.time < batch.time - self.retention or start.positions.high > batch.cursor.end:
            raise CursorExpired
        return replace(start, database_id=database_id)

    async def _read_log(self, current: _Cursor, subscription: Subscription) -> "_LogPage":
        """The next events of the log for a stream that is behind its subscription."""
        positions, event_filter = current.positions, subscription.event_filter
        if current.is_at_horizon:
            positions = ChangeRange(positions.high, subscription.start)
        events = await self.feed.read_events(positions, current.after, event_filter, _PAGE_SIZE)
        time = _newest(events, current.time)
        if len(events) == _PAGE_SIZE:
            return _LogPage(positions, deque(events), _Cursor(positions, events[-1].number, time))
        return _LogPage(positions, deque(events), _Cursor.at_horizon(positions.high, time))


@dataclass(slots=True)
class _LogPage:
    """Events of a range that were read from the log and are not sent yet, and the cursor after them."""

    positions: ChangeRange
    events: deque[LoggedEvent]
    end: _Cursor


async def _is_set(changed: asyncio.Event, until: float) -> bool:
    """Wait for `changed`; False at the time `until`, in seconds of the loop."""
    if loop_time() >= until:
        return False
    try:
        async with asyncio.timeout_at(until):
            await changed.wait()
    except TimeoutError:
        return False
    return True


def _newest(events: Sequence[LoggedEvent], default: datetime) -> datetime:
    return max((logged.event.event_time for logged in events), default=default)
