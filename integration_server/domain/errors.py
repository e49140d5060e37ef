"""The tree of errors. `rpc/errors.py` converts them to statuses.

Messages are built here from names, fields and numbers, so that none contains a token, a secret or a provider's text.

    IntegrationServerError
    ├── InvalidField ── RedirectUriNotAllowed
    ├── IntegrationNotFound
    ├── UnknownIntegrationType
    ├── ProviderNotConfigured
    ├── OAuthClientInUse, OAuthClientNotFound
    ├── StateInvalid, StateExpired, StateUsed
    ├── UserMismatch, IssuerMismatch, AccountMismatch
    ├── ConfirmationInvalid
    ├── IntegrationPending, IntegrationInactive
    ├── ReauthorizationRequired
    ├── ScopeMissing
    ├── WebhooksNotSupported
    ├── CursorExpired
    ├── CredentialsUnreadable
    ├── StoreUnavailable
    ├── ServerStopping
    ├── QuotaExceeded
    ├── CallerNotAllowed
    ├── ApiNotDeclared
    ├── RateLimited
    └── ProviderError
        ├── ProviderUnavailable     a retry may succeed
        ├── ProviderRejected        of a code, key, token or grant
        │   └── AccountNotChosen
        ├── ProviderMisconfigured   of this server's client
        ├── ResponseTooLarge
        ├── ResourceNotFound, ResourceAlreadyExists, EtagMismatch
        └── SyncTokenExpired
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Self

from integration_server.domain.credentials import OAuthTokens


class IntegrationServerError(Exception):
    """The root. `reason` is the name in the enum `ErrorReason` without its prefix. `str()` is safe to show.

    `message` is the text of errors that have only one.
    """

    reason: ClassVar[str]
    message: ClassVar[str]
    retry_after: timedelta | None = None
    metadata: Mapping[str, str] | None = None
    """Further facts for the caller, which `ErrorInfo` states."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(self.message if message is None else message)


class InvalidField(IntegrationServerError):
    """A field of a request is invalid."""

    reason = "INVALID_FIELD"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


class RedirectUriNotAllowed(InvalidField):
    """A redirect URI or return URL is not on its allow-list."""

    reason = "REDIRECT_URI_NOT_ALLOWED"

    def __init__(self, field: str) -> None:
        super().__init__(field, "is not on the allow-list")


class IntegrationNotFound(IntegrationServerError):
    """The integration does not exist, or belongs to another user. The message is the same for both."""

    reason = "INTEGRATION_NOT_FOUND"
    message = "no such integration"


class UnknownIntegrationType(IntegrationServerError):
    """No provider has this type or alias."""

    reason = "UNKNOWN_INTEGRATION_TYPE"
    message = "unknown integration_type; ListIntegrationTypes lists those known"


class ProviderNotConfigured(IntegrationServerError):
    """Settings of this type are missing on this server."""

    reason = "PROVIDER_NOT_CONFIGURED"

    def __init__(self, integration_type: str, missing: Iterable[str]) -> None:
        super().__init__(f"{integration_type} is not configured on this server: set {', '.join(missing)}")


class OAuthClientInUse(IntegrationServerError):
    """An OAuth client is used, so that it cannot be deleted, nor get another client id."""

    reason = "OAUTH_CLIENT_IN_USE"

    def __init__(self, integrations: int, revocations: int) -> None:
        super().__init__(
            f"the client has {integrations} integrations, and {revocations} grants that wait for their revocation; "
            "disconnect them first"
        )


class OAuthClientNotFound(IntegrationServerError):
    """No OAuth client of the type has this name."""

    reason = "OAUTH_CLIENT_NOT_FOUND"
    message = "no such OAuth client"


class StateInvalid(IntegrationServerError):
    """The state cannot be decrypted, or was issued for another type."""

    reason = "STATE_INVALID"
    message = "the state was not issued by this server for this integration type"


class StateExpired(IntegrationServerError):
    """The authorization attempt has expired."""

    reason = "STATE_EXPIRED"
    message = "the authorization attempt has expired; start again"


class StateUsed(IntegrationServerError):
    """The state was used before, or its attempt was replaced by newer ones of the user."""

    reason = "STATE_USED"
    message = "the state was already used, or newer attempts have replaced it; start again"


class UserMismatch(IntegrationServerError):
    """The signed-in user is not the user that started the connection."""

    reason = "USER_MISMATCH"
    message = "the connection was started by another user"


