"""Square.

- Endpoints: developer.squareup.com/reference/square/o-auth-api [H]. The token endpoint accepts a form besides JSON [M].
- There are two flows. In the code flow with a secret the refresh token stays valid and the same; in the PKCE flow,
  which a `code_challenge` selects, there is no secret, and refresh tokens are single-use and expire after 90 days:
  developer.squareup.com/docs/oauth-api/overview [H]. Our client uses the code flow, so no challenge is sent: state,
  redirect URI and secret protect the code.
- `session=false` makes the seller sign in, so that a session that happens to be open is not used [H].
- Access tokens last 30 days, as an ISO 8601 `expires_at`; the response has `merchant_id` too [H]. Access tokens are to
  be renewed at an age of seven days or earlier: developer.squareup.com/docs/oauth-api/refresh-revoke-limit-scope [H].
- Token errors have Square's own format, without an OAuth error code [M]. `service.not_authorized` means
  either our client or the grant [K]; so no token error proves anything.
- Verification is ListLocations [H]. The scope MERCHANT_PROFILE_READ allows it [K].
- A revocation has `Authorization: Client <secret>`, and ends all of the merchant's tokens for the application:
  developer.squareup.com/reference/square/o-auth/revoke-token [H].
- The sandbox has other hosts [H]. Without a `Square-Version` header the application's default version applies [K].
"""

from datetime import timedelta

from integration_server.providers.declaration import Errors, TokenResponse
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.square import SQUARE


class SquareProvider(OAuth2Provider):
    """A seller's Square account."""

    integration_type = "square"
    oauth_authorize_url = "https://connect.squareup.com/oauth2/authorize"
    oauth_token_url = "https://connect.squareup.com/oauth2/token"
    revoke_url = "https://connect.squareup.com/oauth2/revoke"
    revoke_headers = {"Authorization": "Client {client_secret}"}
    revoke_params = {"client_id": "{client_id}", "access_token": "{access_token}"}
    revoke_body_type = "json"
    revocation_ends = "grant"
    refresh_token_grace = timedelta.max
    renew_after = timedelta(days=7)
    required_scopes = ("MERCHANT_PROFILE_READ",)
    authorize_params = {"session": "false"}
    pkce = False
    errors = Errors(field="type", wait=["service.not_authorized"])
    token_auth = "client_secret_post"
    token_response = TokenResponse(keep={"merchant_id": "merchant_id"})
    account_id_field = "merchant_id"
    verify_url = "https://connect.squareup.com/v2/locations"
    account_label_field = "locations.0.business_name"
    api_base_url = "https://connect.squareup.com/v2"
    allowed_request_headers = ("Square-Version",)
    webhook_scheme = SQUARE


register = SquareProvider.register_in
