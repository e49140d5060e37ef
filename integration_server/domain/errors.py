"""Everything that can go wrong, as one tree. `rpc/errors.py` turns it into statuses, once.

Messages are written here and nowhere else, from names, fields and numbers only: none of them can carry a token, a
secret or a provider's own words.

    IntegrationServerError
    ├── InvalidField ── RedirectUriNotAllowed
    ├── IntegrationNotFound
    ├── UnknownIntegrationType
    ├── ProviderNotConfigured
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
        ├── ProviderUnavailable     worth trying again
        ├── ProviderRejected        this code, key, token or grant is refused
        ├── ProviderMisconfigured   our own client is refused
        ├── ResponseTooLarge          more than is passed on
        ├── ResourceNotFound, ResourceAlreadyExists, EtagMismatch
        └── SyncTokenExpired
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import ClassVar


class IntegrationServerError(Exception):
    """Root of the tree. `reason` is the name in enum `ErrorReason` without its prefix; `str()` is safe to show."""

    reason: ClassVar[str]
    retry_after: timedelta | None = None


class InvalidField(IntegrationServerError):
    """A request's field is wrong."""

    reason = "INVALID_FIELD"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


class RedirectUriNotAllowed(InvalidField):
    """A redirect or return address is not on its allow-list."""

    reason = "REDIRECT_URI_NOT_ALLOWED"

    def __init__(self, field: str) -> None:
        super().__init__(field, "is not on the allow-list")


class IntegrationNotFound(IntegrationServerError):
    """No such integration, or another user's: the message is the same, and names neither."""

    reason = "INTEGRATION_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("no such integration")


class UnknownIntegrationType(IntegrationServerError):
    """No provider has this type."""

    reason = "UNKNOWN_INTEGRATION_TYPE"

    def __init__(self) -> None:
        super().__init__("unknown integration_type; ListIntegrationTypes lists those known")


class ProviderNotConfigured(IntegrationServerError):
    """The type's client id or secret is not set on this server."""

    reason = "PROVIDER_NOT_CONFIGURED"

    def __init__(self, integration_type: str, missing: Iterable[str]) -> None:
        super().__init__(f"{integration_type} is not configured here: set {', '.join(missing)}")


class StateInvalid(IntegrationServerError):
    """The state does not open, or was made for another type."""

    reason = "STATE_INVALID"

    def __init__(self) -> None:
        super().__init__("the state was not made here, or not for this integration type")


class StateExpired(IntegrationServerError):
    """The attempt's time is up."""

    reason = "STATE_EXPIRED"

    def __init__(self) -> None:
        super().__init__("the attempt to connect has expired; begin again")


class StateUsed(IntegrationServerError):
    """The state has had its one callback."""

    reason = "STATE_USED"

    def __init__(self) -> None:
        super().__init__("the state has been used; begin again")


class UserMismatch(IntegrationServerError):
    """Somebody else than the user who began is about to finish."""

    reason = "USER_MISMATCH"

    def __init__(self) -> None:
        super().__init__("the connection was begun by another user")


class IssuerMismatch(IntegrationServerError):
    """The callback names no or another authorization server (RFC 9207 §2.4)."""

    reason = "ISSUER_MISMATCH"

    def __init__(self) -> None:
        super().__init__("iss is missing or is not the provider's issuer")


class AccountMismatch(IntegrationServerError):
    """A reconnection was answered for another account."""

    reason = "ACCOUNT_MISMATCH"

    def __init__(self) -> None:
        super().__init__("the account is not the one that this integration belongs to")


class ConfirmationInvalid(IntegrationServerError):
    """The confirmation token is forged, too old or used."""

    reason = "CONFIRMATION_INVALID"

    def __init__(self) -> None:
        super().__init__("the confirmation token is not valid, or no longer")


class IntegrationPending(IntegrationServerError):
    """The connection has not been finished."""

    reason = "INTEGRATION_PENDING"

    def __init__(self) -> None:
        super().__init__("the integration is still being connected")


class IntegrationInactive(IntegrationServerError):
    """The user has switched the integration off."""

    reason = "INTEGRATION_INACTIVE"

    def __init__(self) -> None:
        super().__init__("the integration is switched off")


class ReauthorizationRequired(IntegrationServerError):
    """The grant is dead, or there is nothing to renew it with."""

    reason = "REAUTHORIZATION_REQUIRED"

    def __init__(self) -> None:
        super().__init__("the user has to connect this account again")


class ScopeMissing(IntegrationServerError):
    """Scopes that were asked for were not granted."""

    reason = "SCOPE_MISSING"

    def __init__(self, scopes: Iterable[str]) -> None:
        super().__init__(f"not granted: {' '.join(scopes)}")


class WebhooksNotSupported(IntegrationServerError):
    """It is not known how this type's webhooks are verified."""

    reason = "WEBHOOKS_NOT_SUPPORTED"

    def __init__(self, integration_type: str) -> None:
        super().__init__(f"{integration_type} has no webhooks here")


