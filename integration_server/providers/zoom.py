"""Zoom, with a user-level OAuth app.

- Endpoints; client id and secret are sent as HTTP Basic: developers.zoom.us/docs/integrations/oauth [H].
- Access tokens last an hour [H]; each refresh returns another refresh token, of about 90 days [M]. Whether the old one
  stays valid is not documented, so it counts as spent [K].
- The error for an invalid refresh token is `invalid_request` with the reason "Invalid Token!" [M].
- Granular and classic scopes do not mix, and admin scopes are refused for apps that users manage [M 2026-11-29]. The
  setting `ZOOM_SCOPES` names the scopes of our app.
- A revocation has a token in a form; its response is `{"status": "success"}` [H]. It is documented with the access
  token only [H 2026-11-29], so an expired one is refreshed first. A revocation removes the app from the
  user's account [M].
- Verification is GET /v2/users/me, which user:read:user allows [H].
- Rate limits depend on the account's plan and on the method: developers.zoom.us/docs/commerce/rate-limits [H]. No limit
  is declared; the limits in response headers apply.
- PKCE is supported [M].
"""

from integration_server.providers.lenient_values import text_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.zoom import ZOOM


class ZoomProvider(OAuth2Provider):
    """A Zoom user."""

    integration_type = "zoom"
    oauth_authorize_url = "https://zoom.us/oauth/authorize"
    oauth_token_url = "https://zoom.us/oauth/token"
    revoke_url = "https://zoom.us/oauth/revoke"
    revoke_token = "access_token"
    revocation_ends = "grant"
    required_scopes = ("user:read:user", "meeting:read:meeting", "meeting:write:meeting")
    verify_url = "https://api.zoom.us/v2/users/me"
    webhook_scheme = ZOOM
    account_id_field = "id"
    account_label_field = "email"
    api_base_url = "https://api.zoom.us/v2"

    def can_request(self, scope: str) -> bool:
        """Whether the scope is granular or classic as the required ones are."""
        return super().can_request(scope) and _is_granular(scope) == any(map(_is_granular, self.required_scopes))

    def oauth_error(self, fields: object) -> str | None:
        """The error code; `invalid_grant` for the reason "Invalid Token!"."""
        return "invalid_grant" if text_at(fields, "reason") == "Invalid Token!" else super().oauth_error(fields)


def _is_granular(scope: str) -> bool:
    """Whether a scope names a resource: "meeting:read:meeting:admin", in place of "meeting:read:admin"."""
    parts = scope.split(":")
    return len(parts) > 2 and parts[2] not in {"admin", "master"}


register = ZoomProvider.register_in
