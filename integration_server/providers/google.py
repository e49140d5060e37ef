"""What Google's services have in common.

- Endpoints, and client id and secret in the form: developers.google.com/identity/protocols/oauth2/web-server [H].
- A refresh token comes only with `access_type=offline`, and after the first time only with `prompt=consent` [H]. It is
  not rotated, and a refresh does not answer with one [H]. It ends after six months without use [H], after seven days
  while the consent screen is in testing [H], and when there are too many of one account and client [M].
- `include_granted_scopes` grants again what was granted before [H]; the answer lists it all, `email` and `profile` by
  their long names [K].
- Revoking any token ends all that the client holds of the account, whatever the scopes [K].
- Google documents no `iss` in the callback, so `issuer` stays unset and `iss` is not checked.
- 403 also means a spent quota, with a reason that says so: developers.google.com/calendar/api/guides/errors [K].
"""

from collections.abc import Mapping
from datetime import timedelta

from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_json import field_at, read_object
from integration_server.providers.oauth2 import OAuth2Provider

_RATE_REASONS = {"rateLimitExceeded", "userRateLimitExceeded"}
_QUOTA_REASONS = _RATE_REASONS | {"quotaExceeded", "dailyLimitExceeded"}


class GoogleProvider(OAuth2Provider):
    """A Google service."""

    oauth_authorize_url = "https://accounts.google.com/o/oauth2/v2/auth"
    oauth_token_url = "https://oauth2.googleapis.com/token"
    revoke_url = "https://oauth2.googleapis.com/revoke"
    token_auth = "client_secret_post"
    authorize_params: Mapping[str, str] = {
        "access_type": "offline",
        "prompt": "consent",
        "include_granted_scopes": "true",
    }
    scope_aliases: Mapping[str, str] = {
        "email": "https://www.googleapis.com/auth/userinfo.email",
        "profile": "https://www.googleapis.com/auth/userinfo.profile",
    }
    revokes_whole_account = True
    refresh_token_grace = timedelta.max  # a refresh leaves the refresh token as it is

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """401 or 403, unless it is the quota that is spent."""
        return super().rejects_credentials(response) and _reason(response) not in _QUOTA_REASONS

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Also 403, where its reason is that there were too many calls: they are few enough again within minutes."""
        return super().is_rate_limited(response) or (response.status == 403 and _reason(response) in _RATE_REASONS)


def _reason(response: HttpResponse) -> object:
    return field_at(read_object(response.body), "error.errors.0.reason")
