"""Acme, as a provider of the Integration Server in a package of its own.

- Endpoints and scopes: made up; a real provider has its source here, and how sure it is.
- A refresh rotates the refresh token; no grace is documented.
- 300 calls a minute for the app, 10 a second for an account.
"""

from datetime import timedelta

from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider


class AcmeProvider(OAuth2Provider):
    """A user's account at Acme, whose address `ACME_BASE_URL` may set."""

    integration_type = "acme"
    display_name = "Acme"
    required_scopes = ("read",)
    account_id_field = "sub"
    account_label_field = "email"
    rate_limits = (
        RateLimit(300, timedelta(minutes=1), LimitScope.APP),
        RateLimit(10, timedelta(seconds=1), LimitScope.INTEGRATION),
    )

    @property
    def base_url(self) -> str:
        """Where Acme is."""
        return self._setting("BASE_URL") or "https://acme.example"

    @property
    def oauth_authorize_url(self) -> str:
        """Where a browser is sent to ask for access."""
        return f"{self.base_url}/oauth/authorize"

    @property
    def oauth_token_url(self) -> str:
        """Where codes and refresh tokens are traded."""
        return f"{self.base_url}/oauth/token"

    @property
    def verify_url(self) -> str:  # type: ignore[override]  # what is declared may be a property
        """What to GET to see whose a token is."""
        return f"{self.base_url}/userinfo"

    @property
    def api_base_url(self) -> str:  # type: ignore[override]  # likewise
        """What the paths of calls are beneath."""
        return self.base_url


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(AcmeProvider.integration_type, AcmeProvider)
