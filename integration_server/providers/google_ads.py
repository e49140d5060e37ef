"""Google Ads.

- Scope adwords: the document's origin. Every request names a developer token besides the user's:
  developers.google.com/google-ads/api/rest/auth [H]. It is ours, from `GOOGLE_ADS_DEVELOPER_TOKEN`.
- Verified by the user's own account at Google: openidconnect.googleapis.com/v1/userinfo, which needs an identity scope
  [H]. The list of Ads accounts has no order that could tell one user from another [K].
- `login-customer-id` names the manager account of a request [H]: a caller sets it, from `login_customer_id` of the
  config.
- Versions of the API end after about a year [K]; a caller names its own in the path.
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from integration_server.domain.credentials import Credentials, RequestAuth
from integration_server.providers.base import ProviderConfig
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.google import GoogleProvider


class GoogleAdsConfig(ProviderConfig):
    """Which accounts a caller works with."""

    customer_id: str | None = Field(None, pattern=r"^[0-9]{10}$")
    login_customer_id: str | None = Field(None, pattern=r"^[0-9]{10}$")


class GoogleAdsProvider(GoogleProvider):
    """A user's advertising accounts."""

    integration_type = "google_ads"
    display_name = "Google Ads"
    required_scopes = ("https://www.googleapis.com/auth/adwords", "openid", "email")
    verify_url = "https://openidconnect.googleapis.com/v1/userinfo"
    account_id_field = "sub"
    account_label_field = "email"
    api_base_url = "https://googleads.googleapis.com"
    config_model = GoogleAdsConfig

    @property
    def missing_settings(self) -> Sequence[str]:
        """The developer token besides the client."""
        missing = super().missing_settings
        return missing if self._setting("DEVELOPER_TOKEN") else [*missing, self._setting_name("DEVELOPER_TOKEN")]

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The bearer header, and the developer token."""
        auth = super().request_auth(credentials)
        return replace(auth, headers={**auth.headers, "developer-token": self._setting("DEVELOPER_TOKEN")})


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(GoogleAdsProvider.integration_type, GoogleAdsProvider)
