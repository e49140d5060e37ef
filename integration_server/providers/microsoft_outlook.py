"""Outlook: mail and calendar of Microsoft 365 and outlook.com, by Microsoft Graph.

- Endpoints of a tenant, and client id and secret in the form:
  learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-auth-code-flow [H]. `tenant` of the config is a tenant's
  id or domain, or "common" (the default), "organizations" or "consumers" [H].
- `offline_access` asks for a refresh token; answers do not list it [H]. `scope` is sent with a refresh too [H].
- Each refresh gives another refresh token, and leaves the old one as it is; it lasts 90 days:
  learn.microsoft.com/en-us/entra/identity-platform/refresh-tokens [H].
- `invalid_grant` stands for much, told apart by numbers in `error_codes`: 700082 (not used for too long), 50173 (the
  password was changed) and 50076 (a second factor is asked for) end the grant [M]; 50196, a client in a loop, passes
  [K]. `interaction_required` and its like end it too [M].
- Nothing revokes a single token [M]; the user removes the app at Microsoft.
- Verified by GET /me of Graph, for which User.Read is enough [H].
- 10,000 requests in ten minutes to one mailbox: learn.microsoft.com/graph/throttling-limits [H]. No more than four at
  once [M].
"""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

from authlib.oauth2.rfc6749.parameters import prepare_token_request
from pydantic import Field

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.base import ProviderConfig
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_json import field_at, read_object
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.microsoft_graph import MICROSOFT_GRAPH

_CLIENT_LOOP = 50196


class MicrosoftConfig(ProviderConfig):
    """Whose users may sign in."""

    tenant: str = Field("common", pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")


class MicrosoftOutlookProvider(OAuth2Provider):
    """A user's mailbox and calendar."""

    integration_type = "microsoft_outlook"
    display_name = "Microsoft Outlook"
    oauth_authorize_url = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/authorize"
    oauth_token_url = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"
    url_params: Mapping[str, str] = MappingProxyType({"tenant": "common"})
    token_auth = "client_secret_post"
    refresh_token_grace = timedelta.max  # a refresh leaves the refresh token as it is
    required_scopes = ("User.Read", "Mail.ReadWrite", "Calendars.ReadWrite", "offline_access")
    error_codes: Mapping[str, str] = MappingProxyType(
        {
            "interaction_required": "invalid_grant",
            "consent_required": "invalid_grant",
            "login_required": "invalid_grant",
        }
    )
    verify_url = "https://graph.microsoft.com/v1.0/me"
    webhook_scheme = MICROSOFT_GRAPH
    account_id_field = "id"
    account_label_field = "userPrincipalName"
    api_base_url = "https://graph.microsoft.com/v1.0"
    rate_limits = (RateLimit(10_000, timedelta(minutes=10)),)
    calls_at_once = 4
    config_model = MicrosoftConfig

    def configure(self, config: MicrosoftConfig) -> "MicrosoftOutlookProvider":
        """At the tenant."""
        return self.with_url_params(tenant=config.tenant)

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """Refresh, naming the scopes."""
        scopes = dict.fromkeys((*(tokens.scopes or self.required_scopes), "offline_access"))
        refresh_token = tokens.refresh_token or ""
        body = prepare_token_request("refresh_token", refresh_token=refresh_token, scope=" ".join(scopes))
        return await self.for_credentials(tokens).request_tokens(body, "grant")

    def oauth_error(self, response: HttpResponse) -> str | None:
        """The error, unless it is only we who ask too often."""
        numbers = field_at(read_object(response.body), "error_codes")
        if isinstance(numbers, list) and _CLIENT_LOOP in numbers:
            return "slow_down"
        return super().oauth_error(response)


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(MicrosoftOutlookProvider.integration_type, MicrosoftOutlookProvider)
