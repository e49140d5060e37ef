"""One instance of each error."""

from collections.abc import Sequence
from datetime import timedelta

from integration_server.domain import errors
from integration_server.domain.errors import IntegrationServerError

EVERY_ERROR: Sequence[IntegrationServerError] = (
    errors.InvalidField("name", "is too long"),
    errors.RedirectUriNotAllowed("redirect_uri"),
    errors.IntegrationNotFound(),
    errors.UnknownIntegrationType(),
    errors.ProviderNotConfigured("fake", ["FAKE_CLIENT_ID", "FAKE_CLIENT_SECRET"]),
    errors.OAuthClientInUse(3, 1),
    errors.OAuthClientNotFound(),
    errors.StateInvalid(),
    errors.StateExpired(),
    errors.StateUsed(),
    errors.UserMismatch(),
    errors.IssuerMismatch(),
    errors.AccountMismatch(),
    errors.ConfirmationInvalid(),
    errors.IntegrationPending(),
    errors.IntegrationInactive(),
    errors.ReauthorizationRequired(),
    errors.ScopeMissing(["read", "write"]),
    errors.WebhooksNotSupported("fake"),
    errors.CursorExpired(),
    errors.CredentialsUnreadable(),
    errors.StoreUnavailable(),
    errors.ServerStopping(),
    errors.QuotaExceeded("at a time"),
    errors.CallerNotAllowed(),
    errors.ProviderUnavailable(retry_after=timedelta(seconds=7)),
    errors.ProviderRejected("code", oauth_error="invalid_grant"),
    errors.AccountNotChosen("site", {"s1": "One"}),
    errors.ProviderMisconfigured(oauth_error="invalid_client"),
    errors.ApiNotDeclared(),
    errors.RateLimited(timedelta(seconds=7)),
    errors.ResponseTooLarge(1000),
    errors.ResourceNotFound("event"),
    errors.ResourceAlreadyExists("event"),
    errors.EtagMismatch("event"),
    errors.SyncTokenExpired(),
)


def error_classes() -> Sequence[type[IntegrationServerError]]:
    """All classes that are raised: those with a reason."""
    return [error_class for error_class in _subclasses(IntegrationServerError) if hasattr(error_class, "reason")]


def _subclasses(error_class: type[IntegrationServerError]) -> list[type[IntegrationServerError]]:
    children = [child for child in error_class.__subclasses__() if child.__module__ == errors.__name__]
    return [subclass for child in children for subclass in (child, *_subclasses(child))]
