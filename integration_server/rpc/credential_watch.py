"""The stream `WatchCredentials`: each credential at once, when it has changed, before it expires, and when it is gone.

A stream learns of the changes of its integrations (watched_changes.py), and has one heap of the times at which
credentials have to be read again. What has changed or is due is read in batches, which streams share
(shared_outcomes.py). Refreshes run beside the stream: a slow provider delays only its own credentials.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.call_quota import item_charge
from integration_server.domain.callers import current_allowed_types
from integration_server.domain.errors import (
    IntegrationServerError,
    InvalidField,
    ProviderError,
    QuotaExceeded,
    ServerStopping,
    StoreUnavailable,
)
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.rpc import mapping
from integration_server.rpc.credential_results import CredentialResults, encode_watch_response
from integration_server.service.common_types import Clock, Jitter
from integration_server.service.credentials.credential_service import (
    CredentialRequest,
    CredentialService,
    RefreshNeed,
    UsableCredentials,
    ttl_at,
)
from integration_server.service.credentials.shared_outcomes import SharedOutcome, SharedOutcomes
from integration_server.service.events.watched_changes import ChangeDispatcher, WatchedChanges, WatchPosition
from integrations.v1 import integration_service_pb2 as pb

MAX_WATCHED = 5000
"""Integrations of a stream: 50 KiB of request, and some megabytes of state."""

_BATCH = 200  # integrations of one read: the first credentials are sent after some milliseconds
_MAX_RESPONSE = 64 * 1024  # bytes of results: gRPC's own buffer
_REFRESHES = 16  # of one stream at a time: the lease and the commit of each need a database connection for a moment
_MAX_REFRESH = 30.0  # seconds: three slow calls of a provider
_RETRY = 30.0  # seconds, after an error that does not say when to try again
_MIN_RETRY = 1.0  # seconds
_UNCHANGED = 60.0  # seconds until credentials that were not renewed in time are read again
_LEAD_SHARE = 0.1  # of the time until credentials are due: so much earlier they are renewed, at most
_MAX_LEAD = 60.0  # seconds: a provider that is slow or down for a moment then delays nothing
_MAX_ENTRIES = 4  # of the heap for each integration: tokens that last for weeks may change every minute
_MAX_FAILED = 200  # integrations named in a cursor, of at most 8 KiB; of more, everything is sent again
_FAILED_MARK = "~"  # before them, in hexadecimal; base64url has no such character
_ALL_FAILED = "*"
_TOO_SLOW = "whose credentials are read too slowly; resume after the last cursor"
_MAX_SEND = 60.0  # seconds that a client may take to read a response, as for the stream of events


class CredentialWatch:
    """Makes the streams. A quiet stream gets a cursor after each `heartbeat`.

    A stream waits for `refreshes` at a time, beside its other responses; 0 only for negative controls: it waits for
    each refresh before it goes on.
    """

    def __init__(
        self,
        credentials: CredentialService,
        changes: ChangeDispatcher,
        results: CredentialResults,
        clock: Clock,
        jitter: Jitter = random.random,
        *,
        heartbeat: timedelta = timedelta(seconds=15),
        refreshes: int = _REFRESHES,
    ) -> None:
        self._credentials = credentials
        self._outcomes = SharedOutcomes(credentials)
        self._changes = changes
        self._results = results
        self._clock = clock
        self._jitter = jitter
        self._heartbeat = heartbeat.total_seconds()
        self._refreshes = refreshes

    async def watch(self, request: pb.WatchCredentialsRequest) -> AsyncGenerator[bytes]:
        """Yield the encoded responses of a stream, without end.

        Raises `InvalidField`, `ServerStopping` after a last cursor, `StoreUnavailable`, or `QuotaExceeded` if there are
        too many integrations for the caller's rate, or if responses are read too slowly.
        """
        watching = _decode(request)
        cursor, failed = _split_cursor(mapping.decode_text("cursor", request.cursor, mapping.MAX_PARAMETER_LENGTH))
        loop, sent_position = asyncio.get_running_loop(), None
        heartbeat_time = loop.time()
        async with (
            self._changes.watching(watching.integration_ids, cursor) as changes,
            self._stream(watching, changes, failed) as stream,
        ):
            if charge := item_charge.get():
                charge.count(stream.resumed_count)
            while True:
                if not changes.is_stopping:
                    await stream.read()
                results, position = stream.take_unsent(), stream.position
                is_cursor_due = position is not None and (
                    sent_position is None
                    or loop.time() >= heartbeat_time
                    or (changes.is_stopping and position != sent_position)
                )
                if results or is_cursor_due:
                    text = "" if position is None else stream.cursor(await self._changes.text_of(position))
                    async with aclosing(self._encode(request.user_id, results, text)) as responses:
                        async for response in responses:
                            send_time = loop.time()
                            yield response
                            if loop.time() - send_time > _MAX_SEND:
                                raise QuotaExceeded(_TOO_SLOW)
                    sent_position, heartbeat_time = position, loop.time() + self._heartbeat
                elif changes.is_stopping:
                    raise ServerStopping
                elif not stream.has_work():
                    due = stream.seconds_until_due()
                    # The heartbeat of a stream without a cursor has nothing to send.
                    until_heartbeat = self._heartbeat if position is None else heartbeat_time - loop.time()
                    await changes.wait(max(0.0, min(until_heartbeat, until_heartbeat if due is None else due)))

    async def _encode(self, user_id: str, results: "Sequence[_WatchResult]", cursor: str) -> AsyncGenerator[bytes]:
        """Yield responses of limited size with the results, of which the last has the cursor."""
        items: list[bytes] = []
        size = 0
        for number, shared in results:
            item = await self._results.watched(user_id, number, shared)
            if items and size + len(item) > _MAX_RESPONSE:
                yield encode_watch_response(items)
                items, size = [], 0
            items.append(item)
            size += len(item)
        yield encode_watch_response(items, cursor)

    @asynccontextmanager
    async def _stream(
        self,
        watching: "_WatchRequest",
        changes: WatchedChanges,
        failed: Collection[IntegrationId],
    ) -> AsyncIterator["_Stream"]:
        stream = _Stream(
            watching,
            changes,
            failed,
            self._credentials,
            self._outcomes,
            self._clock,
            self._jitter,
            current_allowed_types(),
            self._refreshes,
        )
        try:
            yield stream
        finally:
            await stream.close()


_WatchResult = tuple[IntegrationId, SharedOutcome]


@dataclass(frozen=True, slots=True)
class _WatchRequest:
    """What a stream asks for: integrations of a user, or of any, with this lifetime and these scopes.

    It makes the requests when they are read: a stream has thousands.
    """

    integration_ids: Collection[IntegrationId]
    user_id: UserId | None
    min_ttl: timedelta | None
    required_scopes: Sequence[str]

    def request(self, integration_id: IntegrationId, early_ttl: float | None = None) -> CredentialRequest:
        """The request for an integration, whose credentials last for `early_ttl` seconds if that is not None."""
        min_ttl = self.min_ttl if early_ttl is None else timedelta(seconds=early_ttl)
        return CredentialRequest(integration_id, self.user_id, min_ttl, self.required_scopes)


class DueTimes:
    """When the integrations of a stream are read again, in seconds since the epoch: a heap.

    Most of an integration's times are replaced before they come. The heap has at most `_MAX_ENTRIES` entries for each
    integration, or `max_entries`.
    """

    def __init__(self, max_entries: int = _MAX_ENTRIES) -> None:
        self._times: dict[IntegrationId, float] = {}
        self._heap: list[tuple[float, IntegrationId]] = []  # entries may be outdated
        self._max_entries = max_entries

    def __len__(self) -> int:
        """The entries of the heap."""
        return len(self._heap)

    @property
    def next_time(self) -> float | None:
        """Return a time not after the next due time; None if nothing is due."""
        return self._heap[0][0] if self._heap else None

    def set(self, number: IntegrationId, time: float | None) -> None:
        """Replace the time of an integration; None: it is not due by itself."""
        if time is None:
            self._times.pop(number, None)
            return
        self._times[number] = time
        heapq.heappush(self._heap, (time, number))
        if len(self._heap) > self._max_entries * len(self._times):
            self._heap = [(due_time, integration_id) for integration_id, due_time in self._times.items()]
            heapq.heapify(self._heap)

    def take(self, now: float) -> IntegrationId | None:
        """Remove the one that was due first, and return it; None if none is due."""
        while self._heap and self._heap[0][0] <= now:
            time, number = heapq.heappop(self._heap)
            if self._times.get(number) == time:
                del self._times[number]
                return number
        return None


@dataclass(slots=True, eq=False)
class _Watched:
    """The state of an integration of a stream.

    `sent` is what the client has: the version, or the reason of an error. When the credentials are due, they are read
    again, so that they last for `early_ttl` seconds, which is longer than the client has asked for; None: so that they
    last as long as it has asked for.
    """

    sent: int | str | None = None
    early_ttl: float | None = None
    early_version: int | str | None = None  # of the credentials that were to be renewed early


class _Stream:
    """What a client has, what has to be read for it, and what it has not been sent yet."""

    def __init__(
        self,
        watching: _WatchRequest,
        changes: WatchedChanges,
        failed: Collection[IntegrationId],
        credentials: CredentialService,
        outcomes: SharedOutcomes,
        clock: Clock,
        jitter: Jitter,
        allowed_types: AllowedTypes,
        max_refreshes: int,
    ) -> None:
        ids = watching.integration_ids
        self._watching = watching
        self._watched = {number: _Watched() for number in ids}
        self._unread = deque(ids)
        self._changes = changes
        self._credentials = credentials
        self._outcomes = outcomes
        self._clock = clock
        self._jitter = jitter
        self._allowed_types = allowed_types
        self._max_refreshes = max_refreshes
        self._due = DueTimes()
        # For which the client has an error. No change tells of the end of some, such as an outage or a narrow policy.
        self._failed = set(failed).intersection(ids) if changes.resumed_position is not None else set[IntegrationId]()
        # What the client has from an earlier stream; an error it may not have.
        self._known = set(ids) - self._failed if changes.resumed_position is not None else set[IntegrationId]()
        self._position = changes.resumed_position
        # Those that wait for a refresh, with the position before they were read: a stream that resumes there, reads
        # them again.
        self._unsettled: dict[IntegrationId, WatchPosition | None] = {}
        self._refreshing: dict[IntegrationId, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._deferred: dict[IntegrationId, None] = {}  # for which there is no room among the refreshes
        self._unsent: list[_WatchResult] = []

    @property
    def position(self) -> WatchPosition | None:
        """The position after all results that were taken. None until everything was sent once."""
        return next(iter(self._unsettled.values()), self._position)

    @property
    def resumed_count(self) -> int:
        """How many integrations the client knows already, so that nothing is sent for them at the start."""
        return len(self._known - self._changes.changed.keys())

    def cursor(self, position: str) -> str:
        """The cursor with the text of a position: it names the integrations for which the client has an error."""
        if not self._failed:
            return position
        is_short = len(self._failed) <= _MAX_FAILED
        names = ",".join(f"{number:x}" for number in self._failed) if is_short else _ALL_FAILED
        return f"{position}{_FAILED_MARK}{names}"

    def has_work(self) -> bool:
        """Whether there is something to read now."""
        has_room = len(self._running) < self._max_refreshes
        due = self._due.next_time
        is_due = due is not None and due <= self._now()
        return bool(self._unread or self._changes.changed or is_due or (self._deferred and has_room))

    def seconds_until_due(self) -> float | None:
        """How long until something is due; None: nothing is."""
        due = self._due.next_time
        return None if due is None else max(0.0, due - self._now())

    async def read(self) -> None:
        """Read some of what has to be read, and queue the results that the client does not have."""
        requests = self._take()
        position = self._position if self._unread or self._changes.changed else self._changes.position
        if requests:
            found = await self._outcomes.read(list(requests.values()), self._allowed_types)
            now = self._now()
            for number, shared in zip(requests, found, strict=True):
                if not isinstance(shared.outcome, RefreshNeed):
                    self._settle(number, shared, now)
                elif self._max_refreshes:
                    self._begin_refresh(number, shared.outcome)
                else:
                    outcome = await self._credentials.satisfy(shared.outcome, _MAX_REFRESH)
                    self._settle(number, SharedOutcome(outcome), self._now())
        self._position = position

    def take_unsent(self) -> Sequence[_WatchResult]:
        """The results that the client does not have yet."""
        results, self._unsent = self._unsent, []
        return results

    async def close(self) -> None:
        """Wait for no refresh any longer. Those that run are completed all the same."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _take(self) -> Mapping[IntegrationId, CredentialRequest]:
        """The requests to read now: some of what has changed, waits for room, was never read, or is due."""
        taken: dict[IntegrationId, CredentialRequest] = {}
        changed = self._changes.changed
        while changed and len(taken) < _BATCH:
            number = next(iter(changed))
            del changed[number]
            self._known.discard(number)
            taken[number] = self._watching.request(number)
        for number in list(self._deferred)[: self._max_refreshes - len(self._running)]:
            del self._deferred[number]
            taken[number] = self._watching.request(number)
        while self._unread and len(taken) < _BATCH:
            number = self._unread.popleft()
            taken[number] = self._watching.request(number)
        now = self._now()
        while len(taken) < _BATCH and (due := self._due.take(now)) is not None:
            self._known.discard(due)
            taken[due] = self._watching.request(due, self._watched[due].early_ttl)
        return taken

    def _begin_refresh(self, number: IntegrationId, need: RefreshNeed) -> None:
        self._unsettled.setdefault(number, self._position)
        if number in self._refreshing:
            return  # it reads the integration again before it refreshes
        if len(self._running) >= self._max_refreshes:
            self._deferred[number] = None
            return
        task = asyncio.get_running_loop().create_task(self._refresh(number, need))
        self._refreshing[number] = task
        self._running.add(task)

    async def _refresh(self, number: IntegrationId, need: RefreshNeed) -> None:
        task = asyncio.current_task()
        try:
            outcome = await self._credentials.satisfy(need, _MAX_REFRESH)
        finally:
            self._running.discard(task)
        if self._refreshing.get(number) is task:  # else a later read has found what is newer
            self._settle(number, SharedOutcome(outcome), self._now())
        self._changes.wake()

    def _settle(self, number: IntegrationId, shared: SharedOutcome, now: float) -> None:
        """Take an outcome that can be sent, and note when to read it again."""
        self._refreshing.pop(number, None)
        self._deferred.pop(number, None)
        self._unsettled.pop(number, None)
        watched, outcome = self._watched[number], shared.outcome
        mark = _mark(outcome)
        self._schedule(number, watched, outcome, mark, now)
        if not isinstance(outcome, UsableCredentials):
            self._failed.add(number)
            self._known.discard(number)
        elif number in self._known:
            return  # should this differ all the same, the change feed is about to report it
        else:
            self._failed.discard(number)
        if watched.sent != mark:
            watched.sent = mark
            self._unsent.append((number, shared))

    def _schedule(self, number: IntegrationId, watched: _Watched, outcome: object, mark: int | str, now: float) -> None:
        due = early_ttl = None
        if isinstance(outcome, UsableCredentials):
            until = outcome.valid_until
            if watched.early_ttl is not None:  # then that may be for the longer lifetime
                until = self._credentials.valid_until(outcome.credentials, self._watching.min_ttl)
            due = None if until is None else until.timestamp()
            if due is not None and due <= now:
                due = now + _UNCHANGED * self._spread()
            elif due is not None and watched.early_version != mark:
                watched.early_version = mark
                due -= min((due - now) * _LEAD_SHARE, _MAX_LEAD) * self._spread()
                early_ttl = ttl_at(outcome.credentials, due)
        elif isinstance(outcome, ProviderError | StoreUnavailable) or not isinstance(outcome, IntegrationServerError):
            retry_after: timedelta | None = getattr(outcome, "retry_after", None)
            due = now + (max(_MIN_RETRY, retry_after.total_seconds()) if retry_after else _RETRY * self._spread())
        # After any other error only a change can help.
        watched.early_ttl = early_ttl
        self._due.set(number, due)

    def _now(self) -> float:
        """The time in seconds since the epoch."""
        return self._clock().timestamp()

    def _spread(self) -> float:
        """Spread what is due for many streams and integrations at the same time."""
        return 0.5 + self._jitter() / 2


