"""The changes of watched integrations, for streams that send the present state and not each event.

A change reaches its streams as soon as it is visible, as it reaches the cache: the order of the events does not matter,
so that no other transaction delays it. A cursor names the horizon, below which everything is known: a stream that
resumes after a long transaction learns of some changes twice, and misses none.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta

from integration_server.domain.errors import ServerStopping
from integration_server.domain.integration import IntegrationId
from integration_server.service.common_types import Aead
from integration_server.service.credentials.credential_cipher import EncryptedTokens
from integration_server.service.events.change_feed_reader import ChangeFeedReader
from integration_server.service.events.ports import ChangeFeed

_INTERVAL = 0.3  # seconds between two dispatches: many changes in a row wake each stream three times in a second
_MAX_RESUMED = 20_000  # changes since a cursor, read with one statement; after more, everything counts as changed


@dataclass(frozen=True, slots=True)
class WatchPosition:
    """A point of the change feed: all changes below the horizon are known. `time` is the age of a cursor.

    Horizons are those of one database: `database_id`.
    """

    horizon: int
    time: datetime
    database_id: str


class WatchedChanges:
    """The integrations of one stream that have changed and are not read yet.

    `changed` is in the order of arrival. `resumed_position` is that of the stream's cursor, if all changes since then
    are in `changed`.
    """

    def __init__(self, dispatcher: "ChangeDispatcher") -> None:
        self.changed: dict[IntegrationId, None] = {}
        self.resumed_position: WatchPosition | None = None
        self.is_stopping = False
        self._dispatcher = dispatcher
        self._woken = asyncio.Event()

    @property
    def position(self) -> WatchPosition:
        """The position up to which changes are in `changed`, or have been taken from it."""
        return self._dispatcher.position

    def mark(self, integration_ids: Collection[IntegrationId]) -> None:
        """Note changes of integrations of this stream."""
        self.changed.update(dict.fromkeys(integration_ids))
        self._woken.set()

    def wake(self) -> None:
        """End the present `wait`."""
        self._woken.set()

    def stop(self) -> None:
        """The server stops, and the stream is to end."""
        self.is_stopping = True
        self._woken.set()

    async def wait(self, seconds: float | None) -> None:
        """Wait for a change, `wake` or `stop`, at most some seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()


@dataclass(eq=False, repr=False)
class ChangeDispatcher:
    """Gives each change to the streams that watch its integration. A cursor expires after `retention`.

    A change after a quiet `interval` is dispatched at once, and those within an interval together at its end.
    `binds_cursors` to the database is off only for negative controls.
    """

    feed: ChangeFeed
    reader: ChangeFeedReader
    aead: Aead
    _: KW_ONLY
    retention: timedelta
    interval: float = _INTERVAL
    binds_cursors: bool = True

    def __post_init__(self) -> None:
        self._streams: dict[IntegrationId, list[WatchedChanges]] = {}
        self._all: dict[WatchedChanges, None] = {}
        self._cursors = EncryptedTokens(self.aead, "credential-cursor", WatchPosition)
        self._last_text: tuple[WatchPosition | None, str] = None, ""
        self._is_stopping = False
        self._waiting: dict[IntegrationId, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_time = 0.0  # of a dispatch, on the clock of the event loop
        self._position: WatchPosition | None = None

    @property
    def position(self) -> WatchPosition:
        """The position up to which all changes were dispatched."""
        if self._position is None:
            raise LookupError("no stream has begun yet")
        return self._position

    def stop(self) -> None:
        """End all streams with `ServerStopping`, once they have sent what they know."""
        self._is_stopping = True
        for changes in self._all:
            changes.stop()

    def apply_changes(self, integration_ids: Collection[IntegrationId] | None, _poll_time: float) -> None:
        """Pass changes to the streams that they concern; None: any integration may have changed."""
        watched = self._streams if integration_ids is None else self._streams.keys() & integration_ids
        self._waiting.update(dict.fromkeys(watched))
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if not self._waiting or loop.time() >= self._next_time:
            self._dispatch()
        else:
            self._timer = loop.call_at(self._next_time, self._dispatch)

    def _dispatch(self) -> None:
        self._timer = None
        self._position = WatchPosition(*self.reader.position, self.reader.database_id)
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        self._next_time = asyncio.get_running_loop().time() + self.interval
        concerned: dict[WatchedChanges, list[IntegrationId]] = {}
        for integration_id in waiting:
            for changes in self._streams.get(integration_id, ()):
                concerned.setdefault(changes, []).append(integration_id)
        for changes, changed in concerned.items():
            changes.mark(changed)

    @asynccontextmanager
    async def watching(self, ids: Collection[IntegrationId], cursor: str) -> AsyncIterator[WatchedChanges]:
        """Collect the changes of these integrations, each listed once, while the block runs.

        After a valid cursor they include those since the cursor. Raises `ServerStopping` or `StoreUnavailable`.
        """
        changes = WatchedChanges(self)
        with self.reader.following(self):
            await self.reader.read_database_id()
            batch = await self.reader.poll()  # second: its position is of this database
            if self._is_stopping:
                raise ServerStopping
            # After the poll: what it has reported, the stream's first reads contain.
            with self._registered(changes, ids):
                start = await self._cursors.read(cursor) if cursor else None
                if (
                    start is not None
                    and (start.database_id == self.reader.database_id or not self.binds_cursors)
                    and batch.time - self.retention <= start.time
                    and start.horizon <= batch.cursor.end
                ):
                    since = await self.feed.read_changed_ids(start.horizon, _MAX_RESUMED)
                    if since is not None:
                        changes.resumed_position = start
                        changes.mark(since.intersection(ids))
                yield changes

    async def text_of(self, position: WatchPosition) -> str:
        """The cursor for a position. Streams that have sent the same changes have the same one."""
        known, text = self._last_text
        if known != position:
            text = await self._cursors.make(position)
            self._last_text = position, text
        return text

    @contextmanager
    def _registered(self, changes: WatchedChanges, ids: Collection[IntegrationId]) -> Iterator[None]:
        self._all[changes] = None
        for integration_id in ids:
            self._streams.setdefault(integration_id, []).append(changes)
        try:
            yield
        finally:
            del self._all[changes]
            for integration_id in ids:
                streams = self._streams[integration_id]
                streams.remove(changes)
                if not streams:
                    del self._streams[integration_id]
