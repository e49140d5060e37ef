"""The credentials in the process's memory: which of them are fresh, and which streams keep them so. No I/O.

Threads share a store. An entry is of one user and one integration: no user gets another's credentials by their number.
"""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

from integration_server.client.connection import UseGuard
from integration_server.client.credentials import Credentials
from integration_server.client.errors import (
    DataLoss,
    FailedPrecondition,
    IntegrationNotFound,
    IntegrationsError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unimplemented,
    error_of_status,
    is_temporary,
)
from integrations.v1 import integration_service_pb2 as pb

LockT = TypeVar("LockT", bound=AbstractContextManager[object] | AbstractAsyncContextManager[object])

MAX_IDS = 5_000  # integrations of one stream, as the contract says
_MARGIN = timedelta(seconds=60)  # for the request that the credentials are put on, and for clocks that differ
_MARGIN_SHARE = 0.1  # of the lifetime, for credentials that last for minutes
_UNWATCHED_TTL = 300.0  # seconds until credentials that no stream reports on are asked for again
_OUTAGE_PAUSE = 10.0  # seconds; a call waits for three before it finds that the server is not available
_READ_TIMEOUT = 5.0  # seconds; gRPC's retries, which a restarting server needs, take three of them
_RENEWAL_PAUSE = 30.0  # seconds; the server's own pause between forced refreshes


class Key(NamedTuple):
    """A user and an integration."""

    user_id: str
    integration_id: int


class Position(NamedTuple):
    """A cursor of a stream. Cursors are opaque; the sequence says which one is older."""

    sequence: int = 0
    cursor: str = ""


class Fetch(NamedTuple):
    """The state before credentials are read, to find what streams report meanwhile."""

    version: int
    positions: Sequence[tuple["StreamState", Position]]


@dataclass(slots=True, eq=False)
class Entry(Generic[LockT]):
    """The state of an account. `lock` lets one fetch run at a time. All times are of the monotonic clock."""

    key: Key
    integration_type: str
    lock: LockT
    used_time: float
    credentials: Credentials | None = None
    fetch_time: float = 0.0
    margin: timedelta = _MARGIN
    stream: "StreamState | None" = None
    version: int = 0  # counts what streams have reported
    outage_end: float = float("-inf")  # until then the server is not asked, because it was not available
    attempt_time: float = float("-inf")  # when the last fetch ended
    attempt_error: IntegrationsError | None = None
    not_renewed: Credentials | None = field(default=None, repr=False)  # rejected, and there are none newer
    not_renewed_time: float = 0.0


@dataclass(slots=True, eq=False)
class StreamState:
    """A stream of credentials: what it asks for, and where it resumes.

    A stream that takes further integrations restarts at its position before they were read, so that no change between
    their reading and the restart is missed.
    """

    ids: dict[int, Key] = field(default_factory=dict)
    included: frozenset[int] = frozenset()  # in the request of the running stream
    position: Position = field(default_factory=Position)
    restart_position: Position | None = None
    is_live: bool = False
    failures: int = 0


