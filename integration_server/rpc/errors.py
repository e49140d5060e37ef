"""Conversion of errors to statuses: the only place, for every RPC.

A domain error becomes its status code with `google.rpc.ErrorInfo`, `BadRequest` for fields, and `RetryInfo` where a
retry can succeed. Any other error is a bug in this program: it is logged, and the caller gets INTERNAL without details.
"""

import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import any as any_message
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from integration_server.domain import errors
from integration_server.domain.errors import IntegrationServerError, InvalidField

DOMAIN = "integrations.v1"

_ERRORS: dict[int, Sequence[type[IntegrationServerError]]] = {
    code_pb2.INVALID_ARGUMENT: (
        errors.InvalidField,
        errors.RedirectUriNotAllowed,
        errors.UnknownIntegrationType,
        errors.StateInvalid,
        errors.IssuerMismatch,
        errors.ConfirmationInvalid,
    ),
    code_pb2.NOT_FOUND: (errors.IntegrationNotFound, errors.ResourceNotFound),
    code_pb2.ALREADY_EXISTS: (errors.ResourceAlreadyExists,),
    code_pb2.PERMISSION_DENIED: (errors.UserMismatch, errors.CallerNotAllowed),
    code_pb2.RESOURCE_EXHAUSTED: (errors.QuotaExceeded, errors.RateLimited, errors.ResponseTooLarge),
    code_pb2.FAILED_PRECONDITION: (
        errors.ProviderNotConfigured,
        errors.StateExpired,
        errors.StateUsed,
        errors.AccountMismatch,
        errors.IntegrationPending,
        errors.IntegrationInactive,
        errors.ReauthorizationRequired,
        errors.ScopeMissing,
        errors.WebhooksNotSupported,
        errors.CursorExpired,
        errors.ApiNotDeclared,
        errors.SyncTokenExpired,
        errors.ProviderRejected,
    ),
    code_pb2.ABORTED: (errors.EtagMismatch,),
    code_pb2.UNAVAILABLE: (
        errors.StoreUnavailable,
        errors.ServerStopping,
        errors.ProviderUnavailable,
        errors.ProviderMisconfigured,
    ),
    code_pb2.DATA_LOSS: (errors.CredentialsUnreadable,),
}
_CODES = {error: code for code, classes in _ERRORS.items() for error in classes}


class Unauthenticated(Exception):
    """The caller has no valid identity. `str()` is for the log only, and quotes nothing that the caller sent."""


def status_of(error: Exception) -> status_pb2.Status:
    """Return the `google.rpc.Status` of an error; any error that is not ours is INTERNAL."""
    if not isinstance(error, IntegrationServerError):
        return status_pb2.Status(code=code_pb2.INTERNAL, message="internal error")
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if isinstance(error, InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.problem)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=error.retry_after))
    # Providers of other packages may raise their own subclasses.
    code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    return status_pb2.Status(code=code, message=str(error), details=map(any_message.pack, details))


async def abort_call(
    error: Exception, method: str, context: grpc.aio.ServicerContext[Any, Any], caller: str = ""
) -> NoReturn:
    """Log an error and end the call with its status. A status that a handler has set itself is kept."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    log = structlog.get_logger(__name__)
    if isinstance(error, Unauthenticated):
        log.info("unauthenticated", method=method, problem=str(error))
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the caller is not known")
    if isinstance(error, IntegrationServerError):
        log.info("rpc_rejected", method=method, reason=error.reason, **({"caller": caller} if caller else {}))
    else:
        # The text of an exception may quote secret input, so only its type and location are logged.
        stack = "".join(traceback.format_tb(error.__traceback__))
        log.error("unhandled_exception", method=method, kind=type(error).__qualname__, stack=stack)
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
