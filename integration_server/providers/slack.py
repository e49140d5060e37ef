"""Slack, by its OAuth v2.

- Endpoints, and client id and secret in the form: docs.slack.dev/reference/methods/oauth.v2.access [H].
- Scopes have commas between them, in the request and in the answer [H]. Those of a bot are `scope`, those of the user
  who installs it `user_scope` [H]: a config's `user_scopes`.
- Errors come with HTTP 200 and `"ok": false`, in codes of Slack's own [H].
- The answer has a bot's token, and the user's in `authed_user` if user scopes were asked for [H]. The bot's is the one
  that is used and refreshed; the user's only where there is no bot's. Both are revoked.
- Without token rotation, which an app opts into for good, tokens do not expire; with it they last 12 hours, and a
  refresh token serves once: docs.slack.dev/authentication/using-token-rotation [H].
- PKCE makes an app a public client, for good: docs.slack.dev/changelog/2026/03/30/pkce [H]. We keep a secret, so no
  challenge is sent.
- Verified by auth.test [H], revoked by auth.revoke, which ends the token that it is called with [H]. An account is a
  workspace; all who install the app there get the same bot token, where tokens are not rotated [K].
- Limits are for each method, from one a minute on: docs.slack.dev/apis/web-api/rate-limits [H]. So none is declared,
  and what answers tell is kept to.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.errors import ProviderRejected, ProviderUnavailable
from integration_server.providers.base import ProviderConfig
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_json import field_at, read_object, text_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.slack import SLACK

_INVALID_TOKEN_ERRORS = frozenset(
    {"invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "user_removed_from_team"}
)
_MAX_ERROR_SIZE = 4096
_USER_TOKEN = "authed_user.access_token"


class SlackConfig(ProviderConfig):
    """What else is asked of the user."""

    user_scopes: tuple[Annotated[str, Field(pattern=r"^[a-z_.:]+$")], ...] = ()


class SlackProvider(OAuth2Provider):
    """A Slack workspace with our app in it."""

    integration_type = "slack"
    display_name = "Slack"
    oauth_authorize_url = "https://slack.com/oauth/v2/authorize"
    oauth_token_url = "https://slack.com/api/oauth.v2.access"
    revoke_url = "https://slack.com/api/auth.revoke"
    revokes_whole_account = True
    verify_url = "https://slack.com/api/auth.test"
    webhook_scheme = SLACK
    api_base_url = "https://slack.com/api"
    required_scopes = ("chat:write", "channels:read")
    scope_separator = ","
    token_auth = "client_secret_post"
    uses_pkce = False
    error_codes: Mapping[str, str] = MappingProxyType(
        {
            "invalid_code": "invalid_grant",
            "code_already_used": "invalid_grant",
            "invalid_refresh_token": "invalid_grant",
            "token_revoked": "invalid_grant",
            "account_inactive": "invalid_grant",
            "invalid_client_id": "invalid_client",
            "bad_client_secret": "invalid_client",
            "ratelimited": "temporarily_unavailable",
            "internal_error": "temporarily_unavailable",
            "fatal_error": "temporarily_unavailable",
            "request_timeout": "temporarily_unavailable",
            "service_unavailable": "temporarily_unavailable",
        }
    )
    extra_fields = ("team.id", "bot_user_id", "authed_user.id", _USER_TOKEN)
    account_id_field = "team_id"
    account_label_field = "team"
    config_model = SlackConfig

    def configure(self, config: SlackConfig) -> "SlackProvider":
        """One that asks for the user's scopes too."""
        if not config.user_scopes:
            return self
        return self.with_attributes(authorize_params={"user_scope": ",".join(config.user_scopes)})

    def token_fields(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The bot's token, or the user's where there is no bot. Slack calls their types "bot" and "user"."""
        user = fields.get("authed_user")
        if "access_token" not in fields and isinstance(user, dict):
            fields = {**user, "team": fields.get("team"), "authed_user": {"id": user.get("id")}}
        return {**fields, "token_type": "bearer"}

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """What is said with HTTP 200 too."""
        return super().rejects_credentials(response) or self._error_of(response) in _INVALID_TOKEN_ERRORS

    def _error_of(self, response: HttpResponse) -> str | None:
        # Errors are short; what is long is not worth the reading.
        return text_at(read_object(response.body), "error") if len(response.body) <= _MAX_ERROR_SIZE else None

    def rejects_access_token(self, response: HttpResponse) -> bool:
        """Whatever the method, `error` says so, with HTTP 200."""
        return self._error_of(response) in _INVALID_TOKEN_ERRORS

    def is_failure(self, response: HttpResponse) -> bool:
        """Whatever is not `"ok": true`."""
        return field_at(read_object(response.body), "ok") is not True

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """End the bot's token and the user's."""
        if not isinstance(credentials, OAuthTokens):
            return False
        try:
            tokens = await self.refresh_if_expired(credentials)
        except ProviderRejected:
            return True  # what cannot be renewed is dead already
        for token in {tokens.access_token, tokens.extras.get(_USER_TOKEN, tokens.access_token)}:
            response = await self.send("POST", self.revoke_url, headers={"Authorization": f"Bearer {token}"})
            if self.rejects_credentials(response):
                continue  # dead before we came
            if not response.is_success or self.is_failure(response):
                raise ProviderUnavailable(retry_after=response.retry_after)
        return True


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(SlackProvider.integration_type, SlackProvider)
