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
from integration_server.rpc.handlers import Handler
from integration_server.service.auditing import AuditTrail, told_user
from integration_server.service.ports import Clock
from integrations.v1 import google_calendar_pb2, integration_service_pb2

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_SERVICE = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"].full_name
_CALENDARS = google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"].full_name

CHANGES: Mapping[str, Action] = {
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

READS: Mapping[str, Action] = {
    f"/{_SERVICE}/GetCredentials": Action.READ_CREDENTIALS,
    f"/{_SERVICE}/ListWebhookEvents": Action.READ_WEBHOOKS,
    f"/{_SERVICE}/AckWebhookEvents": Action.ACK_WEBHOOKS,  # moves nothing but the reader's own place
    f"/{_CALENDARS}/ListCalendars": Action.CALL,
    f"/{_CALENDARS}/ListEvents": Action.CALL,
}

NOT_AUDITED = frozenset(
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
_LONGEST_TEXT = 128
_LONGEST_DETAILS = 512
_LONGEST_WAIT = timedelta(seconds=2)
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
        action = CHANGES.get(method) or READS.get(method)
        if handler is None or handler.unary_unary is None or action is None:
            return handler
        behaviour: Any = handler.unary_unary  # typed for threads only

        async def answer(request: Message, context: Context) -> Message:
            # Before the work: gRPC may have ended the call by its end, and its context must not be touched then.
            own = method.rpartition("/")[2] if method.startswith(f"/{_CALENDARS}/") else ""
            entry = AuditEntry(self._clock(), self._caller_of(context), action, purpose=_purpose(context), details=own)
            try:
                response: Message = await behaviour(request, context)
            except BaseException as error:
                self._trail.note(_about(entry, _kind_of(error), request))
                raise
            await self._tell(_about(entry, _outcome_of(response), request, response), waits=method in CHANGES)
            return response

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _tell(self, entry: AuditEntry, *, waits: bool) -> None:
        if not waits:
            if not self._trail.note(entry):
                raise StoreUnavailable  # what cannot be told of is not handed out
            return
        try:
            async with asyncio.timeout(_LONGEST_WAIT.total_seconds()):
                await self._trail.record(entry)
        except TimeoutError:
            self._log.warning("audit_entry_waits", action=entry.action, integration_id=entry.integration_id)


def _kind_of(error: BaseException) -> str:
    if isinstance(error, IntegrationServerError):
        return error.reason
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"


def _outcome_of(response: Message) -> str:
    """Success, or why the answer says that it is none: refused at the provider, or still to be confirmed."""
    return SUCCESS if getattr(response, "success", True) else _fit(getattr(response, "reason", "")) or "FAILED"


def _about(entry: AuditEntry, outcome: str, *messages: Message) -> AuditEntry:
    """The entry with its outcome, and with what the call's messages say of the integration."""
    return replace(
        entry,
        user_id=_fit(_field("user_id", *messages) or told_user()),
        integration_id=_field("integration_id", *messages) or 0,
        integration_type=_fit(_field("integration_type", *messages) or ""),
        outcome=outcome,
        details=entry.details or _details(*messages),
    )


def _details(*messages: Message) -> str:
    """What was asked of a provider and how it answered: never a query or a body, where secrets and persons may be."""
    told = (_field(name, *messages) for name in ("method", "path", "status_code"))
    return _fit(" ".join(str(part) for part in told if part), _LONGEST_DETAILS)


def _field(name: str, *messages: Message) -> Any:  # noqa: ANN401  # of the type that the contract gives it
    """The first value that a call's messages have for a field, also within an integration that one carries."""
    for message in messages:
        for holder in (message, getattr(message, "integration", None)):
            if value := getattr(holder, name, None):
                return value
    return None


def _purpose(context: Context) -> str:
    """What the caller gave as the reason, in the metadata; cut to what is fit to keep."""
    given = next((value for key, value in context.invocation_metadata() or () if key == _PURPOSE), "")
    return _fit(str(given))


def _fit(text: str, longest: int = _LONGEST_TEXT) -> str:
    """What a caller gave, cut to what can be kept: it may have been refused for the very text."""
    return "".join(filter(str.isprintable, text))[:longest]
