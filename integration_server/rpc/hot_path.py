"""The hot path of `GetCredentials`: responses that are sent again, and the one function that does so.

Backends ask for credentials before each request to a provider. A call is *admitted* if a call with the same credential
(token, or certificate) has passed authentication and authorization before, and nothing that these depend on has
changed since. An admitted call counts for the caller's quota, its request is read, and if an equal call has had a
response that is still valid, it is recorded and gets that response: without being decoded, and
without a task, timer or query of its own. Every other call takes the general path, through all interceptors.

The defences of both paths are the same objects: the quota, the reader of requests, the audit trail.

Responses are kept encrypted. A call with the bytes of an earlier one, by the same caller under the same policy, gets
the earlier response as long as the integration is unchanged in the cache, the credentials last as long as the call asks
for, and the data keys are those that decrypted them. Only responses of successful calls are kept.
"""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from operator import attrgetter

from cachetools import LRUCache
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import Message

from integration_server.domain.audit import AuditEntry
from integration_server.domain.audit_queue import AuditQueue
from integration_server.domain.call_quota import CallQuota
from integration_server.domain.callers import Caller, current_caller, set_current_caller
from integration_server.domain.errors import QuotaExceeded, ResponseTooLarge
from integration_server.domain.integration import Integration
from integration_server.observability.observed_calls import CallIdReader, ObservedCalls, ObservedMethod, call_metadata
from integration_server.rpc.authentication import current_identity
from integration_server.rpc.call_audit import ResponseSource, purpose_in, purpose_of, response_source
from integration_server.rpc.interceptors import RecordCall, RequestReader, compose, decode_request
from integration_server.rpc.methods import Behavior, CallerLookup, Context, Interceptor, Metadata, Method
from integration_server.service.common_types import Clock

_ADMISSIONS = 10_000  # as many as verified tokens
_OVERHEAD_BYTES = 3 * 1024  # of the objects around a key and a response: among them an integration
_NONCE_BYTES = 12  # of AES-GCM

ResponseKey = tuple[str, str, bytes]
"""The caller, the purpose and the bytes of a request."""

# --- responses that are sent again ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ReusedResponse:
    """A response that was sent, and what has to be unchanged to send it again."""

    caller: object
    integration: Integration
    valid_until: datetime | None
    keys: object
    entry: AuditEntry
    nonce: bytes = field(repr=False)
    encrypted: bytes = field(repr=False)
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
        audit_queue: AuditQueue,
        clock: Clock,
        *,
        max_bytes: int,
    ) -> None:
        self._is_current = is_current
        self._caller_name = caller_name
        self._current_caller = current_caller
        self._usable_keys = usable_keys
        self._audit_queue = audit_queue
        self._clock = clock
        self._aead = AESGCM(AESGCM.generate_key(256))
        self._responses: LRUCache[ResponseKey, _ReusedResponse] = LRUCache(max_bytes, getsizeof=attrgetter("size"))

    def key_of(self, raw: bytes, context: Context) -> ResponseKey:
        """The key of a call's response: caller, purpose and request."""
        return self._caller_name(context), purpose_of(context), raw

    def find(self, key: ResponseKey, max_size: int | None = None) -> bytes | None:
        """The response to send again, whose call is recorded; None if there is none, or if the audit queue is full.

        Raises `ResponseTooLarge` for one of more than `max_size` bytes.
        """
        try:
            found = self._responses[key]  # LRUCache.get takes twice the time
        except KeyError:
            return None
        now = self._clock()
        is_valid = found.valid_until is None or now < found.valid_until
        if (
            not is_valid
            or found.caller is not self._current_caller()
            or found.keys is not self._usable_keys()
            or not self._is_current(found.integration)
        ):
            del self._responses[key]
            return None
        if max_size is not None and len(found.encrypted) > max_size:
            raise ResponseTooLarge.of_batch()
        if not self._audit_queue.enqueue_again(found.entry, now):
            return None
        return self._aead.decrypt(found.nonce, found.encrypted, key[-1])

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
        encrypted = self._aead.encrypt(nonce, response, key[-1])
        size = sum(map(len, key)) + len(encrypted) + _OVERHEAD_BYTES
        if size <= self._responses.maxsize:
            self._responses[key] = _ReusedResponse(
                self._current_caller(), integration, valid_until, self._usable_keys(), entry, nonce, encrypted, size
            )


# --- the path ---------------------------------------------------------------------------------------------------------

AuthenticationBasis = Callable[[], object]
"""What authentication and authorization depend on besides the call: unequal once the policy or a key has changed."""


@dataclass(frozen=True, slots=True)
class _Admission:
    """What authentication and authorization have found out about the calls with one credential."""

    caller: Caller | None  # None: callers are not authenticated
    name: str  # in audit entries
    quota_key: str
    expire_time: datetime | None
    basis: object


