"""QuickBooks Online.

- Endpoints; client id and secret are sent as HTTP Basic:
  developer.intuit.com/app/developer/qbo/docs/develop/authentication-and-authorization/oauth-2.0 [H].
- Only `realmId` in the callback identifies the company [H]. A callback without it is rejected.
- Access tokens last an hour; refresh tokens 100 days, as `x_refresh_token_expires_in` says [H]. Five years after the
  authorization they end in any case: a separate value, which is returned on request only [H 2026-11-29].
  Their value changes about once a day [M]. Whether the old one stays valid then is not documented, so it counts as
  spent [K].
- Whether a revocation disconnects the company or ends one token is not documented, so it counts as the former [K].
- A revocation is JSON, as Intuit's own library sends it: github.com/intuit/oauth-pythonclient [H].
- Verification is the company's own resource [H]. `environment` of the config is "production" or "sandbox", which has
  its own host [H].
- 500 requests a minute per company, and ten a second:
  developer.intuit.com/app/developer/qbo/docs/learn/limits-and-throttles [H].
- PKCE is not documented; RFC 6749 §3.1 requires that unknown parameters are ignored, so it is sent [K].
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from integration_server.domain.errors import InvalidField
from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.base import ProviderConfig
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.quickbooks import QUICKBOOKS

_HOSTS = {"production": "quickbooks.api.intuit.com", "sandbox": "sandbox-quickbooks.api.intuit.com"}


class QuickBooksConfig(ProviderConfig):
    """Intuit's environment that has the company."""

    environment: Literal["production", "sandbox"] = "production"


class QuickBooksProvider(OAuth2Provider):
    """A company's books."""

    integration_type = "quickbooks"
    display_name = "QuickBooks Online"
    oauth_authorize_url = "https://appcenter.intuit.com/connect/oauth2"
    oauth_token_url = "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer"
    revocation_ends = "grant"
    revoke_url = "https://developer.api.intuit.com/v2/oauth2/tokens/revoke"
    revoke_headers = {"Authorization": "Basic {basic}"}
    revoke_params = {"token": "{token}"}
    revoke_body_type = "json"
    url_params = {"host": _HOSTS["production"]}
    host_patterns = ("*.api.intuit.com",)
    required_scopes = ("com.intuit.quickbooks.accounting",)
    verify_url = "https://{host}/v3/company/{realmId}/companyinfo/{realmId}"
    webhook_scheme = QUICKBOOKS
    account_id_field = "realmId"
    account_label_field = "CompanyInfo.CompanyName"
    api_base_url = "https://{host}/v3/company/{realmId}"
    rate_limits = (RateLimit(500, timedelta(minutes=1)), RateLimit(10, timedelta(seconds=1)))
    config_model = QuickBooksConfig

    def configure(self, config: QuickBooksConfig) -> "QuickBooksProvider":
        """Use the host of the environment."""
        return self.with_url_params(host=_HOSTS[config.environment])

    def read_callback(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """The company. Raises `InvalidField`."""
        realm = query.get("realmId", "")
        if not (realm.isascii() and realm.isdigit() and len(realm) <= 64):
            raise InvalidField("query", "has no realmId, which identifies the company")
        return {"realmId": realm}


register = QuickBooksProvider.register_in
