"""GitHub: OAuth Apps, and the user access tokens of GitHub Apps.

- Endpoints; client id and secret are sent in the form: docs.github.com/en/apps/oauth-apps/building-oauth-apps [H].
  Responses are JSON for `Accept: application/json`, which every request has [H].
- Errors come with HTTP 200 and GitHub's own codes:
  docs.github.com/apps/oauth-apps/maintaining-oauth-apps/troubleshooting-oauth-app-access-token-request-errors [H].
- Spaces separate scopes in requests, commas in responses [H]. A GitHub App has permissions instead, and its responses
  have no scopes [H]. A response leaves out scopes that another scope includes [M].
- Tokens of OAuth Apps do not expire [K]. Those of GitHub Apps last 8 hours, with a single-use refresh token of 6
  months: docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app [H].
- PKCE with S256: github.blog/changelog/2025-07-14-pkce-support-for-oauth-and-github-app-authentication [H].
- A revocation is DELETE of the grant, with client id and secret as HTTP Basic; it ends all tokens of the user for the
  app: docs.github.com/en/rest/apps/oauth-applications [H].
- More than ten tokens of one user, app and set of scopes: the oldest is revoked:
  docs.github.com/en/apps/oauth-apps/building-oauth-apps [H 2026-11-29]. Each connection of the same user makes one.
- A rate limit is reported with 403 or 429, and `retry-after`, or `x-ratelimit-remaining: 0` with the time of its reset;
  the limits are per `x-ratelimit-resource`:
  docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api [H 2026-11-29].
- 5,000 requests an hour per user, and 900 points a minute; a request costs one point, or five if it writes:
  docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api [H]. The server counts requests, not points.
"""

from datetime import timedelta

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderUnavailable
from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.declaration import Errors
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.github import GITHUB


class GitHubProvider(OAuth2Provider):
    """A user's account at GitHub."""

    integration_type = "github"
    display_name = "GitHub"
    oauth_authorize_url = "https://github.com/login/oauth/authorize"
    oauth_token_url = "https://github.com/login/oauth/access_token"
    revoke_url = "https://api.github.com/applications/{client_id}/grant"
    revoke_token = "bearer"
    revocation_ends = "grant"
    required_scopes = ("read:user",)
    scope_equivalents = {
        "repo": ("repo:status", "repo_deployment", "public_repo", "repo:invite", "security_events"),
        "user": ("read:user", "user:email", "user:follow"),
        "project": ("read:project",),
        "write:packages": ("read:packages",),
        **{
            f"{wider}:{resource}": (f"{narrower}:{resource}",)
            for resource in ("org", "public_key", "repo_hook", "gpg_key", "ssh_signing_key")
            for wider, narrower in (("admin", "write"), ("write", "read"))
        },
    }
    token_auth = "client_secret_post"
    errors = Errors(dead=["bad_verification_code", "bad_refresh_token"], client=["incorrect_client_credentials"])
    verify_url = "https://api.github.com/user"
    webhook_scheme = GITHUB
    account_id_field = "id"
    account_label_field = "login"
    api_base_url = "https://api.github.com"
    reasons = ("bad_verification_code", "redirect_uri_mismatch", "unverified_user_email", "application_suspended")
    allowed_request_headers = ("X-GitHub-Api-Version",)
    rate_limits = (RateLimit(5_000, timedelta(hours=1), resource="core"), RateLimit(900, timedelta(minutes=1)))
    rate_limit_resources = {"code_search": "/search/code", "search": "/search", "graphql": "/graphql", "core": "/[^/]*"}
    rate_limit_resource_paths = ("header:x-ratelimit-resource",)

    def reported_resource(self, response: HttpResponse) -> str | None:
        """The one that is named; for a secondary limit, all of them."""
        is_primary = response.headers.get("x-ratelimit-remaining") == "0"
        return "" if self.is_rate_limited(response) and not is_primary else super().reported_resource(response)

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Also 403 where no request remains."""
        is_exhausted = response.status == 403 and response.headers.get("x-ratelimit-remaining") == "0"
        return super().is_rate_limited(response) or is_exhausted

    async def revoke_tokens(self, revoke_url: str, tokens: OAuthTokens) -> bool:
        """Delete the grant."""
        response = await self.with_url_params(client_id=self.client_id).send(
            "DELETE",
            revoke_url,
            headers={"Authorization": self.basic_authorization()},
            json={"access_token": tokens.access_token},
        )
        if response.status == 401:
            raise ProviderMisconfigured
        if not response.is_success and response.status not in {404, 422}:  # these mean that there is no such token
            raise ProviderUnavailable(retry_after=response.retry_after)
        return True


register = GitHubProvider.register_in
