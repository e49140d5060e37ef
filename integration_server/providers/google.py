"""What Google's services have in common.

- Endpoints, and the client id and secret in the form: "Using OAuth 2.0 for Web Server Applications",
  developers.google.com/identity/protocols/oauth2/web-server (confirmed). PKCE with S256 is taken there too.
- A refresh token comes only with `access_type=offline`, and after the first time only with `prompt=consent`
  (same page, confirmed). It is not rotated, and a refresh does not answer with one (confirmed). It ends after
  six months without use, seven days while the consent screen is in testing, and when Google's limit per
  account and client is passed (same page; the limit is secondary knowledge).
- Scopes that were granted before are granted again with `include_granted_scopes`; the answer lists them all,
  `email` and `profile` by their long names (same page, confirmed).
- Revoking any token ends all that the client holds of the account, over all of its scopes (same page,
  confirmed).
- Google documents no `iss` in the callback, so `issuer` stays unset and `iss` is not checked.
- Calendar answers 403 for a spent quota too, with a reason that says so:
  developers.google.com/calendar/api/guides/errors (confirmed); other services are taken to do the same
  (general knowledge).
"""

from collections.abc import Mapping

from integration_server.providers.http import HttpAnswer
from integration_server.providers.json_answers import field_at, read_object
from integration_server.providers.oauth2 import OAuth2Provider, TokenAuth

_QUOTA_REASONS = {"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "dailyLimitExceeded"}


class GoogleProvider(OAuth2Provider):
    """A Google service."""

    oauth_authorize_url = "https://accounts.google.com/o/oauth2/v2/auth"
    oauth_token_url = "https://oauth2.googleapis.com/token"
    revoke_url = "https://oauth2.googleapis.com/revoke"
    token_auth: TokenAuth = "client_secret_post"
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

    def refuses_credentials(self, answer: HttpAnswer) -> bool:
        """401 or 403, unless it is the quota that is spent."""
        reason = field_at(read_object(answer.body), "error.errors.0.reason")
        return super().refuses_credentials(answer) and reason not in _QUOTA_REASONS
