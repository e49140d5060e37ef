"""Square.

- Endpoints: developer.squareup.com/reference/square/o-auth-api (confirmed); that the token endpoint takes a
  form besides JSON is secondary. The sandbox has other hosts; a declaration of one's own can name them.
- Square knows two flows: the code flow with a secret, whose refresh token lasts and stays the same; and with
  a `code_challenge` the PKCE flow *instead of* a secret, whose refresh tokens serve once and end after 90
  days (developer.squareup.com/docs/oauth-api/overview, confirmed). We keep a secret and want the former, so
  no challenge is sent; the code is bound to the flow by state, redirect URI and secret.
- `session=false`, so that the seller signs in and cannot connect whoever is signed in (confirmed).
- Access tokens last 30 days, told as an ISO 8601 `expires_at` (confirmed). `merchant_id` comes with them
  (confirmed).
- Token errors have Square's own shape and no OAuth error code (seen in its SDKs' issues), so none is taken
  for final.
- Verified by ListLocations, which MERCHANT_PROFILE_READ allows (confirmed).
- Revoking takes `Authorization: Client <secret>`, and ends all of the merchant's tokens for the application,
  whichever is named (developer.squareup.com/reference/square/o-auth-api/revoke-token, confirmed).
- Without a `Square-Version` header the application's own default version answers (confirmed).
"""

import json
from collections.abc import Mapping

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider, TokenAuth


class SquareProvider(OAuth2Provider):
    """A seller's Square account."""

    integration_type = "square"
    display_name = "Square"
    oauth_authorize_url = "https://connect.squareup.com/oauth2/authorize"
    oauth_token_url = "https://connect.squareup.com/oauth2/token"
    revoke_url = "https://connect.squareup.com/oauth2/revoke"
    revokes_whole_account = True
    required_scopes = ("MERCHANT_PROFILE_READ",)
    authorize_params: Mapping[str, str] = {"session": "false"}
    uses_pkce = False
    token_auth: TokenAuth = "client_secret_post"
    extra_fields = ("merchant_id",)
    account_id_extra = "merchant_id"
    verify_url = "https://connect.squareup.com/v2/locations"
    account_label_field = "locations.0.business_name"
    api_base_url = "https://connect.squareup.com/v2"

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
