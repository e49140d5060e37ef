"""HubSpot.

- Tokens and their revocation are at dated endpoints, version 2026-03; the v1 endpoints end on 16 February 2027:
  developers.hubspot.com/changelog/v1-oauth-api-deprecation [H]. Client id and secret in the form:
  developers.hubspot.com/docs/api-reference/latest/authentication/oauth-tokens/revoke-token [H].
- Errors are those of RFC 6749, with HubSpot's own `status` beside them:
  developers.hubspot.com/changelog/new-oauth-v3-api-endpoints-and-standardized-error-responses [H].
- Access tokens last 30 minutes today; the answer says how long [H]. The refresh token stays the same [K].
- Revoking ends the refresh token; access tokens live on until they expire:
  developers.hubspot.com/docs/methods/oauth2/delete-refresh-token [H].
- `optional_scopes` of the config may be left out by accounts that do not have them: `optional_scope` [H].
- Verified by the account's details, which the scope `oauth` allows [K].
- 100 requests in ten seconds to one account: developers.hubspot.com/apisbytier [H]. Newer figures are higher [K].
- PKCE is not documented; RFC 6749 §3.1 has unknown parameters ignored, so it is sent [K].
"""

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.base import ProviderConfig
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.hubspot import HUBSPOT


class HubSpotConfig(ProviderConfig):
    """What else is asked for, where the account has it."""

    optional_scopes: tuple[Annotated[str, Field(pattern=r"^[a-z0-9_.-]+$")], ...] = ()


class HubSpotProvider(OAuth2Provider):
    """A HubSpot account."""

    integration_type = "hubspot"
    display_name = "HubSpot"
    oauth_authorize_url = "https://app.hubspot.com/oauth/authorize"
    oauth_token_url = "https://api.hubapi.com/oauth/2026-03/token"
    revoke_url = "https://api.hubapi.com/oauth/2026-03/token/revoke"
    required_scopes = ("oauth", "crm.objects.contacts.read")
    token_auth = "client_secret_post"
    refresh_token_grace = timedelta.max  # a refresh leaves the refresh token as it is
    verify_url = "https://api.hubapi.com/account-info/v3/details"
    webhook_scheme = HUBSPOT
    account_id_field = "portalId"
    account_label_field = "uiDomain"
    api_base_url = "https://api.hubapi.com"
    rate_limits = (RateLimit(100, timedelta(seconds=10)),)
    config_model = HubSpotConfig

    def configure(self, config: HubSpotConfig) -> "HubSpotProvider":
        """One that asks for the optional scopes too."""
        if not config.optional_scopes:
            return self
        return self.with_attributes(authorize_params={"optional_scope": " ".join(config.optional_scopes)})


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(HubSpotProvider.integration_type, HubSpotProvider)
