"""The base of Meta's services: the Graph API, and tokens that are exchanged instead of refreshed.

- There are no refresh tokens. A token of 60 days can be exchanged for another one until it expires, and stays valid:
  developers.facebook.com/docs/facebook-login/guides/access-tokens/get-long-lived [M 2026-11-29]. The access token is
  therefore stored as its own refresh token, with the same expiry, and is renewed after half of its lifetime: an outage
  near the expiry would otherwise end the grant.
- Errors have numbers, in `error.code`: developers.facebook.com/docs/graph-api/guides/error-handling [H]. 190 and 102:
  the token is invalid. 101: our client [K]. 1 and 2: transient. 4, 17, 32, 341, 368, 613 and 80000 to 80014: wait;
  they come with HTTP 400 or 403: developers.facebook.com/docs/graph-api/overview/rate-limiting [H 2026-11-29].
"""

from dataclasses import replace
from datetime import timedelta

from integration_server.domain.credentials import OAuthTokens
from integration_server.providers.declaration import Errors
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.meta import META

_WAIT_CODES = frozenset({4, 17, 32, 341, 368, 613, *range(80_000, 80_015)})


class MetaProvider(OAuth2Provider):
    """A Meta service."""

    token_auth = "client_secret_post"
    scope_separator = ","
    errors = Errors(
        field="error.code", dead=["190", "102"], client=["101"], wait=["1", "2", *map(str, sorted(_WAIT_CODES))]
    )
    reason_paths = ("error.error_subcode", "error.code")
    reasons = (
        *("3", "10", "100", "200", "458", "459", "460", "463", "464", "467", "492", "506"),
        *(str(code) for code in range(200, 300)),
    )
    lifetime = timedelta(days=60)
    renew_after = timedelta(days=30)
    refresh_token_grace = timedelta.max
    webhook_scheme = META

    def read_tokens(self, http_response: HttpResponse, subject: str) -> OAuthTokens:
        """The tokens in a token response, with the access token as refresh token."""
        tokens = super().read_tokens(http_response, subject)
        return replace(tokens, refresh_token=tokens.access_token, refresh_token_expire_time=tokens.expire_time)

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """Decided by the error's number; many errors share a status."""
        return response.is_refusal and self.oauth_error(response.json) not in {None, "temporarily_unavailable"}
