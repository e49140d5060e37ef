"""The hot path of `GetCredentials`: one function that sends a response again.

Backends ask for credentials before each request to a provider. A call is *admitted* if a call with the same credential
(token, or certificate) has passed authentication and authorization before, and nothing that these depend on has
changed since. An admitted call counts for the caller's quota, its request is read, and if an equal call has had a
response that is still valid (reused_responses.py), it is recorded and gets that response: without being decoded, and
without a task, timer or query of its own. Every other call takes the general path, through all interceptors.

The defences of both paths are the same objects: the quota, the reader of requests, the audit trail.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from cachetools import LRUCache

from integration_server.domain.errors import QuotaExceeded
from integration_server.rpc.authentication import current_identity
from integration_server.rpc.authorization import Caller, current_caller, set_current_caller
from integration_server.rpc.interceptors import (
    CallerLookup,
    CallQuota,
    Interceptor,
    RecordCall,
    RequestReader,
    compose,
    decode_request,
)
from integration_server.rpc.methods import Behavior, Context, Metadata, Method
from integration_server.rpc.reused_responses import ResponseKey, ReusedResponses, purpose_in
from integration_server.service.common_types import Clock

_ADMISSIONS = 10_000  # as many as verified tokens

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
class Callers:
    """How callers are named in audit entries and in quotas. `basis` is None where callers are not authenticated."""

    audited: CallerLookup
    quota_key: CallerLookup
    address: CallerLookup
    basis: AuthenticationBasis | None


class HotPath:
    """Wraps methods whose responses are repeated. Calling it is a `HotPath` of interceptors.py."""

    def __init__(
        self,
        interceptors: PathInterceptors,
        callers: Callers,
        quota: CallQuota,
        reader: RequestReader,
        responses: ReusedResponses,
        clock: Clock,
        record: RecordCall = lambda *_: None,
    ) -> None:
        self._interceptors = interceptors
        self._callers = callers
        self._basis = callers.basis or tuple
        self._quota = quota
        self._reader = reader
        self._responses = responses
        self._clock = clock
        self._record = record
        # By digest: a memory dump has no tokens.
        self._admissions: LRUCache[bytes, _Admission] = LRUCache(_ADMISSIONS)

    def __call__(self, method: Method, behavior: Behavior) -> Callable[[Metadata], Behavior]:
        """Compose both paths of a method."""
        reader, responses, quota, record = self._reader, self._responses, self._quota, self._record
        convert, find_admission = self._interceptors.convert, self._find_admission
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

        def bind(metadata: Metadata) -> Behavior:
            async def respond(_requests: object, context: Context) -> bytes:
                begin = time.perf_counter()
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
                    record(method, "OK", "", time.perf_counter() - begin)
                    return response
                finally:
                    quota.end(quota_key)

            return respond

        return bind

    def _find_admission(self, metadata: Metadata, context: Context) -> _Admission | None:
        credential = self._credential_of(metadata, context)
        admission = None if credential is None else self._admissions.get(credential)
        if admission is None or admission.basis != self._basis():
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
            return sha256(str(entries[0]).encode()).digest()
        certificates = () if entries else tuple((context.auth_context() or {}).get("x509_pem_cert", ()))
        return sha256(b"\0" + certificates[0]).digest() if len(certificates) == 1 else None
