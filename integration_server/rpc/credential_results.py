"""Results with credentials, of batches: which are sent again, encoded, recorded, and fit into the response.

A result with credentials is encoded as a `GetCredentialsResponse` is. Batches and single calls therefore share their
responses (hot_path.py), and most items of a batch cost no more than their decryption.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from integration_server.domain.audit import SUCCESS, AuditEntry
from integration_server.domain.callers import current_allowed_types
from integration_server.domain.errors import IntegrationServerError, InvalidField, ResponseTooLarge, StoreUnavailable
from integration_server.rpc import mapping
from integration_server.rpc.call_audit import error_outcome, record_item
from integration_server.rpc.call_log import CallLog
from integration_server.rpc.errors import status_of
from integration_server.rpc.hot_path import ResponseKey, ReusedResponses
from integration_server.rpc.methods import Context
from integration_server.service.credentials.credential_service import (
    CredentialRequest,
    CredentialService,
    RefreshNeed,
    UsableCredentials,
)
from integration_server.service.credentials.shared_outcomes import SharedOutcome
from integrations.v1 import integration_service_pb2 as pb

_METHOD = "BatchGetCredentials"

MAX_BATCH = 1000
"""Requests of a batch: some 200 KiB of requests, and two megabytes of tokens."""

# protobuf.dev/programming-guides/encoding
_RESULT_TAG = b"\x0a"  # `results` of a response, with a length
_CURSOR_TAG = b"\x12"  # `WatchCredentialsResponse.cursor`, with a length
_ID_TAG = b"\x08"  # `WatchedCredentials.integration_id`, a varint
_WATCHED_RESULT_TAG = b"\x12"  # `WatchedCredentials.result`, with a length
_FRAME_BYTES = 5  # of a result: its tag, and the length of a message
_ITEMS_PER_SLICE = 100  # about a millisecond; other calls run between two slices


class CredentialResults:
    """Makes the results of batches. A response has at most `max_bytes`. `responses` are those of single calls."""

    def __init__(
        self,
        credentials: CredentialService,
        *,
        max_bytes: int = 4 * 1024 * 1024,
        responses: ReusedResponses | None = None,
        call_log: CallLog | None = None,
    ) -> None:
        self._credentials = credentials
        self._max_bytes = max_bytes
        self._responses = responses
        self._call_log = call_log or CallLog()

    async def batch(self, request: pb.BatchGetCredentialsRequest, context: Context) -> bytes:
        """Return the encoded response to a batch, with its results in the order of the requests.

        Raises `InvalidField`.
        """
        if not request.requests:
            raise InvalidField("requests", "is required")
        mapping.require_at_most("requests", request.requests, MAX_BATCH)
        batch = _Batch(len(request.requests), self._max_bytes)
        keys = self._keys_of(request, context)
        missing: list[int] = []
        for index, key in enumerate(keys):
            try:
                found = None if self._responses is None else self._responses.find(key, batch.room)
            except ResponseTooLarge as error:
                found = await self._error_result(request.requests[index], error)
            if found is None:
                missing.append(index)
            else:
                batch.put(index, found)
            if index % _ITEMS_PER_SLICE == _ITEMS_PER_SLICE - 1:
                await asyncio.sleep(0)
        await self._add_missing(batch, request, keys, missing)
        return batch.encoded()

    def _keys_of(self, request: pb.BatchGetCredentialsRequest, context: Context) -> Sequence[ResponseKey]:
        """The keys of the responses to single calls with these requests."""
        if self._responses is None:
            return [("", "", b"")] * len(request.requests)
        caller, purpose, _ = self._responses.key_of(b"", context)
        return [(caller, purpose, item.SerializeToString()) for item in request.requests]

    async def _add_missing(
        self,
        batch: "_Batch",
        request: pb.BatchGetCredentialsRequest,
        keys: Sequence[ResponseKey],
        missing: Sequence[int],
    ) -> None:
        """Add the results that no earlier response has."""
        if not missing:
            return
        items = [request.requests[index] for index in missing]
        decoded = [_decode(index, item) for index, item in zip(missing, items, strict=True)]
        try:
            outcomes = await self._credentials.get_many(decoded, current_allowed_types())
        except BaseException as error:  # the call ends: what was requested is recorded all the same
            with suppress(StoreUnavailable):  # the error stays the same
                for item in items:
                    await self._record(item, error_outcome(error))
            raise
        for number, (index, item, outcome) in enumerate(zip(missing, items, outcomes, strict=True)):
            if isinstance(outcome, Exception):
                result = await self._error_result(item, outcome)
            else:
                result = await self._credentials_result(item, outcome, keys[index], batch.room)
            if len(result) > batch.room:  # an error: credentials that do not fit were omitted
                result = _OMITTED
            batch.put(index, result)
            if number % _ITEMS_PER_SLICE == _ITEMS_PER_SLICE - 1:
                await asyncio.sleep(0)

    async def _credentials_result(
        self, item: pb.GetCredentialsRequest, usable: UsableCredentials, key: ResponseKey, room: int
    ) -> bytes:
        result = pb.CredentialsResult(credentials=mapping.encode_credentials(usable)).SerializeToString()
        if len(result) > room:
            return await self._error_result(item, ResponseTooLarge.of_batch())
        entry = await self._record(item, SUCCESS)
        if entry is not None and self._responses is not None and usable.integration is not None:
            self._responses.put(key, result, usable.integration, usable.valid_until, entry)
        return result

    async def _error_result(self, item: pb.GetCredentialsRequest, error: Exception) -> bytes:
        await self._record(item, error_outcome(error))
        return self.encode_error(error)

    def encode_error(self, error: Exception) -> bytes:
        """Return a result with the status that a single call would end with. A bug is logged."""
        self._log_bug(_METHOD, error)
        return _encode_error(error)

    async def watched(self, user_id: str, integration_id: int, shared: SharedOutcome) -> bytes:
        """Return an encoded result of a stream, with its tag, which is recorded.

        Streams that share an outcome encode it once. All of them are about the same integration.
        """
        outcome, record = shared.outcome, record_item.get(_record_nothing)
        if isinstance(outcome, UsableCredentials):
            await record(outcome.integration.user_id if outcome.integration else user_id, integration_id, SUCCESS)
        elif isinstance(outcome, Exception):
            await record(user_id, integration_id, error_outcome(outcome))
        if shared.encoded is None:
            result = self._encode_watched(outcome)
            item = b"".join((_ID_TAG, _varint(integration_id), _WATCHED_RESULT_TAG, _varint(len(result)), result))
            shared.encoded = b"".join((_RESULT_TAG, _varint(len(item)), item))
        encoded: bytes = shared.encoded
        return encoded

    def _encode_watched(self, outcome: UsableCredentials | RefreshNeed | Exception) -> bytes:
        if isinstance(outcome, UsableCredentials):
            return pb.CredentialsResult(credentials=mapping.encode_credentials(outcome)).SerializeToString()
        if isinstance(outcome, RefreshNeed):
            raise TypeError("credentials that have to be refreshed are not sent")
        self._log_bug("WatchCredentials", outcome)
        return _encode_error(outcome)

    def _log_bug(self, method: str, error: Exception) -> None:
        if not isinstance(error, IntegrationServerError):
            self._call_log.unhandled(method, error)

    async def _record(self, item: pb.GetCredentialsRequest, outcome: str) -> AuditEntry | None:
        return await record_item.get(_record_nothing)(item.user_id, item.integration_id, outcome)


def encode_watch_response(items: Sequence[bytes], cursor: str = "") -> bytes:
    """Return the encoded `WatchCredentialsResponse` with these results of `watched`."""
    if not cursor:
        return b"".join(items)
    text = cursor.encode()
    return b"".join((*items, _CURSOR_TAG, _varint(len(text)), text))


async def _record_nothing(_user_id: str, _integration_id: int, _outcome: str) -> None:
    """For servers without an audit trail, which are those of tests."""


def _decode(index: int, item: pb.GetCredentialsRequest) -> CredentialRequest | InvalidField:
    """Return a request of a batch, or its error with the path of the field."""
    try:
        return CredentialRequest(
            *mapping.decode_target(item),
            mapping.decode_duration("min_ttl", item),
            mapping.decode_scopes("required_scopes", item.required_scopes),
        )
    except InvalidField as error:
        return InvalidField(f"requests[{index}].{error.field}", error.problem)


def _encode_error(error: Exception) -> bytes:
    return pb.CredentialsResult(error=status_of(error)).SerializeToString()


_OMITTED = _encode_error(ResponseTooLarge.of_batch())


class _Batch:
    """The encoded results of a batch, which fit into `max_bytes` together.

    Each result that is still to come has room for the error that stands for one that does not fit.
    """

    def __init__(self, count: int, max_bytes: int) -> None:
        self._results: list[bytes] = [b""] * count
        self._left = max_bytes - count * (len(_OMITTED) + _FRAME_BYTES)

    @property
    def room(self) -> int:
        """The size of the largest result that still fits."""
        return self._left + len(_OMITTED)

    def put(self, index: int, result: bytes) -> None:
        """Set a result of at most `room` bytes."""
        self._results[index] = result
        self._left -= len(result) - len(_OMITTED)

    def encoded(self) -> bytes:
        """The encoded `BatchGetCredentialsResponse`."""
        return b"".join(part for result in self._results for part in (_RESULT_TAG, _varint(len(result)), result))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
