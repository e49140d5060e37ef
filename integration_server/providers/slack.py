"""Slack: a response may have the tokens of a bot and of a user, both are revoked, and errors have HTTP 200."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.errors import ProviderRejected
from integration_server.domain.lenient_values import text_at
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.service.integrations.ports import NewAccount

_INVALID_TOKEN_ERRORS = frozenset(
    {"invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "user_removed_from_team"}
)
_MAX_ERROR_SIZE = 4096
_USER_TOKEN = "user_access_token"
_USER_REFRESH_TOKEN = "user_refresh_token"


class SlackProvider(OAuth2Provider):
    """A Slack workspace that has our app installed."""

    def token_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The bot token, or the user's token if there is none. Slack's token types are "bot" and "user"."""
        user = fields.get("authed_user")
        if "access_token" not in fields and isinstance(user, dict):
            fields = {**user, "team": fields.get("team"), "authed_user": {"id": user.get("id")}}
        return {**fields, "token_type": "bearer"}

    def account_of(self, credentials: Credentials, fields: Mapping[str, Any]) -> NewAccount:
        """The workspace, or the enterprise if the app is installed in a whole enterprise."""
        account = super().account_of(credentials, fields)
        enterprise = text_at(fields, "enterprise_id") if fields.get("is_enterprise_install") is True else None
        return replace(account, account_id=enterprise) if enterprise else account

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """Also an error code with HTTP 200."""
        return super().rejects_credentials(response) or self.rejects_access_token(response)

    def rejects_access_token(self, response: HttpResponse) -> bool:
        """Also `error` with HTTP 200. A long body is not an error, and is not parsed."""
        return super().rejects_access_token(response) or (
            len(response.body) <= _MAX_ERROR_SIZE and text_at(response.json, "error") in _INVALID_TOKEN_ERRORS
        )

    async def revoke_tokens(self, revoke_url: str, tokens: OAuthTokens) -> bool:
        """Revoke the bot token and the user's token."""
        user_token, user_refresh_token = map(tokens.extras.get, (_USER_TOKEN, _USER_REFRESH_TOKEN))
        if user_refresh_token is not None:
            # The user's token is not refreshed otherwise. Its end would be taken for the end of the grant.
            with suppress(ProviderRejected):  # that grant has ended already
                user_token = (await self.refresh_access_token(user_refresh_token)).access_token
        for access_token in dict.fromkeys((tokens.access_token, user_token or tokens.access_token)):
            await super().revoke_tokens(revoke_url, replace(tokens, access_token=access_token))
        return True
