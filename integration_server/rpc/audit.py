"""Tells the audit trail of calls: who made them, on which user's integration, and how they ended.

What changes something is answered when its entry is written; credentials are only handed out when the entry is taken.
Calls that were not let in are in the log, not here: anybody could fill the trail with them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import Message

from integration_server.domain.audit import SUCCESS, Action, AuditEntry
from integration_server.domain.errors import IntegrationServerError, StoreUnavailable
from integration_server.rpc.interceptors import Handler
from integration_server.service.audit.audit_trail import AuditTrail, get_audit_user
from integration_server.service.common_types import Clock
from integrations.v1 import google_calendar_pb2, integration_service_pb2

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_SERVICE = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"].full_name
_CALENDARS = google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"].full_name

AUDITED_WRITES: Mapping[str, Action] = {
    f"/{_SERVICE}/Connect": Action.CONNECT,
    f"/{_SERVICE}/HandleCallback": Action.COMPLETE,
    f"/{_SERVICE}/ConfirmConnection": Action.CONFIRM,
    f"/{_SERVICE}/ConnectWithApiKey": Action.CONNECT,
    f"/{_SERVICE}/UpdateIntegration": Action.UPDATE,
    f"/{_SERVICE}/DisconnectIntegration": Action.DISCONNECT,
    f"/{_SERVICE}/RefreshToken": Action.REFRESH,
    f"/{_SERVICE}/SetWebhookSecret": Action.SET_WEBHOOK_SECRET,
    f"/{_SERVICE}/CallProvider": Action.CALL,
    f"/{_CALENDARS}/CreateEvent": Action.CALL,
    f"/{_CALENDARS}/UpdateEvent": Action.CALL,
    f"/{_CALENDARS}/DeleteEvent": Action.CALL,
}

AUDITED_READS: Mapping[str, Action] = {
    f"/{_SERVICE}/GetCredentials": Action.READ_CREDENTIALS,
    f"/{_SERVICE}/ListWebhookEvents": Action.READ_WEBHOOKS,
    f"/{_SERVICE}/AckWebhookEvents": Action.ACK_WEBHOOKS,  # moves nothing but the reader's own place
    f"/{_CALENDARS}/ListCalendars": Action.CALL,
    f"/{_CALENDARS}/ListEvents": Action.CALL,
}

UNAUDITED_METHODS = frozenset(
    f"/{_SERVICE}/{name}"
    for name in (
        "ListIntegrations",
        "GetIntegration",
        "CheckAllHealth",
        "CheckHealth",
        "ListHealthChecks",
        "ListIntegrationTypes",
        "GetWebhookEndpoint",
        "WatchIntegrations",
        "ReceiveWebhook",
    )
)
"""RPCs that change nothing and hand out nothing secret; and webhooks, of which anybody could send any number. A grant
that one has ended is told of by the use case."""

_PURPOSE = "x-purpose"
_MAX_TEXT_LENGTH = 128
_MAX_DETAILS_LENGTH = 512
_MAX_WRITE_WAIT = timedelta(seconds=2)
"""For an entry to be written. The change is made by then: an answer that never comes would only have it made again."""


class AuditInterceptor(grpc.aio.ServerInterceptor):
    """Stands before the handlers of unary calls; `caller_of` names who makes one."""

    def __init__(self, trail: AuditTrail, caller_of: Callable[[Context], str], clock: Clock) -> None:
        self._trail = trail
        self._caller_of = caller_of
        self._clock = clock
        self._log = structlog.get_logger(__name__)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        action = AUDITED_WRITES.get(method) or AUDITED_READS.get(method)
        if handler is None or handler.unary_unary is None or action is None:
            return handler
        behaviour: Any = handler.unary_unary  # typed for threads only

        async def respond(request: Message, context: Context) -> Message:
            # Before the work: gRPC may have ended the call by its end, and its context must not be touched then.
            method_name = method.rpartition("/")[2] if method.startswith(f"/{_CALENDARS}/") else ""
            entry = AuditEntry(
                self._clock(), self._caller_of(context), action, purpose=_purpose(context), details=method_name
            )
            try:
                response: Message = await behaviour(request, context)
            except BaseException as error:
                self._trail.enqueue(_complete_entry(entry, _error_outcome(error), request))
                raise
            await self._record(
                _complete_entry(entry, _response_outcome(response), request, response), wait=method in AUDITED_WRITES
            )
            return response

        return grpc.unary_unary_rpc_method_handler(
            respond,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _record(self, entry: AuditEntry, *, wait: bool) -> None:
        if not wait:
            if not self._trail.enqueue(entry):
                raise StoreUnavailable  # what cannot be told of is not handed out
            return
        try:
            async with asyncio.timeout(_MAX_WRITE_WAIT.total_seconds()):
                await self._trail.record(entry)
        except TimeoutError:
            self._log.warning("audit_write_delayed", action=entry.action, integration_id=entry.integration_id)


def _error_outcome(error: BaseException) -> str:
    if isinstance(error, IntegrationServerError):
        return error.reason
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"


def _response_outcome(response: Message) -> str:
    """Success, or why the answer says that it is none: refused at the provider, or still to be confirmed."""
    return SUCCESS if getattr(response, "success", True) else _sanitize(getattr(response, "reason", "")) or "FAILED"


def _complete_entry(entry: AuditEntry, outcome: str, *messages: Message) -> AuditEntry:
    """The entry with its outcome, and with what the call's messages say of the integration."""
    return replace(
        entry,
        user_id=_sanitize(_field("user_id", *messages) or get_audit_user()),
        integration_id=_field("integration_id", *messages) or 0,
        integration_type=_sanitize(_field("integration_type", *messages) or ""),
        outcome=outcome,
        details=entry.details or _details(*messages),
    )


def _details(*messages: Message) -> str:
    """What was asked of a provider and how it answered: never a query or a body, where secrets and persons may be."""
    parts = (_field(name, *messages) for name in ("method", "path", "status_code"))
    return _sanitize(" ".join(str(part) for part in parts if part), _MAX_DETAILS_LENGTH)


def _field(name: str, *messages: Message) -> Any:  # noqa: ANN401  # of the type that the contract gives it
    """The first value that a call's messages have for a field, also within an integration that one carries."""
    for message in messages:
        for source in (message, getattr(message, "integration", None)):
            if value := getattr(source, name, None):
                return value
    return None


def _purpose(context: Context) -> str:
    """What the caller gave as the reason, in the metadata; cut to what is fit to keep."""
    given = next((value for key, value in context.invocation_metadata() or () if key == _PURPOSE), "")
    return _sanitize(str(given))


def _sanitize(text: str, max_length: int = _MAX_TEXT_LENGTH) -> str:
    """What a caller gave, cut to what can be kept: it may have been refused for the very text."""
    return "".join(filter(str.isprintable, text))[:max_length]
