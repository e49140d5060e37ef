"""Conversion of errors to statuses: the only place, for every RPC.

A domain error becomes its status code with `google.rpc.ErrorInfo`, `BadRequest` for fields, and `RetryInfo` where a
retry can succeed. Any other error is a bug in this program: it is logged, and the caller gets INTERNAL without details.
The metadata of `ErrorInfo` has the call's `request_id`, and the provider's own code as `provider_reason`, if the
integration type declares the code.
"""

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import any as any_message
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from integration_server.domain import errors
from integration_server.domain.errors import IntegrationServerError, InvalidField, ProviderError
from integration_server.observability.observed_calls import REQUEST_ID
from integration_server.rpc.call_log import CallLog, is_call_over

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
    code_pb2.NOT_FOUND: (errors.IntegrationNotFound, errors.OAuthClientNotFound, errors.ResourceNotFound),
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
        errors.AccountNotChosen,
        errors.OAuthClientInUse,
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
    """The caller has no valid identity. `str()` is for the log, and quotes nothing that the caller sent.

    The caller itself gets `public_message`, which says no more than an attacker may know.
    """

    def __init__(self, problem: str, public_message: str = "the caller is not known") -> None:
        super().__init__(problem)
        self.public_message = public_message


class TokenExpired(Unauthenticated):
    """The issuer has signed the token, and it has expired."""


class KeysNotAvailable(Unauthenticated):
    """The keys of the token's issuer could not be fetched yet."""


def status_of(error: Exception, request_id: str = "") -> status_pb2.Status:
    """Return the `google.rpc.Status` of an error; any error that is not ours is INTERNAL.

    `request_id` is that of the call; empty for one item of a call.
    """
    if not isinstance(error, IntegrationServerError):
        return status_pb2.Status(code=code_pb2.INTERNAL, message="internal error")
    provider_reason = provider_reason_of(error)
    ids = {"provider_reason": provider_reason, "request_id": request_id}
    metadata = {**(error.metadata or {}), **{name: value for name, value in ids.items() if value}}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.problem)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.ProviderRejected) and error.rejected_fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description="the provider rejects it")
            for field in error.rejected_fields
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=error.retry_after))
    return status_pb2.Status(code=_code_of(error), message=str(error), details=map(any_message.pack, details))


def outcome_of(error: Exception, context: grpc.aio.ServicerContext[Any, Any]) -> tuple[str, str]:
    """Return the name of the status that a call gets for an error, and its reason; empty if it has none.

    An abort of the handler itself has the status that it set.
    """
    if isinstance(error, IntegrationServerError):
        return code_pb2.Code.Name(_code_of(error)), error.reason
    if isinstance(error, grpc.aio.AbortError):
        return context.code().name, ""
    if isinstance(error, Unauthenticated):
        return "UNAUTHENTICATED", ""
    return ("CANCELLED" if is_call_over(error) else "INTERNAL"), ""


def _code_of(error: IntegrationServerError) -> int:
    # Providers of other packages may raise their own subclasses.
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def provider_reason_of(error: BaseException) -> str | None:
    """Return the provider's own code for an error, or for the error that caused it; None if it is not known."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:  # an error may be among its own causes
        if isinstance(cause, ProviderError) and cause.provider_reason is not None:
            return cause.provider_reason
        causes.append(cause)
        cause = cause.__cause__
    return None


async def abort_call(
    error: Exception,
    method: str,
    context: grpc.aio.ServicerContext[Any, Any],
    log: CallLog,
    *,
    caller: str,
    peer: str,
    request_id: str = "",
) -> None:
    """End the call with the status of an error, and log it. A status that a handler has set itself is kept.

    The status of an error has the call's request id, in the metadata of its `ErrorInfo` and of the response.

    Returns if the client is gone, so that nobody gets the status: gRPC then ends the call by itself.
    """
    if isinstance(error, grpc.aio.AbortError):
        raise error
    ids = ((REQUEST_ID, request_id),) if request_id else ()
    status: Any = (grpc.StatusCode.CANCELLED, "", ids)
    if isinstance(error, Unauthenticated):
        log.unauthenticated(method, str(error), peer)
        status = (grpc.StatusCode.UNAUTHENTICATED, error.public_message, ids)
    elif not is_call_over(error):
        if isinstance(error, IntegrationServerError):
            log.rejected(method, error.reason, caller, provider_reason_of(error))
        else:
            log.unhandled(method, error)
        with_details: Any = rpc_status.to_status(status_of(error, request_id))
        status = with_details.code, with_details.details, (*with_details.trailing_metadata, *ids)
    try:
        await context.abort(*status)
    except grpc.aio.AbortError as aborted:
        forget_frames(error)
        aborted.__context__ = None
        raise aborted.with_traceback(None) from None
    except grpc.aio.BaseError:  # the client is gone, or was already when the handler itself aborted the call
        log.client_gone()


def forget_frames(error: BaseException) -> None:
    """Free what the frames of an error, and of those that it stems from, refer to: it was reported.

    gRPC keeps the error that ends a call with the call, which the frames of that error refer to. With the frames of the
    handler, the cycle would keep what the call has read, such as decrypted credentials, until a collection of all
    objects.

    Our own errors stay causes: calls that wait for one refresh share its error, and each reports its provider's code.
    """
    waiting, known = [error], set[int]()
    while waiting:
        current = waiting.pop()
        if id(current) in known:  # an error may be among its own causes
            continue
        known.add(id(current))
        waiting += [linked for linked in (current.__cause__, current.__context__) if linked is not None]
        current.__traceback__ = current.__context__ = None
        if not isinstance(current.__cause__, IntegrationServerError):
            current.__cause__ = None
