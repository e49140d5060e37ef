"""Outlook: mail and calendar of Microsoft 365 and outlook.com, with Microsoft Graph.

- Endpoints per tenant; client id and secret are sent in the form:
  learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-auth-code-flow [H]. `tenant` of the config is the id or
  domain of a tenant, or "common" (the default), "organizations" or "consumers" [H].
- `offline_access` requests a refresh token; responses do not list it [H]. A refresh sends `scope` too [H].
- Each refresh returns another refresh token, and the old one stays valid; it lasts 90 days:
  learn.microsoft.com/en-us/entra/identity-platform/refresh-tokens [H].
- `invalid_grant` has many causes, distinguished by numbers in `error_codes`: 700082 (not used for too long), 50173 (the
  password was changed) and 50076 (a second factor is required) end the grant [M]; 50196, a client in a loop, is
  transient [K]. `interaction_required` and similar codes also end it [M].
- A single token cannot be revoked [M]; the user removes the app at Microsoft.
- Granted scopes may come with the resource, `https://graph.microsoft.com/mail.read` [K 2026-11-29]. Scopes are compared
  without it and without case.
- Verification is GET /me of Graph, which User.Read allows [H].
- 10,000 requests in ten minutes per mailbox: learn.microsoft.com/graph/throttling-limits [H]. At most four concurrent
  requests [M]. The limits are per service, and each service has its own: those of mail, calendar and contacts, of files
  and sites, of Teams, of OneNote and of Planner are declared as resources [H].
"""

from datetime import timedelta

from pydantic import Field

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.base import ProviderConfig
from integration_server.providers.declaration import Errors
from integration_server.providers.lenient_values import field_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.microsoft_graph import MICROSOFT_GRAPH

_CLIENT_LOOP = 50196


class MicrosoftConfig(ProviderConfig):
    """The tenant whose users may sign in."""

    tenant: str = Field("common", pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")


class MicrosoftOutlookProvider(OAuth2Provider):
    """A user's mailbox and calendar."""

    integration_type = "microsoft_outlook"
    oauth_authorize_url = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/authorize"
    oauth_token_url = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"
    url_params = {"tenant": "common"}
    token_auth = "client_secret_post"
    refresh_token_grace = timedelta.max
    required_scopes = ("User.Read", "Mail.ReadWrite", "Calendars.ReadWrite", "offline_access")
    errors = Errors(dead=["interaction_required", "consent_required", "login_required"])
    verify_url = "https://graph.microsoft.com/v1.0/me"
    webhook_scheme = MICROSOFT_GRAPH
    account_id_field = "id"
    account_label_field = "userPrincipalName"
    api_base_url = "https://graph.microsoft.com/v1.0"
    allowed_request_headers = ("ConsistencyLevel", "client-request-id", "return-client-request-id")
    rate_limits = (RateLimit(10_000, timedelta(minutes=10), resource="outlook"),)
    calls_at_once = 4
    rate_limit_resources = {
        name: rf"(?:/(?:me|users/[^/]+|groups/[^/]+))?/(?:{segments})"
        for name, segments in {
            "outlook": "messages|mailFolders|sendMail|events?|calendar(?:s|View|Groups)?|contacts|contactFolders",
            "files": "drives?|sites|shares",
            "teams": "chats?|teams|joinedTeams|onlineMeetings",
            "onenote": "onenote",
            "planner": "planner",
        }.items()
    }
    reason_paths = ("error_codes.*", "error.code", "error")
    reasons = (
        *("700082", "50173", "50076", "50079", "50105", "65001", "530003", "7000215", "7000222"),
        *("InvalidAuthenticationToken", "ErrorAccessDenied", "Authorization_RequestDenied", "ErrorItemNotFound"),
        *("MailboxNotEnabledForRESTAPI", "ErrorQuotaExceeded", "ApplicationThrottled", "TooManyRequests"),
    )
    config_model = MicrosoftConfig

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """Refresh, with the granted scopes in the request."""
        scopes = dict.fromkeys((*(tokens.scopes or self.required_scopes), "offline_access"))
        params = {"grant_type": "refresh_token", "refresh_token": tokens.refresh_token or "", "scope": " ".join(scopes)}
        return await self.for_credentials(tokens).request_tokens(params, "grant")

    def oauth_error(self, fields: object) -> str | None:
        """The error code; `slow_down` for a client in a loop."""
        numbers = field_at(fields, "error_codes")
        if isinstance(numbers, list) and _CLIENT_LOOP in numbers:
            return "slow_down"
        return super().oauth_error(fields)


register = MicrosoftOutlookProvider.register_in