class CredentialStore(Generic[LockT]):
    """The credentials of at most `max_accounts` accounts; the least recently used ones are dropped first.

    Accounts that were not used for `idle` are dropped too.
    """

    def __init__(
        self,
        new_lock: Callable[[], LockT],
        *,
        max_accounts: int = 10_000,
        idle: timedelta = timedelta(hours=1),
        unwatched_ttl: float = _UNWATCHED_TTL,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        use_guard: UseGuard | None = None,
    ) -> None:
        self._new_lock = new_lock
        self._max_accounts = max_accounts
        self._idle = idle.total_seconds()
        self._unwatched_ttl = unwatched_ttl
        self._now = now
        self.monotonic = monotonic
        self._jitter = jitter
        self.use_guard = UseGuard() if use_guard is None else use_guard
        self._lock = threading.RLock()
        self._entries: OrderedDict[Key, Entry[LockT]] = OrderedDict()
        self._resolved: OrderedDict[tuple[str, str], int] = OrderedDict()
        self.streams: list[StreamState] = []

    def __len__(self) -> int:
        return len(self._entries)

    # --- Accounts ---------------------------------------------------------------------------------------------------

    def resolved(self, user_id: str, integration_type: str) -> int | None:
        """Return the number of the user's only account of a type; None if it is not known.

        As `entry`, raises `ClientClosed`, or `RuntimeError` in a forked process or another event loop: no stream keeps
        the credentials fresh there, and another thread may have held the lock.
        """
        self.use_guard.check()
        with self._lock:
            return self._resolved.get((user_id, integration_type))

    def set_resolved(self, user_id: str, integration_type: str, integration_id: int) -> None:
        """Record the number of the user's only account of a type."""
        with self._lock:
            self._resolved[user_id, integration_type] = integration_id
            if len(self._resolved) > self._max_accounts:
                self._resolved.popitem(last=False)

    def entry(self, key: Key, integration_type: str) -> Entry[LockT]:
        """Return the entry of an account, and count it as used."""
        self.use_guard.check()
        with self._lock:
            now = self.monotonic()
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = Entry(key, integration_type, self._new_lock(), now)
                self._drop_unused(now)
            entry.used_time = now
            self._entries.move_to_end(key)
            return entry

    def _drop_unused(self, now: float) -> None:
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if len(self._entries) <= self._max_accounts and now - oldest.used_time <= self._idle:
                return
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self._entries.pop(key, None)
        for stream in self.streams:
            if stream.ids.get(key.integration_id) == key:
                del stream.ids[key.integration_id]

    # --- Freshness --------------------------------------------------------------------------------------------------

    def fresh(self, entry: Entry[LockT], min_ttl: timedelta | None) -> Credentials | None:
        """Return the credentials in memory if they can be used without asking the server."""
        with self._lock:
            now = self.monotonic()
            if now < entry.outage_end:
                return self._usable(entry, min_ttl)
            if not self._lasts(entry, max(min_ttl or timedelta(), entry.margin)):
                return None
            is_watched = entry.stream is not None and entry.stream.is_live
            return entry.credentials if is_watched or now - entry.fetch_time <= self._unwatched_ttl else None

    def _usable(self, entry: Entry[LockT], min_ttl: timedelta | None) -> Credentials | None:
        return entry.credentials if self._lasts(entry, min_ttl or timedelta()) else None

    def _lasts(self, entry: Entry[LockT], ttl: timedelta) -> bool:
        expire_time = None if entry.credentials is None else entry.credentials.expire_time
        return expire_time is None or expire_time - self._now() > ttl

    def shared_outcome(self, entry: Entry[LockT], since: float, min_ttl: timedelta | None) -> Credentials | None:
        """Return what another caller has fetched while this one waited, or raise its error; None: fetch."""
        with self._lock:
            found = self.fresh(entry, min_ttl)
            if found is None and entry.attempt_error is not None and entry.attempt_time >= since:
                raise copy(entry.attempt_error)
            return found

    def read_timeout(self, entries: Sequence[Entry[LockT]], min_ttl: timedelta | None) -> float | None:
        """Return the deadline of a read in seconds; None, which is the RPC's own, unless memory has what can be used.

        A server behind a network that drops packets would otherwise hold all users of credentials that are valid.
        """
        with self._lock:
            return _READ_TIMEOUT if all(self._usable(entry, min_ttl) for entry in entries) else None

    def begin_fetch(self, entry: Entry[LockT]) -> Fetch:
        """Return the state before the account's credentials are read."""
        with self._lock:
            return Fetch(entry.version, [(stream, stream.position) for stream in self.streams])

    def record(self, entry: Entry[LockT], fetch: Fetch, credentials: Credentials) -> Credentials | None:
        """Record fetched credentials, and return those to use.

        What a stream has reported meanwhile is newer: None means that it has reported their end, and to fetch again.
        """
        with self._lock:
            entry.attempt_time, entry.attempt_error = self.monotonic(), None
            if entry.version == fetch.version:
                self._set(entry, credentials)
            return entry.credentials

    def stale(self, entries: Sequence[Entry[LockT]], min_ttl: timedelta | None) -> Sequence[Entry[LockT]]:
        """Return the entries, each once, whose credentials in memory cannot be used without asking the server."""
        with self._lock:
            return [entry for entry in dict.fromkeys(entries) if self.fresh(entry, min_ttl) is None]

    def record_failure(
        self, entry: Entry[LockT], error: IntegrationsError, min_ttl: timedelta | None
    ) -> Credentials | None:
        """Record that nothing could be fetched. Returns credentials in memory that serve while the server is away."""
        with self._lock:
            now = self.monotonic()
            entry.attempt_time, entry.attempt_error = now, error
            if is_temporary(error):
                usable = self._usable(entry, min_ttl)
                if usable is not None:
                    entry.outage_end = now + _OUTAGE_PAUSE
                return usable
            if is_final(error):
                self._forget(entry, error)
            return None

    def discard(self, key: Key) -> None:
        """Forget the credentials of an account, because this client has replaced or deleted them."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.credentials = None
                entry.version += 1

    def _set(self, entry: Entry[LockT], credentials: Credentials) -> None:
        entry.credentials = credentials
        entry.fetch_time = self.monotonic()
        entry.outage_end = float("-inf")
        lifetime = _MARGIN if credentials.expire_time is None else credentials.expire_time - self._now()
        entry.margin = min(_MARGIN, max(lifetime, timedelta()) * _MARGIN_SHARE)

    def _forget(self, entry: Entry[LockT], error: IntegrationsError) -> None:
        entry.credentials = None
        if isinstance(error, IntegrationNotFound):  # its number is never used again
            self._drop(entry.key)
            for name in [name for name, number in self._resolved.items() if number == entry.key.integration_id]:
                del self._resolved[name]

    # --- Renewal after a 401 ----------------------------------------------------------------------------------------

    def newer(self, entry: Entry[LockT], rejected: Credentials) -> Credentials | None:
        """Return newer credentials in memory; `rejected` itself if it is known that there are none; None: ask."""
        with self._lock:
            credentials = entry.credentials
            if credentials is not None and not credentials.has_same_secret(rejected):
                return credentials
            known = entry.not_renewed
            is_recent = self.monotonic() - entry.not_renewed_time < _RENEWAL_PAUSE
            return rejected if known is not None and known.has_same_secret(rejected) and is_recent else None

    def record_not_renewed(self, entry: Entry[LockT], rejected: Credentials) -> None:
        """Record that there are no newer credentials: a provider that rejects all of them is not asked about each."""
        with self._lock:
            entry.not_renewed, entry.not_renewed_time = rejected, self.monotonic()

    # --- Streams ----------------------------------------------------------------------------------------------------

    def watch(self, entry: Entry[LockT], fetch: Fetch) -> StreamState | None:
        """Add an account that was read to a stream. Returns the stream if it has to be started or restarted."""
        with self._lock:
            number = entry.key.integration_id
            if entry.key not in self._entries or any(number in stream.ids for stream in self.streams):
                return None
            stream = next((each for each in self.streams if len(each.ids) < MAX_IDS), None)
            if stream is None:
                stream = StreamState()
                self.streams.append(stream)
            stream.ids[number] = entry.key
            before = next((position for each, position in fetch.positions if each is stream), Position())
            if number in stream.included:  # it was dropped and comes back: the running stream still reports on it
                if before == stream.position:
                    entry.stream = stream
                    return None
                stream.included -= {number}  # but what it has reported during the reading was not for this account
            stream.restart_position = min(stream.restart_position or before, before)
            return stream

    def request(self, stream: StreamState) -> pb.WatchCredentialsRequest | None:
        """Return the request that a stream starts with; None if there is nothing to watch."""
        with self._lock:
            self._drop_unused(self.monotonic())
            if stream.restart_position is not None:
                stream.position = min(stream.position, stream.restart_position)
                stream.restart_position = None
            stream.is_live = False
            stream.included = frozenset(stream.ids)
            if not stream.ids:
                return None
            return pb.WatchCredentialsRequest(integration_ids=sorted(stream.ids), cursor=stream.position.cursor)

    def needs_restart(self, stream: StreamState) -> bool:
        """Whether the running stream lacks integrations, or carries many that nobody uses any longer."""
        with self._lock:
            self._drop_unused(self.monotonic())
            wanted = stream.ids.keys()
            unused = len(stream.included - wanted)
            return not wanted <= stream.included or unused > max(len(stream.included) // 4, 16)

    def receive(self, stream: StreamState, response: pb.WatchCredentialsResponse) -> None:
        """Take a response of a stream."""
        with self._lock:
            stream.position = Position(stream.position.sequence + 1, response.cursor or stream.position.cursor)
            stream.failures = 0
            if not stream.is_live:
                stream.is_live = True
                for number in stream.included:
                    entry = self._watched_entry(stream, number)
                    if entry is not None:
                        entry.stream = stream
            for watched in response.results:
                entry = self._watched_entry(stream, watched.integration_id)
                if entry is not None:
                    self._receive_result(entry, watched.result)

    def _watched_entry(self, stream: StreamState, number: int) -> Entry[LockT] | None:
        key = stream.ids.get(number)
        return None if key is None else self._entries.get(key)

    def _receive_result(self, entry: Entry[LockT], result: pb.CredentialsResult) -> None:
        if result.HasField("credentials"):
            entry.version += 1
            self._set(entry, Credentials.decode(result.credentials, entry.key.integration_id, entry.integration_type))
        elif result.HasField("error"):
            error = error_of_status(result.error)
            if is_final(error):
                entry.version += 1
                self._forget(entry, error)

    def ended(self, stream: StreamState, error: IntegrationsError | None) -> float:
        """Record the end of a stream. Returns the delay in seconds before it restarts."""
        with self._lock:
            stream.is_live = False
            if isinstance(error, Unimplemented | PermissionDenied):
                return 600.0  # the server is older, or its policy does not allow streams: both can change
            if isinstance(error, InvalidArgument | FailedPrecondition):  # perhaps the cursor
                stream.position = Position()
                stream.restart_position = None
            stream.failures += 1
            return min(0.2 * 2.0 ** min(stream.failures, 8), 30.0) * (0.5 + self._jitter() / 2)


def is_final(error: IntegrationsError) -> bool:
    """Whether an error means that credentials that were valid are not to be used any longer."""
    return isinstance(error, NotFound | FailedPrecondition | PermissionDenied | DataLoss)
