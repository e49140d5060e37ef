"""Errors to statuses, once, for every RPC.

An error of ours becomes its status code with `google.rpc.ErrorInfo`, `BadRequest` for fields and `RetryInfo` where
waiting helps. Anything else is a fault of this program: it is logged, and the caller learns nothing of it.
"""

import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import NoReturn

import grpc
import structlog
from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from integration_server.domain import errors
from integration_server.domain.errors import IntegrationServerError, InvalidField
from integration_server.rpc.interceptors import (
    Context,
    Handler,
    Payload,
    stream_behaviour,
    unary_behaviour,
    wrap_handler,
)

DOMAIN = "integrations.v1"

_CODES: dict[type[IntegrationServerError], int] = {
    errors.InvalidField: code_pb2.INVALID_ARGUMENT,
    errors.RedirectUriNotAllowed: code_pb2.INVALID_ARGUMENT,
    errors.IntegrationNotFound: code_pb2.NOT_FOUND,
    errors.UnknownIntegrationType: code_pb2.INVALID_ARGUMENT,
    errors.ProviderNotConfigured: code_pb2.FAILED_PRECONDITION,
    errors.StateInvalid: code_pb2.INVALID_ARGUMENT,
    errors.StateExpired: code_pb2.FAILED_PRECONDITION,
    errors.StateUsed: code_pb2.FAILED_PRECONDITION,
    errors.UserMismatch: code_pb2.PERMISSION_DENIED,
    errors.IssuerMismatch: code_pb2.INVALID_ARGUMENT,
    errors.AccountMismatch: code_pb2.FAILED_PRECONDITION,
    errors.ConfirmationInvalid: code_pb2.INVALID_ARGUMENT,
    errors.IntegrationPending: code_pb2.FAILED_PRECONDITION,
    errors.IntegrationInactive: code_pb2.FAILED_PRECONDITION,
    errors.ReauthorizationRequired: code_pb2.FAILED_PRECONDITION,
    errors.ScopeMissing: code_pb2.FAILED_PRECONDITION,
    errors.WebhooksNotSupported: code_pb2.FAILED_PRECONDITION,
    errors.CursorExpired: code_pb2.FAILED_PRECONDITION,
    errors.CredentialsUnreadable: code_pb2.DATA_LOSS,
    errors.StoreUnavailable: code_pb2.UNAVAILABLE,
    errors.ServerStopping: code_pb2.UNAVAILABLE,
    errors.QuotaExceeded: code_pb2.RESOURCE_EXHAUSTED,
    errors.CallerNotAllowed: code_pb2.PERMISSION_DENIED,
    errors.ApiNotDeclared: code_pb2.FAILED_PRECONDITION,
    errors.RateLimited: code_pb2.RESOURCE_EXHAUSTED,
    errors.ResponseTooLarge: code_pb2.RESOURCE_EXHAUSTED,
    errors.ResourceNotFound: code_pb2.NOT_FOUND,
    errors.ResourceAlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.EtagMismatch: code_pb2.ABORTED,
    errors.SyncTokenExpired: code_pb2.FAILED_PRECONDITION,
    errors.ProviderUnavailable: code_pb2.UNAVAILABLE,
    errors.ProviderRejected: code_pb2.FAILED_PRECONDITION,
    errors.ProviderMisconfigured: code_pb2.UNAVAILABLE,
}


def status_of(error: IntegrationServerError) -> status_pb2.Status:
    """The error as a `google.rpc.Status`."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if isinstance(error, InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.problem)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        details.append(retry)
    return status_pb2.Status(code=_code_of(error), message=str(error), details=map(_pack, details))


def _code_of(error: IntegrationServerError) -> int:
    # Providers of other packages may raise kinds of their own below ours.
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def _pack(message: Message) -> PackedMessage:
    packed = PackedMessage()
    packed.Pack(message)
    return packed


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers what a handler raises with the status that it means, also in the midst of a stream of answers."""

    def __init__(self) -> None:
        self._log = structlog.get_logger(__name__)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return handler

        async def respond(request: Payload, context: Context) -> Payload:
            try:
                return await unary_behaviour(handler)(request, context)
            except Exception as error:
                return await self._abort(error, method, context)

        async def respond_stream(request: Payload, context: Context) -> AsyncGenerator[Payload, None]:
            try:
                async with aclosing(stream_behaviour(handler)(request, context)) as stream:
                    async for response in stream:
                        yield response
            except Exception as error:
                await self._abort(error, method, context)

        return wrap_handler(handler, respond, respond_stream)

    async def _abort(self, error: Exception, method: str, context: Context) -> NoReturn:
        """End a call with the status of what was raised."""
        if isinstance(error, grpc.aio.AbortError):
            raise error  # the handler has given its own status
        if isinstance(error, IntegrationServerError):
            self._log.info("rpc_rejected", method=method, reason=error.reason)
            status = rpc_status.to_status(status_of(error))
        else:
            # An exception's text may quote what it choked on, so only its kind and place are logged.
            stack = "".join(traceback.format_tb(error.__traceback__))
            self._log.error("unhandled_exception", method=method, kind=type(error).__qualname__, stack=stack)
            status = rpc_status.to_status(status_pb2.Status(code=code_pb2.INTERNAL, message="internal error"))
        await context.abort(status.code, status.details, status.trailing_metadata)
