"""The interceptor that records calls in the audit trail: what their entries say, and whether a call waits for its own.

The contract declares for which methods.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, Self

import structlog
from google.protobuf.message import Message

from integration_server.domain.audit import SUCCESS, Action, AuditEntry
from integration_server.domain.audit_queue import READS
from integration_server.domain.errors import IntegrationServerError, InvalidField, StoreUnavailable
from integration_server.domain.integration import Integration
from integration_server.domain.text import control_character_problem
from integration_server.rpc.interceptors import first_request
from integration_server.rpc.methods import Behavior, CallerLookup, Context, Interceptor, Method
from integration_server.rpc.request_streams import RequestStream
from integration_server.service.audit.audit_trail import AuditTrail, audit_user
from integration_server.service.common_types import Clock

_CLIENT_FIELDS: Mapping[str, str] = {
    Action.CONNECT: "oauth_client",
    Action.PUT_OAUTH_CLIENT: "name",
    Action.DELETE_OAUTH_CLIENT: "name",
}
"""The fields of requests that name an OAuth client, which is then a detail of the audit entry."""
_CONDITIONS: Mapping[str, Sequence[str]] = {
    Action.FIND_INTEGRATIONS: ("count_only", "status", "account_id"),
    Action.READ_DUE_WORK: ("oldest_only", "job"),
    Action.READ_AUDIT_ENTRIES: ("action", "caller"),
}
"""The conditions of operators' reads, which are details of the audit entry; a text that others choose comes last."""
_CANCELLED = "CANCELLED"  # the outcome of a call that its client has ended
_MAX_AUDIT_WAIT = 2.0  # seconds: the change is already made, and a caller that waits longer would repeat it


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


RecordItem = Callable[[str, int, str], Awaitable[AuditEntry | None]]
"""Records an item of the current call: user, integration, outcome. Returns its entry, if calls are recorded.

Waits while the queue is full, unless the call has ended, and then raises `StoreUnavailable`: what is not recorded is
not returned.
"""

record_item: ContextVar[RecordItem] = ContextVar("record_item")
"""Set for methods whose items are recorded one by one (`Method.records_items`)."""


def record_audit(trail: AuditTrail, caller_of: CallerLookup, clock: Clock) -> Interceptor:
    """Record each call of a method with an audit action; a stream once, at its end.

    A method on many items records each item by itself (`record_item`). The call has an entry only if it fails as a
    whole, which its client has not caused by going away.

    A method that awaits its audit entry responds once the entry is stored, or after two seconds. For any other method
    the entry is queued. While the queue is full, a read waits before it responds, and any other call before it begins.
    Raises `StoreUnavailable` if it stays full: what is not recorded is not returned, and changes nothing. Raises
    `InvalidField` for a purpose with control characters.
    """

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        action = method.audit_action
        if action is None:
            return behavior
        # A typed method of a provider's API has no path to record.
        is_typed_call = action is Action.CALL and "path" not in method.request_class.DESCRIPTOR.fields_by_name
        details = method.name if is_typed_call else ""
        recorder = _Recorder(trail, caller_of, clock, method, action, details, method.records_items)

        async def respond(request: Message, context: Context) -> Message:
            async with _Audited(recorder, request, context) as audited:
                response: Message = await behavior(request, context)
                audited.add(response)
            return response

        async def stream(request: Any, context: Context) -> AsyncGenerator[Message, None]:  # noqa: ANN401
            async with (
                _Audited(recorder, request, context) as audited,
                aclosing(behavior(request, context)) as responses,
            ):
                async for response in responses:
                    audited.add(response)
                    yield response

        return stream if method.streams_responses else respond

    return wrap


@dataclass(frozen=True, slots=True)
class _Recorder:
    """What the entries of a method's calls have in common."""

    trail: AuditTrail
    caller_of: CallerLookup
    clock: Clock
    method: Method
    action: Action
    details: str
    records_items: bool

    @property
    def is_read(self) -> bool:
        """Whether the calls change nothing."""
        return self.action in READS

    async def record(self, entry: AuditEntry) -> None:
        """Wait until an entry is stored, but not for long."""
        try:
            async with asyncio.timeout(_MAX_AUDIT_WAIT):
                await self.trail.record(entry)
        except TimeoutError:
            structlog.get_logger(__name__).warning(
                "audit_write_delayed", action=entry.action, integration_id=entry.integration_id
            )

    async def put(self, entry: AuditEntry, *, waits: bool = True) -> None:
        """Queue an entry, if necessary after a wait for room. Raises `StoreUnavailable`."""
        if not self.trail.queue.enqueue(entry):
            await self.trail.enqueue_later(entry, waits=waits)

    async def record_item(
        self, caller: str, purpose: str, user_id: str, integration_id: int, outcome: str
    ) -> AuditEntry:
        """Queue the entry of an item. Raises `StoreUnavailable`."""
        entry = AuditEntry(self.clock(), caller, self.action, user_id, integration_id, "", outcome, purpose)
        await self.put(entry, waits=outcome != _CANCELLED)
        return entry


