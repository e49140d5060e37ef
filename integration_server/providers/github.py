"""GitHub: OAuth Apps, and the user's tokens of GitHub Apps.

- Endpoints, and client id and secret in the form: docs.github.com/en/apps/oauth-apps/building-oauth-apps [H]. Answers
  are JSON for `Accept: application/json`, which every request has [H].
- Errors come with HTTP 200, in codes of GitHub's own:
  docs.github.com/apps/oauth-apps/maintaining-oauth-apps/troubleshooting-oauth-app-access-token-request-errors [H].
- Scopes are asked for with spaces, and answered with commas between them [H]. A GitHub App has permissions instead, and
  answers no scopes [H]. A scope that another one includes is left out of the answer [M].
- Tokens of OAuth Apps do not expire [K]. Those of GitHub Apps last 8 hours, with a refresh token of 6 months that
  serves once: docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app [H].
- PKCE with S256: github.blog/changelog/2025-07-14-pkce-support-for-oauth-and-github-app-authentication [H].
- Revoked by DELETE of the grant, with client id and secret as Basic; it ends all tokens of the user for the app:
  docs.github.com/en/rest/apps/oauth-applications [H].
- 5,000 requests an hour for one user, and 900 points a minute, of which a request takes one, or five where it writes:
  docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api [H]. Points are not counted here, only requests.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.github import GITHUB


class GitHubProvider(OAuth2Provider):
    """A user's account at GitHub."""

    integration_type = "github"
    display_name = "GitHub"
    oauth_authorize_url = "https://github.com/login/oauth/authorize"
    oauth_token_url = "https://github.com/login/oauth/access_token"
    revoke_url = "https://api.github.com/applications/{client_id}/grant"
    revokes_whole_account = True
    required_scopes = ("read:user",)
    implied_scopes: Mapping[str, Sequence[str]] = MappingProxyType(
        {
            "repo": ("repo:status", "repo_deployment", "public_repo", "repo:invite", "security_events"),
            "user": ("read:user", "user:email", "user:follow"),
            "project": ("read:project",),
            "write:packages": ("read:packages",),
            **{
                f"{more}:{resource}": (f"{less}:{resource}",)
                for resource in ("org", "public_key", "repo_hook", "gpg_key", "ssh_signing_key")
                for more, less in (("admin", "write"), ("write", "read"))
            },
        }
    )
    token_auth = "client_secret_post"
    error_codes: Mapping[str, str] = MappingProxyType(
        {
            "bad_verification_code": "invalid_grant",
            "bad_refresh_token": "invalid_grant",
            "incorrect_client_credentials": "invalid_client",
        }
    )
    verify_url = "https://api.github.com/user"
    webhook_scheme = GITHUB
    account_id_field = "id"
    account_label_field = "login"
    api_base_url = "https://api.github.com"
    rate_limits = (RateLimit(5_000, timedelta(hours=1)), RateLimit(900, timedelta(minutes=1)))

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Delete the grant."""
        if not isinstance(credentials, OAuthTokens):
            return False
        try:
            tokens = await self.refresh_if_expired(credentials)
        except ProviderRejected:
            return True  # what cannot be renewed is dead already
        headers = {"Authorization": self.basic_authorization(), "Content-Type": "application/json"}
        body = json.dumps({"access_token": tokens.access_token})
        ours = self.with_url_params(client_id=self.client_id)
        response = await ours.send("DELETE", self.revoke_url, headers=headers, content=body)
        if response.status == 401:
            raise ProviderMisconfigured
        if not response.is_success and response.status not in {404, 422}:  # of these, there is no such token
            raise ProviderUnavailable(retry_after=response.retry_after, is_refusal=response.is_refusal)
        return True


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(GitHubProvider.integration_type, GitHubProvider)
