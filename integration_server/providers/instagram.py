"""Instagram, professional accounts, with Instagram's own login.

- Endpoints and scopes:
  developers.facebook.com/docs/instagram-platform/instagram-api-with-instagram-login/business-login [H]. Scopes have
  commas between them.
- The code ends in `#_`, which is not part of it [H].
- A code yields `user_id`, `permissions` and a token of an hour, by themselves or as the only element of `data` [H];
  errors have `error_type` and `error_message` [K].
- That token is exchanged by GET graph.instagram.com/access_token for one of 60 days, and that one renewed by GET
  /refresh_access_token, once it is 24 hours old and while it has not expired:
  developers.facebook.com/docs/instagram-platform/reference/refresh_access_token [H]. A younger one is left as it is.
- Nothing revokes a token [K].
- Verified by GET /me, whose `user_id` is the professional account's [H].
- PKCE is not documented; RFC 6749 §3.1 has unknown parameters ignored, so it is sent [K].
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from integration_server.domain.credentials import OAuthTokens
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_json import field_at, read_object
from integration_server.providers.meta import MetaProvider
from integration_server.providers.webhooks.meta import META

_MIN_REFRESH_AGE = timedelta(hours=24)


class InstagramProvider(MetaProvider):
    """A professional account."""

    integration_type = "instagram"
    display_name = "Instagram"
    oauth_authorize_url = "https://www.instagram.com/oauth/authorize"
    oauth_token_url = "https://api.instagram.com/oauth/access_token"
    required_scopes = ("instagram_business_basic",)
    extra_fields = ("user_id",)
    verify_url = "https://graph.instagram.com/v24.0/me?fields=user_id,username"
    webhook_scheme = META
    account_id_field = "user_id"
    account_label_field = "username"
    api_base_url = "https://graph.instagram.com"

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Trade a code."""
        return await super().exchange_code_for_tokens(code.removesuffix("#_"), redirect_uri, code_verifier)

    def token_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """An answer without its wrapping, and `permissions` as scopes."""
        only = field_at(fields, "data.0")
        fields = only if isinstance(only, dict) else fields
        return {"scope": fields.get("permissions"), **fields}

    def oauth_error(self, response: HttpResponse) -> str | None:
        """The Graph's number, or that there was an `error_type`: it only ever speaks of the code."""
        if field_at(read_object(response.body), "error_type") is not None:
            return "invalid_grant"
        return super().oauth_error(response)

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Exchange the short-lived token."""
        return tokens.updated_with(
            await self._request_token(
                "access_token", "ig_exchange_token", tokens.access_token, client_secret=self.client_secret
            )
        )

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """Refresh, but not what is too young for it."""
        if tokens.expire_time is not None and tokens.lifetime is not None:
            begin = tokens.expire_time - tokens.lifetime
            if self._context.clock() - begin < _MIN_REFRESH_AGE:
                return tokens
        return await super().refresh(tokens)

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """Renew a long-lived token."""
        return await self._request_token("refresh_access_token", "ig_refresh_token", refresh_token)

    async def _request_token(self, path: str, grant_type: str, token: str, **extra_params: str) -> OAuthTokens:
        query = {"grant_type": grant_type, "access_token": token, **extra_params}
        response = await self.send("GET", f"{self.api_base_url}/{path}", query=query)
        return self.with_access_token_as_refresh_token(self.read_tokens(response, "grant"))


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(InstagramProvider.integration_type, InstagramProvider)
