"""What Meta's services have in common: the Graph API, and tokens that are exchanged instead of refreshed.

- There are no refresh tokens. A token of 60 days is exchanged for another one, as long as it has not expired, and goes
  on working: developers.facebook.com/docs/facebook-login/guides/access-tokens/get-long-lived [H]. So the access token
  is kept as its own refresh token, which ends when it does, and renewed when half of its life is over: an outage at the
  end of it would be the end of the grant.
- Errors have numbers, in `error.code`: developers.facebook.com/docs/graph-api/guides/error-handling [H]. 190 and 102:
  the token is dead. 1, 2, 4, 17, 32 and 613: later. 101: our client [K].
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType

from integration_server.domain.credentials import OAuthTokens
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_json import field_at, read_object
from integration_server.providers.oauth2 import OAuth2Provider

_INVALID_TOKEN_CODES = (190, 102)


class MetaProvider(OAuth2Provider):
    """A service of Meta's."""

    token_auth = "client_secret_post"
    scope_separator = ","
    error_field = "error.code"
    error_codes: Mapping[str, str] = MappingProxyType(
        {
            "190": "invalid_grant",
            "102": "invalid_grant",
            "101": "invalid_client",
            **dict.fromkeys(("1", "2", "4", "17", "32", "613"), "temporarily_unavailable"),
        }
    )
    assumed_lifetime = timedelta(days=60)
    renew_after = timedelta(days=30)
    refresh_token_grace = timedelta.max  # the exchanged token goes on working

    def with_access_token_as_refresh_token(self, tokens: OAuthTokens) -> OAuthTokens:
        """A long-lived token, which is what it is renewed with."""
        return replace(tokens, refresh_token=tokens.access_token, refresh_token_expire_time=tokens.expire_time)

    def rejects_access_token(self, response: HttpResponse) -> bool:
        """By the number alone, mostly with HTTP 400."""
        return response.is_refusal and field_at(read_object(response.body), "error.code") in _INVALID_TOKEN_CODES

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """By number; the statuses are those of many errors."""
        return response.is_refusal and self.oauth_error(response) not in {None, "temporarily_unavailable"}
