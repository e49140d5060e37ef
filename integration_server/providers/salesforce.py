"""Salesforce.

- Endpoints below /services/oauth2 of a login host, and client id and secret in the form:
  developer.salesforce.com/docs/atlas.en-us.api_rest.meta/api_rest/intro_understanding_refresh_token_oauth.htm [H].
  `login_host` of the config is login.salesforce.com (the default), test.salesforce.com for sandboxes, or a My Domain.
- Answers name the organisation's own host in `instance_url`, for which the token is good [H]. It must be one of
  Salesforce's: below my.salesforce.com, for sandboxes and their like one label deeper [M].
- There is no `expires_in` [H]: the organisation's session settings say how long, two hours unless they are changed, and
  fifteen minutes at least [K]. One hour is assumed; where it is less, a caller meets 401 and refreshes.
- `refresh_token` is the scope that asks for a refresh token [H]. Where an organisation has switched rotation on it
  serves once [H]; otherwise a refresh answers without one, and the old one stays.
- Revoked at the organisation's own host [H], for which an instance is kept with the tokens.
- Verified by the user info there, which `openid` allows [K].
- `inactive_user` and `inactive_org` end the grant [K].
- PKCE is supported, and can be required [M].
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType

from pydantic import Field

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderUnavailable
from integration_server.providers.base import ProviderConfig
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.urls import DeclaredOrigins, origin_of, url_problem

_HOST = r"^(?:login|test|[a-z0-9-]+(?:\.[a-z]+)?\.my)\.salesforce\.com$"


class SalesforceConfig(ProviderConfig):
    """Where the organisation's users sign in."""

    login_host: str = Field("login.salesforce.com", pattern=_HOST)


class SalesforceProvider(OAuth2Provider):
    """An organisation at Salesforce."""

    integration_type = "salesforce"
    display_name = "Salesforce"
    oauth_authorize_url = "https://{login_host}/services/oauth2/authorize"
    oauth_token_url = "https://{login_host}/services/oauth2/token"
    revoke_url = "https://{instance}/services/oauth2/revoke"
    verify_url = "https://{instance}/services/oauth2/userinfo"
    api_base_url = "https://{instance}"
    url_params: Mapping[str, str] = MappingProxyType({"login_host": "login.salesforce.com"})
    host_patterns = (
        "*.salesforce.com",
        "*.my.salesforce.com",
        "*.sandbox.my.salesforce.com",
        "*.develop.my.salesforce.com",
        "*.scratch.my.salesforce.com",
        "*.trailblaze.my.salesforce.com",
        "*.demo.my.salesforce.com",
        "*.patch.my.salesforce.com",
    )
    required_scopes = ("api", "openid", "refresh_token")
    token_auth = "client_secret_post"
    extra_fields = ("instance_url",)
    assumed_lifetime = timedelta(hours=1)
    error_codes: Mapping[str, str] = MappingProxyType(
        {"inactive_user": "invalid_grant", "inactive_org": "invalid_grant", "invalid_client_id": "invalid_client"}
    )
    account_id_field = "user_id"
    account_label_field = "preferred_username"
    config_model = SalesforceConfig

    def configure(self, config: SalesforceConfig) -> "SalesforceProvider":
        """By its login host."""
        return self.with_url_params(login_host=config.login_host)

    def read_tokens(self, response: HttpResponse, subject: str) -> OAuthTokens:
        """The tokens, with the host that they are good for."""
        tokens = super().read_tokens(response, subject)
        url = tokens.extras.get("instance_url", "")
        if url_problem(url, dev_mode=False) or origin_of(url) not in DeclaredOrigins.from_urls((), self.host_patterns):
            raise ProviderUnavailable
        return replace(tokens, extras={"instance": origin_of(url).removeprefix("https://").removesuffix(":443")})


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(SalesforceProvider.integration_type, SalesforceProvider)
