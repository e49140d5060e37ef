"""One of each error."""

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
    """All that can be raised: the leaves, and what is raised though there is more below it."""
    return [kind for kind in _below(IntegrationServerError) if hasattr(kind, "reason")]


def _below(kind: type[IntegrationServerError]) -> list[type[IntegrationServerError]]:
    ours = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [found for child in ours for found in (child, *_below(child))]
