"""The errors of the client: one class for each reason of the contract, below one class for each status.

`except Unavailable` catches every error for which a retry can succeed; `except ReauthorizationRequired` catches one
reason. A reason that this version does not know is an error of its status.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from integrations.v1.integration_pb2 import Integration

_STATUS_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that is invalid, and why."""

    field: str
    description: str


class IntegrationsError(Exception):
    """An error of a call. Its message contains no secret.

    `code` is the gRPC status; `reason` the name of an `ErrorReason` without its prefix, empty without one. `fields` are
    the invalid fields. `metadata` has what the server adds to the reason, such as `provider_reason`. `retry_after` is
    the delay before a retry, if the server names one.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    reason: str = ""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        fields: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.fields = tuple(fields)
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        """The message, with the invalid fields that it does not name."""
        unnamed = [violation for violation in self.fields if violation.field not in self.message]
        fields = "; ".join(f"{violation.field}: {violation.description}" for violation in unnamed)
        return f"{self.message} ({fields})" if fields else self.message


# --- One class for each status --------------------------------------------------------------------------------------


class Cancelled(IntegrationsError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class ClientClosed(Cancelled):
    """The client is closed, or was closed during the call."""


class InvalidArgument(IntegrationsError):
    """The request is invalid; `fields` has the fields."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class DeadlineExceeded(IntegrationsError):
    """The server did not respond within the deadline."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class NotFound(IntegrationsError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(IntegrationsError):
    """What the request creates exists."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(IntegrationsError):
    """The policy does not allow the call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhausted(IntegrationsError):
    """A limit is reached; `retry_after` has the delay before a retry."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(IntegrationsError):
    """The state of the integration or of the server does not allow the call. A retry alone does not help."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(IntegrationsError):
    """Something else has changed what the request changes."""

    code = grpc.StatusCode.ABORTED


class Unimplemented(IntegrationsError):
    """The server is older than the client, and has no such RPC."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(IntegrationsError):
    """The server has a bug; its log has the details."""

    code = grpc.StatusCode.INTERNAL


class Unavailable(IntegrationsError):
    """The server, its database or the provider is not available. A retry can succeed."""

    code = grpc.StatusCode.UNAVAILABLE


class DataLoss(IntegrationsError):
    """Stored data cannot be read."""

    code = grpc.StatusCode.DATA_LOSS


class Unauthenticated(IntegrationsError):
    """The server does not accept the client's token or certificate."""

    code = grpc.StatusCode.UNAUTHENTICATED


# --- One class for each reason: the name is the reason's ------------------------------------------------------------


class IntegrationNotFound(NotFound):
    """The integration does not exist or belongs to another user."""

    reason = "INTEGRATION_NOT_FOUND"


class UnknownIntegrationType(InvalidArgument):
    """The server does not know the integration type."""

    reason = "UNKNOWN_INTEGRATION_TYPE"


class ProviderNotConfigured(FailedPrecondition):
    """The client id and secret of the type are not configured."""

    reason = "PROVIDER_NOT_CONFIGURED"


class StateInvalid(InvalidArgument):
    """The OAuth state is forged or altered, or was issued for another type."""

    reason = "STATE_INVALID"


class StateExpired(FailedPrecondition):
    """The authorization attempt has expired."""

    reason = "STATE_EXPIRED"


class StateUsed(FailedPrecondition):
    """The OAuth state was already used."""

    reason = "STATE_USED"


class RedirectUriNotAllowed(InvalidArgument):
    """A redirect URI or return URL is not on the server's allow-list."""

    reason = "REDIRECT_URI_NOT_ALLOWED"


class UserMismatch(PermissionDenied):
    """The user who completes a connection is not the user who started it."""

    reason = "USER_MISMATCH"


class IssuerMismatch(InvalidArgument):
    """The callback names another authorization server (RFC 9207)."""

    reason = "ISSUER_MISMATCH"


class AccountMismatch(FailedPrecondition):
    """A reconnection returned another account than the integration's."""

    reason = "ACCOUNT_MISMATCH"


class ConfirmationInvalid(InvalidArgument):
    """The confirmation token is forged, expired or already used."""

    reason = "CONFIRMATION_INVALID"


class InvalidField(InvalidArgument):
    """A field is invalid; `fields` names it."""

    reason = "INVALID_FIELD"


class IntegrationPending(FailedPrecondition):
    """The integration's connection is not complete."""

    reason = "INTEGRATION_PENDING"


class ProviderMisconfigured(Unavailable):
    """The provider rejects the server's client id or secret. Users cannot fix this."""

    reason = "PROVIDER_MISCONFIGURED"


class StoreUnavailable(Unavailable):
    """The server's database is not available."""

    reason = "STORE_UNAVAILABLE"


class ReauthorizationRequired(FailedPrecondition):
    """The grant is revoked, expired or not renewable: the user must connect again."""

    reason = "REAUTHORIZATION_REQUIRED"


class ScopeMissing(FailedPrecondition):
    """A requested scope was not granted."""

    reason = "SCOPE_MISSING"


class IntegrationInactive(FailedPrecondition):
    """The user has deactivated the integration."""

    reason = "INTEGRATION_INACTIVE"


class ProviderUnavailable(Unavailable):
    """The provider is down, too slow, or asks clients to wait."""

    reason = "PROVIDER_UNAVAILABLE"


