"""HubSpot.

- Token and revocation endpoints have a dated version, 2026-03; the v1 endpoints end on 16 February 2027:
  developers.hubspot.com/changelog/v1-oauth-api-deprecation [H]. The setting `HUBSPOT_API_VERSION` names another one.
  Responses have `scopes`, a list, and `hub_id`; certain for v1 [M 2026-11-29]. Client id and secret are sent in the
  form: developers.hubspot.com/docs/api-reference/latest/authentication/oauth-tokens/revoke-token [H].
- Errors are those of RFC 6749, with HubSpot's own `status` beside them:
  developers.hubspot.com/changelog/new-oauth-v3-api-endpoints-and-standardized-error-responses [H].
- Access tokens last 30 minutes at present; the response has the lifetime [H]. The refresh token stays the same [K].
- A revocation ends the refresh token; access tokens stay valid until they expire:
  developers.hubspot.com/docs/methods/oauth2/delete-refresh-token [H].
- The parameter `optional_scope`, from `optional_scopes` of the config, has scopes that an account may lack [H].
- Verification is the account's details, which the scope `oauth` allows [K].
- 100 requests in ten seconds per account: developers.hubspot.com/apisbytier [H]. Newer figures are higher [K].
  The search has a limit of its own, five requests a second, which its responses do not report [K].
- PKCE is not documented; RFC 6749 §3.1 requires that unknown parameters are ignored, so it is sent [K].
"""

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.base import ProviderConfig
from integration_server.providers.declaration import api_version_setting
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.hubspot import HUBSPOT


class HubSpotConfig(ProviderConfig):
    """Further scopes, requested from accounts that have them."""

    optional_scopes: tuple[Annotated[str, Field(pattern=r"^[a-z0-9_.-]+$")], ...] = ()


class HubSpotProvider(OAuth2Provider):
    """A HubSpot account."""

    integration_type = "hubspot"
    display_name = "HubSpot"
    oauth_authorize_url = "https://app.hubspot.com/oauth/authorize"
    settings = {"api_version": api_version_setting("2026-03")}
    oauth_token_url = "https://api.hubapi.com/oauth/{api_version}/token"
    revoke_url = "https://api.hubapi.com/oauth/{api_version}/token/revoke"
    required_scopes = ("oauth", "crm.objects.contacts.read")
    token_auth = "client_secret_post"
    refresh_token_grace = timedelta.max
    verify_url = "https://api.hubapi.com/account-info/v3/details"
    webhook_scheme = HUBSPOT
    account_id_field = "portalId"
    account_label_field = "uiDomain"
    api_base_url = "https://api.hubapi.com"
    reason_paths = ("category", "status", "error")
    reasons = (
        *("EXPIRED_AUTHENTICATION", "INVALID_AUTHENTICATION", "MISSING_SCOPES", "RATE_LIMITS", "VALIDATION_ERROR"),
        *("BAD_AUTH_CODE", "BAD_CLIENT_ID", "BAD_CLIENT_SECRET", "BAD_REFRESH_TOKEN", "BANNED"),
    )
    rate_limits = (RateLimit(100, timedelta(seconds=10)), RateLimit(5, timedelta(seconds=1), resource="search"))
    rate_limit_resources = {"search": "/crm/(?:v3/)?objects/[^/]+/search"}
    config_model = HubSpotConfig

    def configure(self, config: HubSpotConfig) -> "HubSpotProvider":
        """Request the optional scopes too."""
        if not config.optional_scopes:
            return self
        return self.with_attributes(authorize_params={"optional_scope": " ".join(config.optional_scopes)})


register = HubSpotProvider.register_in
