"""Records calls in the audit trail: the caller, the user and integration, and the outcome.

Which RPCs are recorded is declared in the contract. Calls that are rejected before this interceptor are logged, not
recorded: otherwise anybody could fill the trail.
"""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog
from google.protobuf.message import Message

from integration_server.domain.audit import SUCCESS, Action, AuditEntry
from integration_server.domain.errors import IntegrationServerError, StoreUnavailable
from integration_server.rpc.interceptors import Behavior, CallerLookup, Context, Interceptor
from integration_server.rpc.methods import Method
from integration_server.service.audit.audit_trail import AuditTrail, get_audit_user
from integration_server.service.common_types import Clock

_PURPOSE = "x-purpose"
_MAX_TEXT_LENGTH = 128
_MAX_DETAILS_LENGTH = 512
_MAX_WRITE_WAIT = timedelta(seconds=2)
"""The change is already made when its entry is written: a caller that waits longer would repeat it."""


def record_audit(trail: AuditTrail, caller_of: CallerLookup, clock: Clock) -> Interceptor:
    """Record each call of a unary method with an audit action.

    A method that awaits its audit entry responds once the entry is stored, or after two seconds. For any other method
    the entry is queued. Raises `StoreUnavailable` if the queue is full: what is not recorded is not returned.
    """

    async def record(entry: AuditEntry) -> None:
        try:
            async with asyncio.timeout(_MAX_WRITE_WAIT.total_seconds()):
                await trail.record(entry)
        except TimeoutError:
            structlog.get_logger(__name__).warning(
                "audit_write_delayed", action=entry.action, integration_id=entry.integration_id
            )

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        action = method.audit_action
        if action is None or method.streams_requests or method.streams_responses:
            return behavior
        # A typed method of a provider's API has no path to record.
        is_typed_call = action is Action.CALL and "path" not in method.request_class.DESCRIPTOR.fields_by_name
        details = method.name if is_typed_call else ""

        async def respond(request: Message, context: Context) -> Message:
            # Read first: gRPC may have ended the call later, and then frees the context.
            entry = AuditEntry(clock(), caller_of(context), action, purpose=_purpose(context), details=details)
            try:
                response: Message = await behavior(request, context)
            except BaseException as error:
                trail.enqueue(_complete_entry(entry, _error_outcome(error), request))
                raise
            entry = _complete_entry(entry, _response_outcome(response), request, response)
            if method.awaits_audit:
                await record(entry)
            elif not trail.enqueue(entry):
                raise StoreUnavailable
            return response

        return respond

    return wrap


def _error_outcome(error: BaseException) -> str:
    if isinstance(error, IntegrationServerError):
        return error.reason
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"


def _response_outcome(response: Message) -> str:
    """Return `SUCCESS`, or the reason of a response with `success` false."""
    return SUCCESS if getattr(response, "success", True) else _sanitize(getattr(response, "reason", "")) or "FAILED"


def _complete_entry(entry: AuditEntry, outcome: str, *messages: Message) -> AuditEntry:
    """Return the entry with its outcome, and with the integration that the call's messages name."""
    return replace(
        entry,
        user_id=_sanitize(_field("user_id", *messages) or get_audit_user()),
        integration_id=_field("integration_id", *messages) or 0,
        integration_type=_sanitize(_field("integration_type", *messages) or ""),
        outcome=outcome,
        details=entry.details or _details(*messages),
    )


def _details(*messages: Message) -> str:
    """Return method, path and status of a provider call; never query or body, which may hold secrets."""
    parts = (_field(name, *messages) for name in ("method", "path", "status_code"))
    return _sanitize(" ".join(str(part) for part in parts if part), _MAX_DETAILS_LENGTH)


def _field(name: str, *messages: Message) -> Any:  # noqa: ANN401  # the field's type
    """Return the first value of a field in the messages or in their `integration`."""
    for message in messages:
        for source in (message, getattr(message, "integration", None)):
            if value := getattr(source, name, None):
                return value
    return None


def _purpose(context: Context) -> str:
    """Return the purpose in the call's metadata, truncated; empty without one."""
    given = next((value for key, value in context.invocation_metadata() or () if key == _PURPOSE), "")
    return _sanitize(str(given))


def _sanitize(text: str, max_length: int = _MAX_TEXT_LENGTH) -> str:
    """Return the printable part of a caller's text, truncated: it may be the reason for the rejection."""
    return "".join(filter(str.isprintable, text))[:max_length]
