"""The event stream: sends the events of integrations to each watcher, from its cursor and at its own pace.

A stream that keeps up is served from the buffer that all streams share. A stream that is behind reads the log itself, a
page at a time. A slow watcher therefore delays no other, loses nothing, and costs no more memory than a fast one.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import CursorExpired, InvalidField, ServerStopping
from integration_server.domain.events import IntegrationEvent
from integration_server.domain.integration import UserId
from integration_server.service.common_types import Aead
from integration_server.service.credentials.credential_cipher import EncryptedTokens
from integration_server.service.events.change_feed_reader import ChangeFeedReader
from integration_server.service.events.ports import ChangeFeed, ChangeRange, EventFilter, LoggedEvent
from integration_server.service.provider_port import Providers

_PAGE_SIZE = 500  # events, of some hundred bytes each
_PRUNE_MARGIN = timedelta(
    hours=1
)  # the longest transaction whose events no cursor misses: their time is before its end


@dataclass(frozen=True, slots=True)
class StreamItem:
    """An event, or a heartbeat if None, with the cursor that resumes after it."""

    cursor: str
    event: IntegrationEvent | None = None


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The content of a cursor: everything below `positions` is sent, and of it the numbers up to `after`.

    `time` is the age of the cursor: events after it are newer, except those of long transactions.
    """

    positions: ChangeRange
    after: int
    time: datetime

    @classmethod
    def at_horizon(cls, horizon: int, time: datetime) -> "_Cursor":
        """Everything below `horizon` is sent."""
        return cls(ChangeRange(horizon, horizon), 0, time)

    @property
    def is_at_horizon(self) -> bool:
        return self.positions.low == self.positions.high


@dataclass(eq=False, repr=False)
class EventStream:
    """Streams of events. A cursor expires after `retention`; a quiet stream gets a new one after each `heartbeat`."""

    feed: ChangeFeed
    reader: ChangeFeedReader
    providers: Providers
    aead: Aead
    _: KW_ONLY
    retention: timedelta
    heartbeat: timedelta

    def __post_init__(self) -> None:
        self._buffer = self.reader.events
        self._cursors = EncryptedTokens(self.aead, "event-cursor", _Cursor)
        self._stopping = False

    async def prune(self) -> None:
        """Delete the changes that no valid cursor precedes."""
        while await self.feed.prune(self.retention + _PRUNE_MARGIN):
            pass

    def drain(self) -> None:
        """End all streams with `ServerStopping`."""
        self._stopping = True
        self._buffer.wake()

    async def watch(
        self,
        user_id: UserId | None,
        integration_type: str,
        cursor: str,
        allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> AsyncGenerator[StreamItem]:
        """Events after the cursor, or from now on if it is empty, until the caller stops or the server drains.

        An empty type means all allowed types. Raises `CursorExpired`, `ServerStopping` or `StoreUnavailable`.
        """
        if integration_type:
            integration_type = self.providers[integration_type].integration_type  # resolves an alias
        types = frozenset({integration_type}) if integration_type else allowed_types.integration_types
        event_filter = EventFilter(user_id, types)
        with self.reader.subscribed():
            current = await self._begin(cursor)
            yield StreamItem(await self._cursors.make(current))
            heartbeat_at = self._next_heartbeat()
            while not self._stopping:
                changed = self._buffer.changed  # before reading: a later change wakes the stream
                if (page := await self._next_page(current, event_filter)) is None:
                    if await _is_set(changed, heartbeat_at):
                        continue
                    current = _Cursor(
                        current.positions, current.after, max(current.time, self._buffer.time or current.time)
                    )
                    yield StreamItem(await self._cursors.make(current))
                    heartbeat_at = self._next_heartbeat()
                    continue
                positions, events, next_cursor = page
                for logged in events:
                    after_event = _Cursor(positions, logged.number, logged.event.event_time)
                    yield StreamItem(await self._cursors.make(after_event), logged.event)
                    heartbeat_at = self._next_heartbeat()
                current = next_cursor
        raise ServerStopping

    async def _begin(self, cursor: str) -> _Cursor:
        batch = await self.reader.poll()
        if not cursor:
            return _Cursor.at_horizon(self._buffer.horizon or 0, batch.time)
        start = await self._cursors.read(cursor)
        if start is None:
            raise InvalidField("cursor", "was not issued by this server")
        # A cursor of another database, or from before this one was restored, may be beyond the end.
        if start.time < batch.time - self.retention or start.positions.high > batch.cursor.end:
            raise CursorExpired
        return start

    async def _next_page(
        self, current: _Cursor, event_filter: EventFilter
    ) -> tuple[ChangeRange, Sequence[LoggedEvent], _Cursor] | None:
        """The range after the cursor, the first of its events, and the cursor after them. None: nothing is new."""
        if current.is_at_horizon:
            low = current.positions.high
            if (buffered := self._buffer.range_from(low)) is not None:
                events = [logged for logged in buffered.events if event_filter.matches(logged.event)]
                next_cursor = _Cursor.at_horizon(buffered.positions.high, _newest(buffered.events, current.time))
                return buffered.positions, events, next_cursor
            if self._buffer.horizon is None or self._buffer.horizon <= low:
                return None
            positions = ChangeRange(low, self._buffer.horizon)
        else:
            positions = current.positions
        page = await self.feed.read_events(positions, current.after, event_filter, _PAGE_SIZE)
        time = _newest(page, current.time)
        if len(page) == _PAGE_SIZE:
            return positions, page, _Cursor(positions, page[-1].number, time)
        return positions, page, _Cursor.at_horizon(positions.high, time)

    def _next_heartbeat(self) -> float:
        return asyncio.get_running_loop().time() + self.heartbeat.total_seconds()


async def _is_set(changed: asyncio.Event, until: float) -> bool:
    """Wait for `changed`; False at the time `until`, in seconds of the loop."""
    if asyncio.get_running_loop().time() >= until:
        return False  # even if it is set: other watchers' events must not delay a heartbeat
    try:
        async with asyncio.timeout_at(until):
            await changed.wait()
    except TimeoutError:
        return False
    return True


def _newest(events: Sequence[LoggedEvent], default: datetime) -> datetime:
    return max((logged.event.event_time for logged in events), default=default)
