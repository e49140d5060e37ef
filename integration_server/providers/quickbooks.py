"""QuickBooks Online.

- Endpoints, and client id and secret as Basic:
  developer.intuit.com/app/developer/qbo/docs/develop/authentication-and-authorization/oauth-2.0 [H].
- The company is named by `realmId` in the callback, and by nothing else [H]. Without it the callback is refused.
- Access tokens last an hour; refresh tokens 100 days, at most five years, as `x_refresh_token_expires_in` says [H].
  Their value changes about once a day [M]. Whether the old one still works then is not documented, so it is taken for
  spent [K].
- Revoking takes JSON, as Intuit's own library does: github.com/intuit/oauth-pythonclient [H].
- Verified by the company's own resource [H]. `environment` of the config is "production" or "sandbox", which has a host
  of its own [H].
- 500 requests a minute to one company, and ten a second:
  developer.intuit.com/app/developer/qbo/docs/learn/limits-and-throttles [H].
- PKCE is not documented; RFC 6749 §3.1 has unknown parameters ignored, so it is sent [K].
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Literal

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.errors import InvalidField
from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.base import ProviderConfig
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.quickbooks import QUICKBOOKS

_HOSTS = {"production": "quickbooks.api.intuit.com", "sandbox": "sandbox-quickbooks.api.intuit.com"}


class QuickBooksConfig(ProviderConfig):
    """Which of Intuit's worlds the company is in."""

    environment: Literal["production", "sandbox"] = "production"


class QuickBooksProvider(OAuth2Provider):
    """A company's books."""

    integration_type = "quickbooks"
    display_name = "QuickBooks Online"
    oauth_authorize_url = "https://appcenter.intuit.com/connect/oauth2"
    oauth_token_url = "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer"
    revoke_url = "https://developer.api.intuit.com/v2/oauth2/tokens/revoke"
    url_params: Mapping[str, str] = MappingProxyType({"host": _HOSTS["production"]})
    host_patterns = ("*.api.intuit.com",)
    required_scopes = ("com.intuit.quickbooks.accounting",)
    token_auth = "client_secret_basic"
    verify_url = "https://{host}/v3/company/{realmId}/companyinfo/{realmId}"
    webhook_scheme = QUICKBOOKS
    account_id_extra = "realmId"
    account_label_field = "CompanyInfo.CompanyName"
    api_base_url = "https://{host}/v3/company/{realmId}"
    rate_limits = (RateLimit(500, timedelta(minutes=1)), RateLimit(10, timedelta(seconds=1)))
    config_model = QuickBooksConfig

    def configure(self, config: QuickBooksConfig) -> "QuickBooksProvider":
        """In its world."""
        return self.with_url_params(host=_HOSTS[config.environment])

    def read_callback(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """The company. Raises `InvalidField`."""
        realm = query.get("realmId", "")
        if not (realm.isascii() and realm.isdigit() and len(realm) <= 64):
            raise InvalidField("query", "has no realmId, which names the company")
        return {"realmId": realm}

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Revoke the refresh token, and its access tokens with it."""
        if not isinstance(credentials, OAuthTokens):
            return False
        headers = {"Authorization": self.basic_authorization(), "Content-Type": "application/json"}
        body = json.dumps({"token": credentials.refresh_token or credentials.access_token})
        return self.read_revocation(await self.send("POST", self.revoke_url, headers=headers, content=body))


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(QuickBooksProvider.integration_type, QuickBooksProvider)
