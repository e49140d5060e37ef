"""Reads of credentials that streams share: those that ask in the same iteration of the event loop.

A change wakes all streams that watch the integration at the same time. Their reads become one statement, equal requests
are decrypted once, and what the first stream has encoded is sent by all. Nothing is kept beyond that: once the streams
have sent it, no decrypted credential is in memory.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.errors import ResponseTooLarge, StoreUnavailable
from integration_server.service.credentials.credential_service import (
    CredentialRequest,
    CredentialService,
    RefreshNeed,
    UsableCredentials,
)

_MAX_READS = 200  # of one statement, whose rows hold the event loop for some milliseconds
_ITEMS_PER_SLICE = 50  # some two milliseconds; other calls run between two slices


@dataclass(slots=True, eq=False)
class SharedOutcome:
    """The outcome of a request, for all streams with an equal one. `encoded` is what the first of them has encoded."""

    outcome: UsableCredentials | RefreshNeed | Exception = field(repr=False)
    encoded: Any = field(default=None, repr=False)


Outcomes = Mapping[CredentialRequest, SharedOutcome]


class SharedOutcomes:
    """Reads credentials for streams. Streams with other allowed types share nothing."""

    def __init__(self, credentials: CredentialService) -> None:
        self._credentials = credentials
        self._waiting: dict[AllowedTypes, tuple[dict[CredentialRequest, None], asyncio.Future[Outcomes]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, requests: Sequence[CredentialRequest], allowed_types: AllowedTypes) -> Sequence[SharedOutcome]:
        """For each request its credentials, an error, or that they have to be refreshed first."""
        waiting = self._waiting.get(allowed_types)
        if waiting is None:
            loop = asyncio.get_running_loop()
            waiting = self._waiting[allowed_types] = {}, loop.create_future()
            loop.call_soon(self._start, allowed_types)
        waiting[0].update(dict.fromkeys(requests))
        outcomes = await asyncio.shield(waiting[1])
        return [outcomes[request] for request in requests]

    def _start(self, allowed_types: AllowedTypes) -> None:
        requests, result = self._waiting.pop(allowed_types)
        task = asyncio.get_running_loop().create_task(self._run(list(requests), allowed_types, result))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self, requests: Sequence[CredentialRequest], allowed_types: AllowedTypes, result: asyncio.Future[Outcomes]
    ) -> None:
        outcomes: dict[CredentialRequest, SharedOutcome] = {}
        try:
            for begin in range(0, len(requests), _MAX_READS):
                outcomes |= await self._read(requests[begin : begin + _MAX_READS], allowed_types)
        except BaseException as error:
            # At the end of the server its tasks are cancelled, and its calls are not.
            is_cancelled = isinstance(error, asyncio.CancelledError)
            result.set_exception(StoreUnavailable() if is_cancelled else error)
            result.exception()  # marks it as retrieved: all streams may be gone
            if is_cancelled:
                raise
            return
        result.set_result(outcomes)

    async def _read(
        self, requests: Sequence[CredentialRequest], allowed_types: AllowedTypes
    ) -> dict[CredentialRequest, SharedOutcome]:
        outcomes: dict[CredentialRequest, SharedOutcome] = {}
        unread = requests
        while unread:
            found = await self._credentials.find_many(unread, allowed_types, past_cache=True)
            omitted = [
                request for request, stored in zip(unread, found, strict=True) if isinstance(stored, ResponseTooLarge)
            ]
            if len(omitted) == len(unread):
                omitted = []  # the next statement would not have room for them either
            for index, (request, stored) in enumerate(zip(unread, found, strict=True)):
                if request not in omitted:
                    outcomes[request] = SharedOutcome(await self._credentials.prepare(request, stored))
                if index % _ITEMS_PER_SLICE == _ITEMS_PER_SLICE - 1:
                    await asyncio.sleep(0)
            unread = omitted
        return outcomes
