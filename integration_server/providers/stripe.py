"""Stripe Connect, for Standard accounts.

- Endpoints and parameters: docs.stripe.com/connect/oauth-reference [H]. `STRIPE_CLIENT_ID` is the platform's `ca_…`,
  `STRIPE_CLIENT_SECRET` its secret API key [H].
- The access token never expires; the refresh token only exchanges one scope or mode for another [H]. There is no
  `expires_in`, so nothing is refreshed.
- The requested scope is `read_write`; Stripe's default is `read_only` [H]. The two scopes exclude each other [K].
- `stripe_user_id` in the token response identifies the account [H]. GET /v1/account with the token returns it [K].
- A deauthorization names client and account, authenticated with the secret key [H]. It ends all of the platform's
  access to the account [K]. Its error `invalid_client` also means that the account is not connected [K]. The error is
  therefore no proof that our client is rejected.
- PKCE is not documented. A large public catalogue of connectors sends it [M]. RFC 6749 §3.1 requires that unknown
  parameters are ignored, so it is sent.
- 100 requests a second per account, 25 in a sandbox and for most single resources: docs.stripe.com/rate-limits [H].
  Only the limit per account applies to all requests, so only that is declared.
"""

from datetime import timedelta
from urllib.parse import urlencode

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected
from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.declaration import TokenResponse
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.stripe import STRIPE


class StripeProvider(OAuth2Provider):
    """A merchant's Stripe account, connected to our platform."""

    integration_type = "stripe"
    oauth_authorize_url = "https://connect.stripe.com/oauth/authorize"
    oauth_token_url = "https://connect.stripe.com/oauth/token"
    revoke_url = "https://connect.stripe.com/oauth/deauthorize"
    revocation_ends = "grant"
    required_scopes = ("read_write",)
    token_auth = "client_secret_post"
    never_expires = True
    token_response = TokenResponse(keep={"stripe_user_id": "stripe_user_id"})
    account_id_field = "stripe_user_id"
    verify_url = "https://api.stripe.com/v1/account"
    account_label_field = "email"
    api_base_url = "https://api.stripe.com"
    allowed_request_headers = ("Stripe-Version",)
    rate_limits = (RateLimit(100, timedelta(seconds=1)),)
    webhook_scheme = STRIPE

    async def revoke_tokens(self, revoke_url: str, tokens: OAuthTokens) -> bool:
        """Disconnect the account from the platform."""
        if "stripe_user_id" not in tokens.extras:
            return False
        form = {"client_id": self.client_id, "stripe_user_id": tokens.extras["stripe_user_id"]}
        headers = {
            "Authorization": f"Bearer {self.client_secret}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        response = await self.send("POST", revoke_url, headers=headers, content=urlencode(form))
        try:
            return self.read_revocation(response)
        except ProviderMisconfigured as error:
            raise ProviderRejected("revocation", oauth_error=error.oauth_error) from error


register = StripeProvider.register_in
