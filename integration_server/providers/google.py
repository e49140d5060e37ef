"""The base of Google's services.

- Endpoints; client id and secret are sent in the form: developers.google.com/identity/protocols/oauth2/web-server [H].
- A refresh token requires `access_type=offline`, and after the first time `prompt=consent` [H]. The refresh token is
  not rotated, and the response to a refresh has none [H]. The refresh token ends after six months without use [H]. The
  refresh token ends after seven days while the consent screen is in testing [H]. The oldest refresh tokens end when one
  account and client have too many [M].
- `include_granted_scopes` includes scopes that were granted before [H]. The response lists all of them, `email` and
  `profile` by their long names [K].
- Revoking any token ends all grants of the account to the client, whatever their scopes [M 2026-11-29].
- Google documents no `iss` in the callback, so `issuer` is not declared and `iss` is not checked.
- 403 also means an exhausted quota, if its reason says so: `rateLimitExceeded`, `userRateLimitExceeded` and 429 are
  one and the same: developers.google.com/workspace/calendar/api/guides/errors [H 2026-11-29]. Newer APIs have their
  reason in `error.details`, and there in `metadata` the `quota_metric` that is exhausted, such as the read requests of
  an API: docs.cloud.google.com/service-usage/docs/quota-error-codes [M 2026-11-29].
- 403 with `accessNotConfigured` or `SERVICE_DISABLED` means that our Cloud project has not enabled the API
  [M 2026-11-29]. The token error `deleted_client` means that our client no longer exists [H 2026-11-29]. Neither says
  anything about the user.
"""

from datetime import timedelta

from integration_server.providers.declaration import Errors
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider

_RATE_REASONS = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED"})
QUOTA_REASONS = _RATE_REASONS | {"quotaExceeded", "dailyLimitExceeded", "RESOURCE_EXHAUSTED"}


class GoogleProvider(OAuth2Provider):
    """A Google service."""

    oauth_authorize_url = "https://accounts.google.com/o/oauth2/v2/auth"
    oauth_token_url = "https://oauth2.googleapis.com/token"
    revoke_url = "https://oauth2.googleapis.com/revoke"
    token_auth = "client_secret_post"
    authorize_params = {"access_type": "offline", "prompt": "consent", "include_granted_scopes": "true"}
    scope_equivalents = {
        "https://www.googleapis.com/auth/userinfo.email": ("email",),
        "https://www.googleapis.com/auth/userinfo.profile": ("profile",),
    }
    errors = Errors(client=["deleted_client", "disabled_client"])
    reason_paths = ("error.details.*.reason", "error.errors.*.reason", "error.status", "error")
    reasons = (
        *QUOTA_REASONS,
        *("authError", "forbidden", "forbiddenForNonOrganizer", "insufficientPermissions", "notFound", "domainPolicy"),
        *("ACCESS_TOKEN_EXPIRED", "ACCESS_TOKEN_SCOPE_INSUFFICIENT", "ACCOUNT_STATE_INVALID", "CREDENTIALS_MISSING"),
        *("INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND"),
        *("admin_policy_enforced", "org_internal", "invalid_rapt"),
    )
    rate_limit_resource_paths = ("error.details.*.metadata.quota_metric",)
    client_fault_reasons = ("accessNotConfigured", "SERVICE_DISABLED", "CONSUMER_SUSPENDED", "API_KEY_SERVICE_BLOCKED")
    revocation_ends = "grant"
    refresh_token_grace = timedelta.max

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """401 or 403, except an exhausted quota."""
        return super().rejects_credentials(response) and self.reason_in(response.json) not in QUOTA_REASONS

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Also 403 with a rate limit as its reason; such a limit lasts for minutes at most."""
        is_forbidden = response.status == 403
        return super().is_rate_limited(response) or (is_forbidden and self.reason_in(response.json) in _RATE_REASONS)
