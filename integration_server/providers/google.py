"""The base of Google's services.

- Endpoints; client id and secret are sent in the form: developers.google.com/identity/protocols/oauth2/web-server [H].
- A refresh token requires `access_type=offline`, and after the first time `prompt=consent` [H]. The refresh token is
  not rotated, and the response to a refresh has none [H]. The refresh token ends after six months without use [H]. The
  refresh token ends after seven days while the consent screen is in testing [H]. The oldest refresh tokens end when one
  account and client have too many [M].
- `include_granted_scopes` includes scopes that were granted before [H]. The response lists all of them, `email` and
  `profile` by their long names [K].
- Revoking any token ends all grants of the account to the client, whatever their scopes [K].
- Google documents no `iss` in the callback, so `issuer` is not declared and `iss` is not checked.
- 403 also means an exhausted quota, if its reason says so: developers.google.com/calendar/api/guides/errors [K].
"""

from datetime import timedelta

from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_json import field_at
from integration_server.providers.oauth2 import OAuth2Provider

_RATE_REASONS = {"rateLimitExceeded", "userRateLimitExceeded"}
_QUOTA_REASONS = _RATE_REASONS | {"quotaExceeded", "dailyLimitExceeded"}


class GoogleProvider(OAuth2Provider):
    """A Google service."""

    oauth_authorize_url = "https://accounts.google.com/o/oauth2/v2/auth"
    oauth_token_url = "https://oauth2.googleapis.com/token"
    revoke_url = "https://oauth2.googleapis.com/revoke"
    token_auth = "client_secret_post"
    authorize_params = {"access_type": "offline", "prompt": "consent", "include_granted_scopes": "true"}
    implied_scopes = {
        "https://www.googleapis.com/auth/userinfo.email": ("email",),
        "https://www.googleapis.com/auth/userinfo.profile": ("profile",),
    }
    revokes_whole_account = True
    refresh_token_grace = timedelta.max

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """401 or 403, except an exhausted quota."""
        return super().rejects_credentials(response) and _reason(response) not in _QUOTA_REASONS

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Also 403 with a rate limit as its reason; such a limit lasts for minutes at most."""
        return super().is_rate_limited(response) or (response.status == 403 and _reason(response) in _RATE_REASONS)


def _reason(response: HttpResponse) -> object:
    return field_at(response.json, "error.errors.0.reason")
