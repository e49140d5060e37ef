"""Stripe Connect: `invalid_client` for a revocation may mean that the account is not connected."""

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider


class StripeProvider(OAuth2Provider):
    """A merchant's Stripe account, connected to our platform."""

    async def revoke_tokens(self, revoke_url: str, tokens: OAuthTokens) -> bool:
        """Disconnect the account from the platform, if it is known."""
        return "stripe_user_id" in tokens.extras and await super().revoke_tokens(revoke_url, tokens)

    def read_revocation(self, http_response: HttpResponse) -> bool:
        """The same, with a rejected client as a failure of this revocation only."""
        try:
            return super().read_revocation(http_response)
        except ProviderMisconfigured as error:
            raise ProviderRejected("revocation", oauth_error=error.oauth_error) from error