@dataclass(frozen=True, slots=True)
class PathInterceptors:
    """The interceptors of the general path: `convert_errors`, those before the request is read, and those after."""

    convert: Interceptor
    admit: Sequence[Interceptor]
    process: Sequence[Interceptor]


@dataclass(frozen=True, slots=True)
class CallerNames:
    """How callers are named in audit entries and in quotas. `basis` is None where callers are not authenticated."""

    audited: CallerLookup
    quota_key: CallerLookup
    address: CallerLookup
    basis: AuthenticationBasis | None


class HotPath:
    """Wraps methods whose responses are repeated. Calling it is a `WrapHotPath` of server.py."""

    def __init__(
        self,
        interceptors: PathInterceptors,
        callers: CallerNames,
        quota: CallQuota,
        reader: RequestReader,
        responses: ReusedResponses,
        clock: Clock,
        record: RecordCall = lambda *_: None,
        calls: ObservedCalls | None = None,
    ) -> None:
        self._interceptors = interceptors
        self._callers = callers
        self._basis = callers.basis or tuple
        self._quota = quota
        self._reader = reader
        self._responses = responses
        self._clock = clock
        self._record = record
        self._calls = calls or ObservedCalls(CallIdReader(str, str))
        # By digest: a memory dump has no tokens.
        self._admissions: LRUCache[bytes, _Admission] = LRUCache(_ADMISSIONS)

    def __call__(self, method: Method, behavior: Behavior) -> Behavior:
        """Compose both paths of a method."""
        reader, responses, quota, record = self._reader, self._responses, self._quota, self._record
        convert, find_admission = self._interceptors.convert, self._find_admission
        note_repeated, observed_method = self._calls.note_repeated, ObservedMethod(method.path)
        process = compose(method, behavior, (decode_request, *self._interceptors.process))

        async def respond_first(metadata: Metadata, context: Context) -> bytes:
            admission = self._admit(metadata, context)
            raw = await reader.read(context)
            key = admission.name, purpose_in(metadata), raw
            return await responses.keep(key, process(raw, context))

        general = compose(method, respond_first, (convert, *self._interceptors.admit))

        async def respond_again(key: ResponseKey, context: Context) -> bytes:
            return await responses.keep(key, process(key[-1], context))

        respond_admitted = compose(method, respond_again, (convert,))

        async def raise_error(error: BaseException, _context: Context) -> bytes:
            raise error

        fail = compose(method, raise_error, (convert,))

        async def respond(_requests: object, context: Context) -> bytes:
            begin = time.perf_counter()
            metadata = call_metadata.get()
            admission = find_admission(metadata, context)
            if admission is None:
                return await general(metadata, context)  # type: ignore[no-any-return]
            set_current_caller(admission.caller)
            quota_key = admission.quota_key
            try:
                quota.begin(quota_key)
            except QuotaExceeded as error:
                return await fail(error, context)  # type: ignore[no-any-return]
            try:
                try:
                    raw = await reader.read(context)
                except BaseException as error:
                    return await fail(error, context)  # type: ignore[no-any-return]
                key = admission.name, purpose_in(metadata), raw
                response = responses.find(key)
                if response is None:
                    return await respond_admitted(key, context)  # type: ignore[no-any-return]
                seconds = time.perf_counter() - begin
                record(method, "OK", "", seconds)
                note_repeated(observed_method, metadata, context, seconds, admission.name)
                return response
            finally:
                quota.end(quota_key)

        return respond

    def _find_admission(self, metadata: Metadata, context: Context) -> _Admission | None:
        credential = self._credential_of(metadata, context)
        if credential is None:
            return None
        try:
            admission = self._admissions[credential]
        except KeyError:
            return None
        if admission.basis != self._basis():
            return None
        return None if admission.expire_time is not None and self._clock() >= admission.expire_time else admission

    def _admit(self, metadata: Metadata, context: Context) -> _Admission:
        """Admit the calls with the credential of this one, which authentication and authorization have passed."""
        callers = self._callers
        expire_time = None if callers.basis is None else current_identity().expire_time
        names = callers.audited(context), callers.quota_key(context)
        admission = _Admission(current_caller(), *names, expire_time, self._basis())
        credential = self._credential_of(metadata, context)
        if credential is not None:
            self._admissions[credential] = admission
        return admission

    def _credential_of(self, metadata: Metadata, context: Context) -> bytes | None:
        """A digest of what the caller is authenticated by; None if that takes the general path.

        Where callers are not authenticated, it is the address by which they are named.
        """
        if self._callers.basis is None:
            is_sidecar = context.peer().startswith("unix:")
            return None if is_sidecar else self._callers.address(context).encode()
        entries = [value for key, value in metadata if key == "authorization"]
        if len(entries) == 1:
            return blake2b(str(entries[0]).encode()).digest()
        certificates = () if entries else tuple((context.auth_context() or {}).get("x509_pem_cert", ()))
        return blake2b(b"\0" + certificates[0]).digest() if len(certificates) == 1 else None
