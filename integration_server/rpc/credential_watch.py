"""The stream `WatchCredentials`: each credential at once, when it has changed, before it expires, and when it is gone.

A stream follows the events of its integrations (service/events), and one heap of the times at which credentials have to
be read again. What has changed or is due is read in batches, as for `BatchGetCredentials`.
"""

import asyncio
import heapq
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime, timedelta

from integration_server.domain.errors import (
    CursorExpired,
    IntegrationServerError,
    InvalidField,
    ProviderError,
    QuotaExceeded,
    StoreUnavailable,
)
from integration_server.domain.integration import IntegrationId
from integration_server.rpc import mapping
from integration_server.rpc.authorization import current_allowed_types
from integration_server.rpc.credential_results import CredentialResults
from integration_server.service.common_types import Clock
from integration_server.service.credentials.credential_service import (
    CredentialRequest,
    CredentialService,
    UsableCredentials,
)
from integration_server.service.events.event_stream import EventStream, StreamItem
from integrations.v1 import integration_service_pb2 as pb

MAX_WATCHED = 5000
"""Integrations of a stream: 50 KiB of request, and some megabytes of state."""

_BATCH = 200  # integrations of one read: the first credentials are sent after some milliseconds
_RETRY = timedelta(seconds=30)  # after an error that does not say when to try again
_MIN_RETRY = timedelta(seconds=1)
_UNCHANGED = timedelta(seconds=60)  # until credentials that were not renewed in time are read again
_MAX_SEND = 60.0  # seconds that a client may take to read a response, as for the stream of events

Outcome = UsableCredentials | Exception


class CredentialWatch:
    """Makes the streams."""

    def __init__(
        self, credentials: CredentialService, events: EventStream, results: CredentialResults, clock: Clock
    ) -> None:
        self._credentials = credentials
        self._events = events
        self._results = results
        self._clock = clock

    async def watch(self, request: pb.WatchCredentialsRequest) -> AsyncGenerator[pb.WatchCredentialsResponse]:
        """Yield the responses of a stream, without end.

        Raises `InvalidField`, `ServerStopping`, `StoreUnavailable`, or `QuotaExceeded` if they are read too slowly.
        """
        requests, allowed_types = _decode(request), current_allowed_types()
        loop = asyncio.get_running_loop()
        async with self._changes_of(request, requests.keys()) as changes:
            stream, unread = _Stream(changes), list(requests)
            while True:
                is_first = bool(unread)
                ids = unread[:_BATCH] if is_first else stream.take(self._clock())
                unread = unread[_BATCH:]
                if not ids and not changes.is_quiet:
                    await changes.wait(stream.seconds_until_due(self._clock()))
                    continue
                outcomes = await self._credentials.get_many([requests[number] for number in ids], allowed_types)
                for number, outcome in zip(ids, outcomes, strict=True):
                    if stream.is_news(number, outcome, self._clock(), is_first=is_first):
                        result = self._results.watched(request.user_id, number, outcome)
                        send_time = loop.time()
                        yield pb.WatchCredentialsResponse(integration_id=number, result=result, cursor=stream.cursor)
                        if loop.time() - send_time > _MAX_SEND:
                            raise QuotaExceeded("whose credentials are read too slowly; resume after the last cursor")
                if not unread and stream.advance():
                    yield pb.WatchCredentialsResponse(cursor=stream.cursor)

    @asynccontextmanager
    async def _changes_of(
        self, request: pb.WatchCredentialsRequest, ids: Collection[IntegrationId]
    ) -> AsyncGenerator["_Changes"]:
        """Collect the changes of these integrations, after the request's cursor, while the block runs."""
        user_id = mapping.decode_user_id(request.user_id) if request.user_id else None
        cursor = mapping.decode_text("cursor", request.cursor, mapping.MAX_PARAMETER_LENGTH)
        first, events = None, self._events.watch(user_id, "", cursor, current_allowed_types())
        with suppress(CursorExpired, InvalidField):  # then all credentials are sent again
            first = await anext(events)
        if first is None:
            cursor, events = "", self._events.watch(user_id, "", "", current_allowed_types())
            first = await anext(events)
        changes = _Changes(frozenset(ids), first.cursor, is_resumed=bool(cursor))
        async with aclosing(events):
            collecting = asyncio.create_task(changes.collect(events), name="collect changes of credentials")
            try:
                yield changes
            finally:
                collecting.cancel()
                await asyncio.gather(collecting, return_exceptions=True)


