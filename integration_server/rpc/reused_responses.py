"""Responses of `GetCredentials` that are sent again, kept encrypted.

A call with the bytes of an earlier one, by the same caller under the same policy, gets the earlier response without
being decoded, as long as the integration is unchanged in the cache, the credentials last as long as the call asks for,
and the data keys are those that decrypted them. Only responses of successful calls are kept.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter

from cachetools import LRUCache
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import Message

from integration_server.domain.audit import AuditEntry
from integration_server.domain.errors import ResponseTooLarge
from integration_server.domain.integration import Integration
from integration_server.rpc.methods import Context
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.common_types import Clock

_MAX_BYTES = 16 * 2**20  # of keys and responses: some 10,000 callers and integrations
_OVERHEAD_BYTES = 1024  # of the objects around them
_NONCE_BYTES = 12  # of AES-GCM

ResponseKey = tuple[str, str, bytes]
"""The caller, the purpose and the bytes of a request."""

PURPOSE = "x-purpose"
"""The metadata entry with the purpose of a call, for the audit log."""


def purpose_of(context: Context) -> str:
    """Return the purpose of a call; empty without one. Repeated entries are joined (RFC 9110 §5.3)."""
    return purpose_in(context.invocation_metadata() or ())


def purpose_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the purpose in the metadata of a call, as `purpose_of`."""
    return ", ".join([str(value) for key, value in metadata if key == PURPOSE])


@dataclass(slots=True)
class ResponseSource:
    """What the response of the current call depends on, as far as the layers below have said so."""

    integration: Integration | None = None
    valid_until: datetime | None = None  # None: as long as the integration is unchanged
    entry: AuditEntry | None = None


response_source: ContextVar[ResponseSource | None] = ContextVar("response_source", default=None)
"""The source of the current call's response, of a method whose responses are reused."""


@dataclass(frozen=True, slots=True)
class _Kept:
    caller: object
    integration: Integration
    valid_until: datetime | None
    keys: object
    entry: AuditEntry
    response: bytes = field(repr=False)  # encrypted, as in the cache of integrations
    size: int  # in bytes, with the key, which the cache does not measure: a request may have 32 KiB


class ReusedResponses:
    """The responses that were sent last, up to `max_bytes`.

    `is_current` says whether an integration is still as it was read. `caller_name` is the one in audit entries, and
    `current_caller` the caller with its permissions: another object once the policy has changed. `usable_keys` are the
    data keys: another object once one of them is withdrawn.
    """

    def __init__(
        self,
        is_current: Callable[[Integration], bool],
        caller_name: Callable[[Context], str],
        current_caller: Callable[[], object],
        usable_keys: Callable[[], object],
        trail: AuditTrail,
        clock: Clock,
        *,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        self._is_current = is_current
        self._caller_name = caller_name
        self._current_caller = current_caller
        self._usable_keys = usable_keys
        self._trail = trail
        self._clock = clock
        self._aead = AESGCM(AESGCM.generate_key(256))
        self._kept: LRUCache[ResponseKey, _Kept] = LRUCache(max_bytes, getsizeof=attrgetter("size"))

    def key_of(self, raw: bytes, context: Context) -> ResponseKey:
        """The key of a call's response: caller, purpose and request."""
        return self._caller_name(context), purpose_of(context), raw

    def find(self, key: ResponseKey, max_size: int | None = None) -> bytes | None:
        """The response to send again, whose call is recorded; None if there is none, or if the audit queue is full.

        Raises `ResponseTooLarge` for one of more than `max_size` bytes.
        """
        kept = self._kept.get(key)
        if kept is None:
            return None
        now = self._clock()
        is_valid = kept.valid_until is None or now < kept.valid_until
        if (
            not is_valid
            or kept.caller is not self._current_caller()
            or kept.keys is not self._usable_keys()
            or not self._is_current(kept.integration)
        ):
            del self._kept[key]
            return None
        if max_size is not None and len(kept.response) > max_size:
            raise ResponseTooLarge.of_batch()
        if not self._trail.enqueue_again(kept.entry, now):
            return None
        nonce, encrypted = kept.response[:_NONCE_BYTES], kept.response[_NONCE_BYTES:]
        return self._aead.decrypt(nonce, encrypted, key[-1])

    async def keep(self, key: ResponseKey, call: Awaitable[Message]) -> bytes:
        """Await the response of a call, and keep it if it can be sent again. Returns it encoded."""
        source = ResponseSource()
        token = response_source.set(source)
        try:
            response = await call
        finally:
            response_source.reset(token)
        encoded = response.SerializeToString()
        if source.integration is not None and source.entry is not None:
            self.put(key, encoded, source.integration, source.valid_until, source.entry)
        return encoded

    def put(
        self,
        key: ResponseKey,
        response: bytes,
        integration: Integration,
        valid_until: datetime | None,
        entry: AuditEntry,
    ) -> None:
        """Keep a response that depends on nothing but these.

        Not that of an integration with an OAuth client of its own: the client changes without the integration.
        """
        if integration.oauth_client:
            return
        nonce = os.urandom(_NONCE_BYTES)
        encrypted = nonce + self._aead.encrypt(nonce, response, key[-1])
        size = sum(map(len, key)) + len(encrypted) + _OVERHEAD_BYTES
        if size <= self._kept.maxsize:
            self._kept[key] = _Kept(
                self._current_caller(), integration, valid_until, self._usable_keys(), entry, encrypted, size
            )
