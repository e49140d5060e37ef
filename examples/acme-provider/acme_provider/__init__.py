"""An example of a provider in its own package: Acme.

- The endpoints and scopes are fictitious. A real provider names the source and the confidence of each fact here.
- A refresh replaces the refresh token; no grace period is documented.
- 300 calls a minute for the app, 10 a second per account.
"""

from datetime import timedelta

from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.providers.oauth2 import OAuth2Provider


class AcmeProvider(OAuth2Provider):
    """A user's account at Acme. The setting `ACME_BASE_URL` overrides the host."""

    integration_type = "acme"
    required_scopes = ("read",)
    account_id_field = "sub"
    account_label_field = "email"
    rate_limits = (
        RateLimit(300, timedelta(minutes=1), LimitScope.APP),
        RateLimit(10, timedelta(seconds=1), LimitScope.INTEGRATION),
    )

    @property
    def base_url(self) -> str:
        """The URL that all endpoints are below."""
        return self._setting("BASE_URL") or "https://acme.example"

    @property
    def oauth_authorize_url(self) -> str:
        """The authorization endpoint."""
        return f"{self.base_url}/oauth/authorize"

    @property
    def oauth_token_url(self) -> str:
        """The token endpoint."""
        return f"{self.base_url}/oauth/token"

    @property
    def verify_url(self) -> str:  # type: ignore[override]  # a declaration may be a property
        """The user info, which verifies a token and identifies its account."""
        return f"{self.base_url}/userinfo"

    @property
    def api_base_url(self) -> str:  # type: ignore[override]  # a declaration may be a property
        """The base URL of proxied calls."""
        return self.base_url


register = AcmeProvider.register_in
