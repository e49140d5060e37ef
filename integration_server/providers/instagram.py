"""Instagram: tokens are exchanged and renewed by age, codes have a suffix, errors of our client have no code."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.lenient_values import field_at, text_at
from integration_server.providers.meta import MetaProvider
from integration_server.providers.webhooks.meta import app_user_route
from integration_server.service.integrations.ports import NewAccount

_INVALID_CLIENT = "invalid platform app"  # there is no code for it, only this message
_MIN_REFRESH_AGE = timedelta(hours=24)


class InstagramProvider(MetaProvider):
    """A professional account."""

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
