"""Google Ads.

- The requirements define the scope adwords. Developer tokens were sunset on 9 September 2026: the header is optional
  and ignored, and an empty one is refused; access depends on our Cloud project:
  developers.google.com/google-ads/api/rest/auth [H 2026-11-29]. The header is sent only if the setting
  `GOOGLE_ADS_DEVELOPER_TOKEN` has a value.
- Verification is the user info of the user's Google account, openidconnect.googleapis.com/v1/userinfo, which needs an
  identity scope [H]. The list of Ads accounts has no order that could identify a user [K].
- `login-customer-id` names the manager account of a request [H]. The caller sets it, from `login_customer_id` of the
  config.
- API versions end after about a year [M 2026-11-29]. The caller names the version in the path.
"""

from pydantic import Field

from integration_server.domain.credentials import OAuthTokens
from integration_server.providers.base import ProviderConfig
from integration_server.providers.google import GoogleProvider


class GoogleAdsConfig(ProviderConfig):
    """The Ads accounts that a caller uses."""

    customer_id: str | None = Field(None, pattern=r"^[0-9]{10}$")
    login_customer_id: str | None = Field(None, pattern=r"^[0-9]{10}$")


class GoogleAdsProvider(GoogleProvider):
    """A user's advertising accounts."""

    integration_type = "google_ads"
    required_scopes = ("https://www.googleapis.com/auth/adwords", "openid", "email")
    verify_url = "https://openidconnect.googleapis.com/v1/userinfo"
    account_id_field = "sub"
    account_label_field = "email"
    api_base_url = "https://googleads.googleapis.com"
    allowed_request_headers = ("login-customer-id", "linked-customer-id")
    config_model = GoogleAdsConfig

    def auth_headers(self, tokens: OAuthTokens) -> dict[str, str]:
        """The bearer header, and the developer token if there is one."""
        token = self._setting("DEVELOPER_TOKEN")
        return {**super().auth_headers(tokens), **({"developer-token": token} if token else {})}


register = GoogleAdsProvider.register_in