class ProviderRejected(FailedPrecondition):
    """The provider rejected the authorization code or the API key; `fields` has the rejected fields."""

    reason = "PROVIDER_REJECTED"


class CredentialsUnreadable(DataLoss):
    """The stored credentials cannot be decrypted."""

    reason = "CREDENTIALS_UNREADABLE"


class QuotaExceeded(ResourceExhausted):
    """The caller has reached its quota of calls."""

    reason = "QUOTA_EXCEEDED"


class CallerNotAllowed(PermissionDenied):
    """The policy does not grant the caller this RPC, integration type or user."""

    reason = "CALLER_NOT_ALLOWED"


class CursorExpired(FailedPrecondition):
    """The events after the cursor are no longer stored."""

    reason = "CURSOR_EXPIRED"


class WebhooksNotSupported(FailedPrecondition):
    """The integration's type has no webhooks."""

    reason = "WEBHOOKS_NOT_SUPPORTED"


class ServerStopping(Unavailable):
    """The server is about to stop; another one serves the retry."""

    reason = "SERVER_STOPPING"


class ApiNotDeclared(FailedPrecondition):
    """The integration's type declares no API address, so calls to it are not possible."""

    reason = "API_NOT_DECLARED"


class RateLimited(ResourceExhausted):
    """The provider's rate limit leaves no call within the deadline. Nothing was sent."""

    reason = "RATE_LIMITED"


class AnswerTooLarge(ResourceExhausted):
    """The provider's response is too large. The provider may have executed the request."""

    reason = "ANSWER_TOO_LARGE"


class ResourceNotFound(NotFound):
    """The resource does not exist in the account at the provider."""

    reason = "RESOURCE_NOT_FOUND"


class ResourceAlreadyExists(AlreadyExists):
    """The account at the provider has, or had, a resource with this id."""

    reason = "RESOURCE_ALREADY_EXISTS"


class EtagMismatch(Aborted):
    """The resource has changed since its etag was read."""

    reason = "ETAG_MISMATCH"


class SyncTokenExpired(FailedPrecondition):
    """The provider no longer accepts the sync token."""

    reason = "SYNC_TOKEN_EXPIRED"


class AccountNotChosen(FailedPrecondition):
    """The credentials reach several accounts, which the message lists, and the config has to name one."""

    reason = "ACCOUNT_NOT_CHOSEN"


class OauthClientInUse(FailedPrecondition):
    """Integrations have grants of the OAuth client."""

    reason = "OAUTH_CLIENT_IN_USE"


class OauthClientNotFound(NotFound):
    """No OAuth client of the type has this name."""

    reason = "OAUTH_CLIENT_NOT_FOUND"


# --- Found by the client itself -------------------------------------------------------------------------------------


class AccountNotConnected(IntegrationNotFound):
    """The user has connected no account of the type."""


class SeveralAccounts(FailedPrecondition):
    """The user has connected several accounts of the type; `integrations` has them. Name one by its id."""

    def __init__(self, message: str, integrations: Sequence[Integration] = ()) -> None:
        super().__init__(message)
        self.integrations = tuple(integrations)


def _subclasses(kind: type[IntegrationsError]) -> Iterable[type[IntegrationsError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


_BY_CODE = {kind.code: kind for kind in IntegrationsError.__subclasses__()}
BY_REASON: Mapping[str, type[IntegrationsError]] = {
    kind.reason: kind for kind in _subclasses(IntegrationsError) if "reason" in vars(kind)
}
"""The class of each reason of the contract."""


def error_of_status(status: status_pb2.Status) -> IntegrationsError:
    """Return the error of a `google.rpc.Status`."""
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        detail.Unpack(info)  # does nothing for other types
        detail.Unpack(bad_request)
        has_retry = detail.Unpack(retry) or has_retry
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    kind = BY_REASON.get(info.reason, IntegrationsError)
    if kind.code is not code:  # a reason that is unknown here, or has another status since
        kind = _BY_CODE.get(code, IntegrationsError)
    return kind(
        status.message or code.name,
        reason=info.reason,
        fields=[FieldViolation(violation.field, violation.description) for violation in bad_request.field_violations],
        metadata=dict(info.metadata),
        retry_after=retry.retry_delay.ToTimedelta() if has_retry else None,
    )


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def is_temporary(error: IntegrationsError) -> bool:
    """Whether a retry can succeed."""
    return isinstance(error, Unavailable | ResourceExhausted | DeadlineExceeded)


def is_broken_stream(error: IntegrationsError) -> bool:
    """Whether a proxy or a lost connection may have ended the stream: gRPC then reports one of these statuses."""
    codes = (grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    return error.code in codes and not error.reason and not isinstance(error, ClientClosed)


def error_of_call(
    code: grpc.StatusCode, message: str | None, metadata: Iterable[tuple[str, str | bytes]]
) -> IntegrationsError:
    """Return the error of a call that has ended with a status and trailing metadata."""
    status = status_pb2.Status()
    for name, value in metadata:
        if name == _STATUS_DETAILS and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
    if status.code != code.value[0]:  # the details are missing, or a proxy has replaced the status
        status = status_pb2.Status(code=code.value[0], message=message or "")
    return error_of_status(status)