class _Changes:
    """The integrations of a stream that have changed and are not read yet. `cursor` is that of the last event."""

    def __init__(self, ids: frozenset[IntegrationId], cursor: str, *, is_resumed: bool) -> None:
        self.cursor = cursor
        self.is_resumed = is_resumed
        self.is_quiet = (
            True  # whether a response with the cursor only is due: after the first responses, and heartbeats
        )
        self.changed: dict[IntegrationId, None] = {}
        self._ids = ids
        self._woken = asyncio.Event()
        self._error: Exception | None = None

    async def collect(self, events: AsyncGenerator[StreamItem]) -> None:
        """Read the events until they end with an error, which `wait` raises."""
        try:
            async for item in events:
                self.cursor = item.cursor
                if item.event is None:
                    self.is_quiet = True
                elif item.event.integration_id in self._ids:
                    self.changed[item.event.integration_id] = None
                else:
                    continue
                self._woken.set()
        except Exception as error:
            self._error = error
            self._woken.set()

    async def wait(self, seconds: float | None) -> None:
        """Wait for a change, at most some seconds. Raises what has ended the events."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()
        if self._error is not None:
            raise self._error


class _Stream:
    """What a client has been sent, and when its credentials have to be read again.

    `cursor` is empty until everything was sent once: a client that resumes earlier gets everything again.
    """

    def __init__(self, changes: _Changes) -> None:
        self.cursor = ""
        self._changes = changes
        self._taken_cursor = changes.cursor  # of the events whose changes were taken
        self._sent: dict[IntegrationId, int | str] = {}  # the version, or the reason of an error
        self._due: list[tuple[datetime, IntegrationId]] = []  # a heap; entries may be outdated
        self._due_times: dict[IntegrationId, datetime] = {}

    def take(self, now: datetime) -> Sequence[IntegrationId]:
        """The integrations to read now: some that have changed, and some that are due."""
        changed = self._changes.changed
        taken = {number: None for number, _ in zip(list(changed), range(_BATCH), strict=False)}
        for number in taken:
            del changed[number]
        if not changed:
            self._taken_cursor = self._changes.cursor
        while self._due and self._due[0][0] <= now and len(taken) < _BATCH:
            time, number = heapq.heappop(self._due)
            if self._due_times.get(number) == time:
                taken[number] = None
        return list(taken)

    def advance(self) -> bool:
        """The responses up to the taken cursor are sent. Whether the client gets a response with the cursor only."""
        self.cursor = self._taken_cursor
        is_quiet, self._changes.is_quiet = self._changes.is_quiet, False
        return is_quiet

    def is_news(self, number: IntegrationId, outcome: Outcome, now: datetime, *, is_first: bool) -> bool:
        """Whether an outcome is to be sent. Notes when to read it again."""
        self._schedule(number, outcome, now)
        if is_first and self._changes.is_resumed and isinstance(outcome, UsableCredentials):
            return False  # what has changed since the cursor is among the changes; an error may not be
        mark = _mark(outcome)
        is_sent = self._sent.get(number) == mark
        self._sent[number] = mark
        return not is_sent

    def seconds_until_due(self, now: datetime) -> float | None:
        """How long until something is due; None: nothing is."""
        return max(0.0, (self._due[0][0] - now).total_seconds()) if self._due else None

    def _schedule(self, number: IntegrationId, outcome: Outcome, now: datetime) -> None:
        if isinstance(outcome, UsableCredentials):
            due = outcome.valid_until
            if due is not None and due <= now:
                due = now + _UNCHANGED
        elif isinstance(outcome, ProviderError | StoreUnavailable) or not isinstance(outcome, IntegrationServerError):
            due = now + max(_MIN_RETRY, getattr(outcome, "retry_after", None) or _RETRY)
        else:
            due = None  # only a change can help
        self._due_times.pop(number, None)
        if due is not None:
            self._due_times[number] = due
            heapq.heappush(self._due, (due, number))


def _mark(outcome: Outcome) -> int | str:
    if isinstance(outcome, UsableCredentials):
        return 0 if outcome.integration is None else outcome.integration.version
    return outcome.reason if isinstance(outcome, IntegrationServerError) else type(outcome).__name__


def _decode(request: pb.WatchCredentialsRequest) -> Mapping[IntegrationId, CredentialRequest]:
    """Return the requests for the credentials of each integration, once each."""
    if not request.integration_ids:
        raise InvalidField("integration_ids", "is required")
    mapping.require_at_most("integration_ids", request.integration_ids, MAX_WATCHED)
    user_id = mapping.decode_user_id(request.user_id) if request.user_id else None
    min_ttl = mapping.decode_duration("min_ttl", request)
    scopes = mapping.decode_scopes("required_scopes", request.required_scopes)
    requests = {}
    for index, number in enumerate(request.integration_ids):
        try:
            integration_id = mapping.decode_integration_id(number)
        except InvalidField as error:
            raise InvalidField(f"integration_ids[{index}]", error.problem) from None
        requests[integration_id] = CredentialRequest(integration_id, user_id, min_ttl, scopes)
    return requests
