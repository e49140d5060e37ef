"""Square.

- Endpoints: developer.squareup.com/reference/square/o-auth-api [H]. The token endpoint takes a form besides JSON [M].
- Square has two flows (developer.squareup.com/docs/oauth-api/overview [H]): the code flow with a secret, whose refresh
  token lasts and stays the same; and with a `code_challenge` the PKCE flow, without the secret, whose refresh tokens
  serve once and end after 90 days. We keep a secret and want the former, so no challenge is sent: state, redirect URI
  and secret guard the code.
- `session=false` makes the seller sign in, rather than connect whoever happens to be signed in [H].
- Access tokens last 30 days, told as an ISO 8601 `expires_at`; `merchant_id` comes with them [H]. They are to be
  renewed when seven days old, or earlier: developer.squareup.com/docs/oauth-api/refresh-revoke-limit-scope [H].
- Token errors have Square's own shape, without an OAuth error code [M], so none is taken for final.
- Verified by ListLocations [H], which MERCHANT_PROFILE_READ allows [K].
- Revoking takes `Authorization: Client <secret>`, and ends all of the merchant's tokens for the application, whichever
  is named: developer.squareup.com/reference/square/o-auth/revoke-token [H].
- The sandbox has other hosts [H]; without a `Square-Version` header the application's own default answers [K].
"""

import json
from collections.abc import Mapping
from datetime import timedelta

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.square import SQUARE


class SquareProvider(OAuth2Provider):
    """A seller's Square account."""

    integration_type = "square"
    display_name = "Square"
    oauth_authorize_url = "https://connect.squareup.com/oauth2/authorize"
    oauth_token_url = "https://connect.squareup.com/oauth2/token"
    revoke_url = "https://connect.squareup.com/oauth2/revoke"
    revokes_whole_account = True
    refresh_token_grace = timedelta.max  # a refresh leaves the refresh token as it is
    renew_after = timedelta(days=7)
    required_scopes = ("MERCHANT_PROFILE_READ",)
    authorize_params: Mapping[str, str] = {"session": "false"}
    uses_pkce = False
    token_auth = "client_secret_post"
    extra_fields = ("merchant_id",)
    account_id_extra = "merchant_id"
    verify_url = "https://connect.squareup.com/v2/locations"
    account_label_field = "locations.0.business_name"
    api_base_url = "https://connect.squareup.com/v2"
    webhook_scheme = SQUARE

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """End all of the merchant's tokens."""
        if not isinstance(credentials, OAuthTokens):
            return False
        headers = {"Authorization": f"Client {self.client_secret}", "Content-Type": "application/json"}
        body = json.dumps({"client_id": self.client_id, "access_token": credentials.access_token})
        return self.read_revocation(await self.send("POST", self.revoke_url, headers=headers, content=body))


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(SquareProvider.integration_type, SquareProvider)
