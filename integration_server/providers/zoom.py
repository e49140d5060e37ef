"""Zoom, by a user's OAuth app.

- Endpoints, and client id and secret as Basic: developers.zoom.us/docs/integrations/oauth [H].
- Access tokens last an hour [H]; each refresh gives another refresh token, of about 90 days [M]. Whether the old one
  still works is not documented, so it is taken for spent [K].
- A dead refresh token is answered with `invalid_request` and the reason "Invalid Token!" [M].
- Revoking takes a token, and answers `{"status": "success"}` [H]; it removes the app from the user's account [M].
- Verified by GET /v2/users/me, which user:read:user allows [H].
- Limits hang on the account's plan and on what is asked for: developers.zoom.us/docs/commerce/rate-limits [H]. So none
  is declared, and what answers tell is kept to.
- PKCE is supported [M].
"""

from integration_server.providers.factory import ProviderFactory
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_json import read_object, text_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.zoom import ZOOM


class ZoomProvider(OAuth2Provider):
    """A Zoom user."""

    integration_type = "zoom"
    display_name = "Zoom"
    oauth_authorize_url = "https://zoom.us/oauth/authorize"
    oauth_token_url = "https://zoom.us/oauth/token"
    revoke_url = "https://zoom.us/oauth/revoke"
    revokes_whole_account = True
    required_scopes = ("user:read:user", "meeting:read:meeting", "meeting:write:meeting")
    token_auth = "client_secret_basic"
    verify_url = "https://api.zoom.us/v2/users/me"
    webhook_scheme = ZOOM
    account_id_field = "id"
    account_label_field = "email"
    api_base_url = "https://api.zoom.us/v2"

    def oauth_error(self, response: HttpResponse) -> str | None:
        """The error, by its reason where that says more."""
        if text_at(read_object(response.body), "reason") == "Invalid Token!":
            return "invalid_grant"
        return super().oauth_error(response)


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(ZoomProvider.integration_type, ZoomProvider)