class _Audited:
    """A call with an audit entry, for an `async with` block; of its responses the first is kept."""

    def __init__(self, recorder: _Recorder, request: Any, context: Context) -> None:  # noqa: ANN401  # as above
        self._recorder = recorder
        self._time = recorder.clock()
        self._caller = recorder.caller_of(context)
        # Read first: gRPC may have ended the call later, and then frees the context.
        self._purpose = purpose_of(context)
        self._request = request
        self._first_request: Message = first_request(request)
        self._response: Message | None = None
        self._received = 0

    async def __aenter__(self) -> Self:
        if self._recorder.records_items:
            record_item.set(partial(self._recorder.record_item, self._caller, self._purpose))
        if not self._recorder.is_read:
            await self._recorder.trail.wait_for_room(self._recorder.action)
        try:
            _require_valid_purpose(self._purpose)
        except InvalidField as error:
            await self._record_error(error)
            raise
        return self

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            await self._record_error(error)
            return
        if self._recorder.records_items:
            return
        entry = self._entry(_response_outcome(self._response))
        if (source := response_source.get()) is not None:
            source.entry = entry
        if self._recorder.method.awaits_audit:
            await self._recorder.record(entry)
        elif self._recorder.is_read:
            await self._recorder.put(entry)
        else:
            self._recorder.trail.queue.append(entry)

    def add(self, response: Message) -> None:
        """Count a response."""
        self._response = self._response or response
        self._received += len(_field("body", response) or b"")

    async def _record_error(self, error: BaseException) -> None:
        """Record a call that fails. Its error stays the same if there is no room for its entry."""
        is_cancelled = not isinstance(error, Exception)
        if self._recorder.records_items and is_cancelled:
            return
        entry = self._entry(error_outcome(error))
        if self._recorder.is_read:
            with suppress(StoreUnavailable):
                await self._recorder.put(entry, waits=not is_cancelled)
        else:  # the change may be made all the same
            self._recorder.trail.queue.append(entry)

    def _entry(self, outcome: str) -> AuditEntry:
        """The entry of the call, with the integration that its messages name."""
        action, request = self._recorder.action, self._first_request
        messages = [request] if self._response is None else [request, self._response]
        client = _field(_CLIENT_FIELDS.get(action, ""), request)
        details = self._recorder.details or client or _conditions(action, request) or _details(*messages)
        if isinstance(self._request, RequestStream):
            details = f"{details}; {self._request.body_size} bytes sent, {self._received} received"
        return AuditEntry(
            self._time,
            self._caller,
            action,
            _field("user_id", *messages) or audit_user.get(),
            _field("integration_id", *messages) or 0,
            _field("integration_type", *messages) or "",
            outcome,
            self._purpose,
            details,
        )


def error_outcome(error: BaseException) -> str:
    """Return the outcome of what ends with an error: its reason."""
    if isinstance(error, IntegrationServerError):
        return error.reason
    return "INTERNAL" if isinstance(error, Exception) else _CANCELLED


def _response_outcome(response: Message | None) -> str:
    """Return `SUCCESS`, or the reason of a response with `success` false."""
    return SUCCESS if getattr(response, "success", True) else getattr(response, "reason", "") or "FAILED"


def _details(*messages: Message) -> str:
    """Return method, path and status of a provider call; never query or body, which may hold secrets."""
    parts = (_field(name, *messages) for name in ("method", "path", "status_code"))
    return " ".join(str(part) for part in parts if part)


def _conditions(action: Action, request: Any) -> str:  # noqa: ANN401  # a request with these fields
    """Return the conditions of an operator's read, as far as they were given."""
    names = [name for name in _CONDITIONS.get(action, ()) if getattr(request, name)]
    return " ".join(f"{name}={_value_text(request, name)}" for name in names)


def _value_text(request: Any, name: str) -> str:  # noqa: ANN401  # as `_conditions`
    enum_type, value = request.DESCRIPTOR.fields_by_name[name].enum_type, getattr(request, name)
    known = None if enum_type is None else enum_type.values_by_number.get(value)
    return str(value if known is None else known.name)


def _field(name: str, *messages: object) -> Any:  # noqa: ANN401  # the field's type
    """Return the first value of a field in the messages or in their `integration`."""
    for message in messages:
        message_class: Any = type(message)
        for read in _readers(message_class, name):
            if value := read(message):
                return value
    return None


@lru_cache(maxsize=4096)
def _readers(message_class: type[object], name: str) -> Sequence[Callable[[object], Any]]:
    """Return what reads a field of a message of this class, and of its `integration`, as far as they have it.

    An attempt to read a field that a message lacks costs more than many that succeed.
    """
    if not issubclass(message_class, Message):  # such as a response that is encoded
        return [lambda value: getattr(value, name, None)]
    own = message_class.DESCRIPTOR.fields_by_name
    nested = own["integration"].message_type if "integration" in own else None
    paths = [name] if name in own else []
    if nested is not None and name in nested.fields_by_name:
        paths.append(f"integration.{name}")
    return [attrgetter(path) for path in paths]


def _require_valid_purpose(purpose: str) -> None:
    if problem := control_character_problem(purpose):
        raise InvalidField(PURPOSE, problem)