class IssuerMismatch(IntegrationServerError):
    """The callback has no `iss`, or that of another authorization server (RFC 9207 §2.4)."""

    reason = "ISSUER_MISMATCH"
    message = "iss is missing or is not the provider's issuer"


class AccountMismatch(IntegrationServerError):
    """The user authorized another account than the integration has."""

    reason = "ACCOUNT_MISMATCH"
    message = "the authorized account is not the account of this integration"


class ConfirmationInvalid(IntegrationServerError):
    """The confirmation token is forged, expired or used."""

    reason = "CONFIRMATION_INVALID"
    message = "the confirmation token is invalid, expired or used"


class IntegrationPending(IntegrationServerError):
    """The connection is not complete."""

    reason = "INTEGRATION_PENDING"
    message = "the connection of this integration is not complete"


class IntegrationInactive(IntegrationServerError):
    """The user has deactivated the integration."""

    reason = "INTEGRATION_INACTIVE"
    message = "the integration is inactive"


class ReauthorizationRequired(IntegrationServerError):
    """The grant has ended, or the token has expired and there is no refresh token."""

    reason = "REAUTHORIZATION_REQUIRED"
    message = "the user must connect this account again"


class ScopeMissing(IntegrationServerError):
    """Required scopes were not granted."""

    reason = "SCOPE_MISSING"

    def __init__(self, scopes: Iterable[str]) -> None:
        super().__init__(f"not granted: {' '.join(scopes)}")


class WebhooksNotSupported(IntegrationServerError):
    """The type declares no webhook verification."""

    reason = "WEBHOOKS_NOT_SUPPORTED"

    def __init__(self, integration_type: str) -> None:
        super().__init__(f"webhooks of {integration_type} are not supported")


class CursorExpired(IntegrationServerError):
    """Events after the cursor were pruned, or the cursor belongs to another database."""

    reason = "CURSOR_EXPIRED"
    message = (
        "the cursor is too old, or from before the database was restored; list the integrations and start without a "
        "cursor"
    )


class CredentialsUnreadable(IntegrationServerError):
    """An encrypted value cannot be decrypted: it was altered or moved, or its key is gone."""

    reason = "CREDENTIALS_UNREADABLE"
    message = "the stored credentials cannot be decrypted"


class StoreUnavailable(IntegrationServerError):
    """The database, or the key-management service, does not respond."""

    reason = "STORE_UNAVAILABLE"
    message = "the database is unavailable"
    retry_after = timedelta(seconds=1)


class ServerStopping(IntegrationServerError):
    """This server is stopping and ends streams."""

    reason = "SERVER_STOPPING"
    retry_after = timedelta(seconds=1)
    message = "this server is stopping; start again"


