"""Slack, with its OAuth v2.

- Endpoints; client id and secret are sent in the form: docs.slack.dev/reference/methods/oauth.v2.access [H].
- Commas separate scopes in requests and responses [H]. `scope` has the bot's scopes, `user_scope` those of the
  installing user [H]. `user_scopes` of the config are sent as `user_scope`.
- Errors come with HTTP 200, `"ok": false` and Slack's own codes [H].
- The response has a bot token, and the user's token in `authed_user` if user scopes were requested [H]. The bot token
  is used and refreshed; the user's token only if there is no bot token. Both are revoked. With token rotation the
  user's token has a refresh token too [M 2026-11-29]; it is used to revoke a token that has expired.
- Tokens do not expire, unless the app has enabled token rotation, which is permanent; then they last 12 hours, and
  refresh tokens are single-use: docs.slack.dev/authentication/using-token-rotation [H].
- PKCE turns an app into a public client permanently: docs.slack.dev/changelog/2026/03/30/pkce [H]. Our client has a
  secret, so no challenge is sent.
- Responses list the scope `identify`, which cannot be requested [K].
- Verification is auth.test [H]. A revocation is auth.revoke, which ends the token that authenticates it [H]; that of a
  bot deactivates the bot for all who use it: docs.slack.dev/reference/methods/auth.revoke [H 2026-11-29]. An account
  is a workspace; all users who install the app there receive the same bot token, if tokens are not rotated [K].
- Rate limits are per method, and so is a 429 [H 2026-11-29]. They begin with one call a minute:
  docs.slack.dev/apis/web-api/rate-limits [H]. No limit is declared; a 429 pauses its method.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.errors import ProviderRejected
from integration_server.providers.base import ProviderConfig
from integration_server.providers.declaration import Errors, TokenResponse
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_values import field_at, text_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.slack import SLACK
from integration_server.service.integrations.ports import NewAccount

_INVALID_TOKEN_ERRORS = frozenset(
    {"invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "user_removed_from_team"}
)
_MAX_ERROR_SIZE = 4096
_USER_TOKEN = "user_access_token"
_USER_REFRESH_TOKEN = "user_refresh_token"


class SlackConfig(ProviderConfig):
    """Scopes to request from the user."""

    user_scopes: tuple[Annotated[str, Field(pattern=r"^[a-z_.:]+$")], ...] = ()


class SlackProvider(OAuth2Provider):
    """A Slack workspace that has our app installed."""

    integration_type = "slack"
    oauth_authorize_url = "https://slack.com/oauth/v2/authorize"
    oauth_token_url = "https://slack.com/api/oauth.v2.access"
    revoke_url = "https://slack.com/api/auth.revoke"
    revoke_token = "bearer"
    revocation_ends = "grant"
    verify_url = "https://slack.com/api/auth.test"
    webhook_scheme = SLACK
    api_base_url = "https://slack.com/api"
    required_scopes = ("chat:write", "channels:read")
    scope_separator = ","
    retired_scopes = ("identify",)
    token_auth = "client_secret_post"
    pkce = False
    errors = Errors(
        dead=["invalid_code", "code_already_used", "invalid_refresh_token", "token_revoked", "account_inactive"],
        client=["invalid_client_id", "bad_client_secret"],
        wait=["ratelimited", "internal_error", "fatal_error", "request_timeout", "service_unavailable"],
    )
    token_response = TokenResponse(
        keep={
            "installed_team": "team.id",
            "bot_user": "bot_user_id",
            "installing_user": "authed_user.id",
            _USER_TOKEN: "authed_user.access_token",
            _USER_REFRESH_TOKEN: "authed_user.refresh_token",
        }
    )
    reasons = (
        *_INVALID_TOKEN_ERRORS,
        *("missing_scope", "not_in_channel", "channel_not_found", "ratelimited", "ekm_access_denied", "access_denied"),
        *(
            "enterprise_is_restricted",
            "team_access_not_granted",
            "restricted_action",
            "no_permission",
            "org_login_required",
        ),
    )
    rate_limit_resources = {"{method}": r"/(?P<method>[A-Za-z0-9_.]+)"}
    account_id_field = "team_id"
    account_label_field = "team"
    config_model = SlackConfig

    def configure(self, config: SlackConfig) -> "SlackProvider":
        """Request the user scopes too."""
        if not config.user_scopes:
            return self
        return self.with_attributes(authorize_params={"user_scope": ",".join(config.user_scopes)})

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

    def is_failure(self, response: HttpResponse) -> bool:
        """Everything but `"ok": true`."""
        return field_at(response.json, "ok") is not True

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


register = SlackProvider.register_in