class CursorExpired(IntegrationServerError):
    """What follows the cursor is not kept any more, or the cursor is of another database."""

    reason = "CURSOR_EXPIRED"

    def __init__(self) -> None:
        super().__init__("the cursor is too old; begin without one, and list what there is")


class CredentialsUnreadable(IntegrationServerError):
    """A sealed value does not open: altered, moved, or sealed with a key that is gone."""

    reason = "CREDENTIALS_UNREADABLE"

    def __init__(self) -> None:
        super().__init__("the stored credentials do not open")


class StoreUnavailable(IntegrationServerError):
    """The database does not answer, or what its keys are kept in."""

    reason = "STORE_UNAVAILABLE"
    retry_after = timedelta(seconds=1)

    def __init__(self, message: str = "the database is away") -> None:
        super().__init__(message)


class ServerStopping(IntegrationServerError):
    """This server is about to stop, and ends what would go on."""

    reason = "SERVER_STOPPING"
    retry_after = timedelta(seconds=1)

    def __init__(self) -> None:
        super().__init__("this server is about to stop; begin again")


class QuotaExceeded(IntegrationServerError):
    """A caller asks for more than one caller may."""

    reason = "QUOTA_EXCEEDED"
    retry_after = timedelta(seconds=1)

    def __init__(self, subject: str) -> None:
        super().__init__(f"this caller has too many calls {subject}")


class CallerNotAllowed(IntegrationServerError):
    """The caller is known, and may not do this."""

    reason = "CALLER_NOT_ALLOWED"

    def __init__(self) -> None:
        super().__init__("the caller is not allowed to do this")


class ApiNotDeclared(IntegrationServerError):
    """It is not known where the API of this type is, so that no calls can be made to it."""

    reason = "API_NOT_DECLARED"

    def __init__(self) -> None:
        super().__init__("no API address is declared for this type; calls need an api_base_url")


class RateLimited(IntegrationServerError):
    """The budget of calls to a provider is spent for longer than the caller can wait."""

    reason = "RATE_LIMITED"

    def __init__(self, retry_after: timedelta) -> None:
        super().__init__("the budget of calls to this provider is spent for longer than this call can wait")
        self.retry_after = retry_after


class ProviderError(IntegrationServerError):
    """A provider did not do what was asked. `oauth_error` is its error code (RFC 6749 §5.2), where it gave one."""

    def __init__(self, message: str, *, oauth_error: str | None = None) -> None:
        super().__init__(message)
        self.oauth_error = oauth_error


class ProviderUnavailable(ProviderError):
    """Down, too slow, unreadable, or says wait: worth trying again, after `retry_after` where the provider said so.

    `is_refusal`: it was a refusal (4xx) without an error code; after many in a row it has to be believed.
    """

    reason = "PROVIDER_UNAVAILABLE"

    def __init__(
        self,
        message: str = "the provider does not answer as it should",
        *,
        retry_after: timedelta | None = None,
        is_refusal: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_refusal = is_refusal


class ProviderRejected(ProviderError):
    """The provider refuses this code, key, token or grant; trying again would not help."""

    reason = "PROVIDER_REJECTED"

    def __init__(self, subject: str, *, oauth_error: str | None = None) -> None:
        super().__init__(f"the provider refused the {subject}", oauth_error=oauth_error)


class ProviderMisconfigured(ProviderError):
    """The provider refuses our own client id or secret (`invalid_client`): ours to mend, no user's fault."""

    reason = "PROVIDER_MISCONFIGURED"

    def __init__(self, *, oauth_error: str | None = None) -> None:
        super().__init__("the provider refuses this server's client id or secret", oauth_error=oauth_error)


class ResponseTooLarge(ProviderError):
    """The provider's answer has a larger body than is passed on."""

    reason = "ANSWER_TOO_LARGE"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the provider's answer has more than {limit} bytes, the most that is passed on")


class ResourceNotFound(ProviderError):
    """The account has no such thing, or not any more: a calendar, an event."""

    reason = "RESOURCE_NOT_FOUND"

    def __init__(self, subject: str) -> None:
        super().__init__(f"the account has no such {subject}")


class ResourceAlreadyExists(ProviderError):
    """The account has, or had, something with this identifier."""

    reason = "RESOURCE_ALREADY_EXISTS"

    def __init__(self, subject: str) -> None:
        super().__init__(f"the account has, or had, this {subject} already")


class EtagMismatch(ProviderError):
    """It is not any more as it was when the caller read it."""

    reason = "ETAG_MISMATCH"

    def __init__(self, subject: str) -> None:
        super().__init__(f"the {subject} has changed since it was read; read it again")


class SyncTokenExpired(ProviderError):
    """What changed since the sync token cannot be told any more."""

    reason = "SYNC_TOKEN_EXPIRED"

    def __init__(self) -> None:
        super().__init__("the sync token is too old or was made void; list all of it again, without one")
