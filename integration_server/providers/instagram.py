"""Instagram professional accounts, with Instagram's own login.

- Endpoints and scopes:
  developers.facebook.com/docs/instagram-platform/instagram-api-with-instagram-login/business-login [H]. Commas separate
  scopes.
- The code ends in `#_`, which is not part of it [H].
- The response to a code has `user_id`, `permissions` and a token of an hour, either directly or as the only element of
  `data` [H]. Errors have `error_type` and `error_message` [K]. "Invalid platform app" in them is an error of our client
  [H 2026-11-29].
- The `user_id` of the response is the app-scoped id, which the deauthorize callback names too, and not the one of /me
  [M 2026-11-29]. It is stored with the tokens, and as a route of the integration's webhooks.
- Webhooks are signed with the secret of the Facebook app or of the Instagram app; which one is not documented
  [K 2026-11-29]. With the setting `INSTAGRAM_WEBHOOK_SECRET`, both are tried.
- Versions of the Graph API end two years after the next one appears; v24.0 on 18 February 2028:
  developers.facebook.com/docs/graph-api/changelog/versions [H 2026-11-29]. The setting `INSTAGRAM_API_VERSION` names
  another one.
- GET graph.instagram.com/access_token exchanges that token for one of 60 days. GET /refresh_access_token renews that
  one, if it is 24 hours old and has not expired:
  developers.facebook.com/docs/instagram-platform/reference/refresh_access_token [H]. A younger one is not renewed.
- Tokens cannot be revoked [K].
- Verification is GET /me; its `user_id` identifies the professional account [H].
- PKCE is not documented; RFC 6749 §3.1 requires that unknown parameters are ignored, so it is sent [K].
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.providers.declaration import ExpiringFact, TokenResponse, api_version_setting
from integration_server.providers.lenient_values import field_at, text_at
from integration_server.providers.meta import MetaProvider
from integration_server.providers.webhooks.meta import INSTAGRAM, app_user_route
from integration_server.service.integrations.ports import NewAccount

_INVALID_CLIENT = "invalid platform app"  # there is no code for it, only this message
_MIN_REFRESH_AGE = timedelta(hours=24)


class InstagramProvider(MetaProvider):
    """A professional account."""

    integration_type = "instagram"
    oauth_authorize_url = "https://www.instagram.com/oauth/authorize"
    oauth_token_url = "https://api.instagram.com/oauth/access_token"
    required_scopes = ("instagram_business_basic",)
    webhook_scheme = INSTAGRAM
    token_response = TokenResponse(keep={"app_user_id": "user_id"})
    settings = {"api_version": api_version_setting("v24.0")}
    expiring_facts = (ExpiringFact("Graph API v24.0", date(2028, 2, 18), "v24.0"),)
    verify_url = "https://graph.instagram.com/{api_version}/me?fields=user_id,username"
    account_id_field = "user_id"
    account_label_field = "username"
    api_base_url = "https://graph.instagram.com"

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Exchange a code, without its suffix."""
        return await super().exchange_code_for_tokens(code.removesuffix("#_"), redirect_uri, code_verifier)

    def token_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields without the wrapper `data`, and `permissions` as scopes."""
        only = field_at(fields, "data.0")
        fields = only if isinstance(only, dict) else fields
        return {"scope": fields.get("permissions"), **fields}

    def oauth_error(self, fields: object) -> str | None:
        """`invalid_grant` for any other `error_type`, which then concerns the code; else the Graph API's number."""
        messages = (text_at(fields, path) or "" for path in ("error_message", "error.message"))
        if any(message.casefold().rstrip(".") == _INVALID_CLIENT for message in messages):
            return "invalid_client"
        return super().oauth_error(fields) if field_at(fields, "error_type") is None else "invalid_grant"

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """Also our client secret where another secret is set: either may sign."""
        secrets = super().webhook_secrets(credentials)
        return (
            list(dict.fromkeys((*secrets, self.client_secret)))
            if credentials is None and self.client_secret
            else secrets
        )

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Check the credentials. The account has the route of the deauthorize callback."""
        account = await super().verify_connection(credentials)
        user_id = credentials.extras.get("app_user_id") if isinstance(credentials, OAuthTokens) else None
        return replace(account, webhook_routes=(app_user_route(user_id),) if user_id else ())

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Exchange the short-lived token."""
        query = {"grant_type": "ig_exchange_token", "client_secret": self.client_secret}
        return tokens.updated_with(
            await self._request_token("access_token", tokens.access_token, query), self._context.clock()
        )

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """Renew the token, unless it is too young."""
        if tokens.expire_time is not None and tokens.lifetime is not None:
            begin = tokens.expire_time - tokens.lifetime
            if self._context.clock() - begin < _MIN_REFRESH_AGE:
                return tokens
        return await super().refresh(tokens)

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """Renew a long-lived token."""
        return await self._request_token("refresh_access_token", refresh_token, {"grant_type": "ig_refresh_token"})

    async def _request_token(self, path: str, access_token: str, query: Mapping[str, str]) -> OAuthTokens:
        url, query = f"{self.api_base_url}/{path}", {**query, "access_token": access_token}
        return self.read_tokens(await self.send("GET", url, query=query), "grant")


register = InstagramProvider.register_in