class QuotaExceeded(IntegrationServerError):
    """The caller, or a user, has exceeded its quota."""

    reason = "QUOTA_EXCEEDED"
    retry_after: timedelta | None

    def __init__(self, subject: str, retry_after: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(f"this caller has too many calls {subject}")
        self.retry_after = retry_after

    @classmethod
    def of_user(cls, setting: str, problem: str) -> Self:
        """A user has as much of something as `setting` allows. Waiting does not help."""
        error = cls("")
        error.args = (f"{problem} ({setting})",)
        error.retry_after = None
        return error


class CallerNotAllowed(IntegrationServerError):
    """The caller lacks the permission."""

    reason = "CALLER_NOT_ALLOWED"
    message = "the caller is not allowed to do this"


class ApiNotDeclared(IntegrationServerError):
    """The type declares no API address."""

    reason = "API_NOT_DECLARED"
    message = "this type declares no API address; calls need api_base_url"


class RateLimited(IntegrationServerError):
    """The rate limit of a provider is reached, and its end is after the caller's deadline."""

    reason = "RATE_LIMITED"

    def __init__(self, retry_after: timedelta) -> None:
        super().__init__("the rate limit of this provider is reached for longer than this call can wait")
        self.retry_after = retry_after


class ProviderError(IntegrationServerError):
    """An error of a provider. `oauth_error` is its error code (RFC 6749 §5.2), if the response has one.

    `provider_reason` is the provider's own code for it, if it is one of the codes that the provider's type declares.
    `issued_tokens` are tokens that the provider has issued before the error, and that nobody will use.
    """

    oauth_error: str | None = None
    provider_reason: str | None = None
    issued_tokens: OAuthTokens | None = None

    def __init__(self, message: str | None = None, *, oauth_error: str | None = None) -> None:
        super().__init__(message)
        self.oauth_error = oauth_error


class ProviderUnavailable(ProviderError):
    """The provider is down, too slow or unreadable, or asks to wait. A retry after `retry_after` may succeed.

    `outcome_unknown`: the provider may have done what was requested, and its response is lost.
    """

    reason = "PROVIDER_UNAVAILABLE"
    message = "the provider does not respond as expected"

    def __init__(
        self, message: str | None = None, *, retry_after: timedelta | None = None, outcome_unknown: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.outcome_unknown = outcome_unknown


class ProviderRejected(ProviderError):
    """The provider rejects this code, key, token or grant. A retry does not help.

    `needs_new_token`: it rejects the access token, so that a refresh may help (RFC 6750 §3.1). `rejected_fields` are
    the fields of the request that have what is rejected.
    """

    reason = "PROVIDER_REJECTED"
    rejected_fields: Sequence[str] = ()

    def __init__(self, subject: str, *, oauth_error: str | None = None, needs_new_token: bool = False) -> None:
        super().__init__(f"the provider rejected the {subject}", oauth_error=oauth_error)
        self.needs_new_token = needs_new_token


class AccountNotChosen(ProviderRejected):
    """The credentials reach several accounts, or none of the wanted name, and the config has to name one.

    `field` is the config field; `labels` are the names of the accounts by their ids, where they have names.
    """

    reason = "ACCOUNT_NOT_CHOSEN"

    def __init__(self, field: str, labels: Mapping[str, str | None]) -> None:
        super().__init__("account")
        self.field, self.labels = field, labels
        self.rejected_fields = (f"config.{field}",)
        shown = [f"{account_id} ({label})" if label else account_id for account_id, label in labels.items()]
        more = ", …" if len(shown) > _MAX_CHOICES else ""
        choices = ", ".join(shown[:_MAX_CHOICES]) or "none"
        self.args = (f"config.{field} must name one of the accounts that the credentials reach: {choices}{more}",)


_MAX_CHOICES = 20  # shown in a message, which is a header of the response and has at most 8 KiB


class ProviderMisconfigured(ProviderError):
    """The provider rejects this server's client id or secret (`invalid_client`). No integration is at fault."""

    reason = "PROVIDER_MISCONFIGURED"
    message = "the provider rejects this server's client id or secret"


class ResponseTooLarge(ProviderError):
    """The body of the provider's response exceeds the limit, or a result that of the response to a batch."""

    reason = "ANSWER_TOO_LARGE"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the provider's response has more than {limit} bytes")

    @classmethod
    def of_batch(cls) -> Self:
        """The result of a request does not fit into the response to its batch. Another batch has room for it."""
        error = cls(0)
        error.args = ("the result does not fit into this response; request it again",)
        error.retry_after = timedelta(0)
        return error


class ResourceNotFound(ProviderError):
    """The account has no such resource, for example a calendar or an event."""

    reason = "RESOURCE_NOT_FOUND"

    def __init__(self, subject: str) -> None:
        super().__init__(f"the account has no such {subject}")


class ResourceAlreadyExists(ProviderError):
    """The account has, or had, a resource with this identifier."""

    reason = "RESOURCE_ALREADY_EXISTS"

    def __init__(self, subject: str) -> None:
        super().__init__(f"the account has, or had, this {subject} already")


class EtagMismatch(ProviderError):
    """The resource has changed since the caller read it."""

    reason = "ETAG_MISMATCH"

    def __init__(self, subject: str) -> None:
        super().__init__(f"the {subject} has changed since it was read; read it again")


class SyncTokenExpired(ProviderError):
    """The provider no longer has the changes since the sync token."""

    reason = "SYNC_TOKEN_EXPIRED"
    message = "the sync token has expired; list everything again without one"


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An error in a form that can be stored, to be raised again for a request that is repeated.

    `kind` is the name of its class in this module, and `texts` are its further attributes that are texts.
    """

    kind: str
    message: str
    retry_after: timedelta | None
    texts: Mapping[str, str]

    @classmethod
    def of(cls, error: IntegrationServerError) -> Self:
        """The record of an error. Providers of other packages may raise their own subclasses."""
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)
        texts = {name: value for name, value in vars(error).items() if isinstance(value, str)}
        return cls(kind, str(error), error.retry_after, texts)

    def to_error(self) -> IntegrationServerError:
        """An error that callers cannot distinguish from the recorded one."""
        kind: type[IntegrationServerError] = globals()[self.kind]
        error = kind.__new__(kind, self.message)  # without __init__, whose parameters differ
        error.retry_after = self.retry_after
        for name, value in self.texts.items():
            setattr(error, name, value)
        return error