def _mark(outcome: object) -> int | str:
    if isinstance(outcome, UsableCredentials):
        return 0 if outcome.integration is None else outcome.integration.version
    return outcome.reason if isinstance(outcome, IntegrationServerError) else type(outcome).__name__


def _split_cursor(text: str) -> tuple[str, Collection[IntegrationId]]:
    """Return the position in a cursor, and the integrations for which its client has an error; empty: send all.

    These are not encrypted: whoever alters them changes only what is sent again.
    """
    position, _, names = text.partition(_FAILED_MARK)
    try:
        return position, [IntegrationId(int(name, 16)) for name in names.split(",") if name]
    except ValueError:  # `_ALL_FAILED`, or not one of ours
        return "", ()


def _decode(request: pb.WatchCredentialsRequest) -> _WatchRequest:
    """Return what the stream asks for, with each integration once."""
    if not request.integration_ids:
        raise InvalidField("integration_ids", "is required")
    mapping.require_at_most("integration_ids", request.integration_ids, MAX_WATCHED)
    user_id = mapping.decode_user_id(request.user_id) if request.user_id else None
    min_ttl = mapping.decode_duration("min_ttl", request)
    scopes = mapping.decode_scopes("required_scopes", request.required_scopes)
    ids: dict[IntegrationId, None] = {}
    for index, number in enumerate(request.integration_ids):
        try:
            ids[mapping.decode_integration_id(number)] = None
        except InvalidField as error:
            raise InvalidField(f"integration_ids[{index}]", error.problem) from None
    return _WatchRequest(ids.keys(), user_id, min_ttl, scopes)
