"""Meta Business: Facebook Pages, ads and their insights.

- Endpoints with the version in the path; client id and secret in the form:
  developers.facebook.com/docs/facebook-login/guides/advanced/manual-flow [H]. A version works for about two years [K].
- A code's token lasts an hour or two [M], and is exchanged at once for one of 60 days:
  `grant_type=fb_exchange_token` [H].
- Token answers tell no scopes, so those asked for count as granted; a user can leave some out [K].
- Verified by GET /me [K]: `debug_token` would do as well, but has no name [H].
- DELETE /me/permissions ends all that the user has granted to the app [H].
"""

from authlib.oauth2.rfc6749.parameters import prepare_token_request

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.meta import MetaProvider
from integration_server.providers.webhooks.meta import META


class MetaBusinessProvider(MetaProvider):
    """A user's Facebook Pages and ad accounts."""

    integration_type = "meta_business"
    display_name = "Meta Business"
    oauth_authorize_url = "https://www.facebook.com/v24.0/dialog/oauth"
    oauth_token_url = "https://graph.facebook.com/v24.0/oauth/access_token"
    revoke_url = "https://graph.facebook.com/v24.0/me/permissions"
    revokes_whole_account = True
    required_scopes = ("business_management", "pages_show_list", "pages_read_engagement")
    verify_url = "https://graph.facebook.com/v24.0/me?fields=id,name"
    webhook_scheme = META
    account_id_field = "id"
    account_label_field = "name"
    api_base_url = "https://graph.facebook.com/v24.0"

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Exchange the short-lived token."""
        return tokens.updated_with(await self.refresh_access_token(tokens.access_token))

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """Exchange a token for another that lasts."""
        body = prepare_token_request("fb_exchange_token", fb_exchange_token=refresh_token)
        return self.with_access_token_as_refresh_token(await self.request_tokens(body, "grant"))

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Take all permissions back."""
        return await self.revoke_with_access_token(credentials, "DELETE")


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(MetaBusinessProvider.integration_type, MetaBusinessProvider)
