"""Meta Business: Facebook Pages, ads and their insights.

- Endpoints have the version in the path; client id and secret are sent in the form:
  developers.facebook.com/docs/facebook-login/guides/advanced/manual-flow [H]. A version works for about two years [K].
- The token of a code lasts an hour or two [M]. `grant_type=fb_exchange_token` exchanges it for one of 60 days [H]; the
  server does so at once.
- Token responses have no scopes, so the requested ones count as granted; a user can decline some [K].
- Verification is GET /me [K]; `debug_token` would also verify a token, but its response has no name [H].
- DELETE /me/permissions ends everything that the user has granted to the app [H].
"""

from authlib.oauth2.rfc6749.parameters import prepare_token_request

from integration_server.domain.credentials import OAuthTokens
from integration_server.providers.meta import MetaProvider


class MetaBusinessProvider(MetaProvider):
    """A user's Facebook Pages and ad accounts."""

    integration_type = "meta_business"
    oauth_authorize_url = "https://www.facebook.com/v24.0/dialog/oauth"
    oauth_token_url = "https://graph.facebook.com/v24.0/oauth/access_token"
    revoke_url = "https://graph.facebook.com/v24.0/me/permissions"
    revoke_method = "DELETE"
    revokes_with_access_token = True
    revokes_whole_account = True
    required_scopes = ("business_management", "pages_show_list", "pages_read_engagement")
    verify_url = "https://graph.facebook.com/v24.0/me?fields=id,name"
    account_id_field = "id"
    account_label_field = "name"
    api_base_url = "https://graph.facebook.com/v24.0"

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Exchange the short-lived token."""
        return tokens.updated_with(await self.refresh_access_token(tokens.access_token), self._context.clock())

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """Exchange a token for a new long-lived one."""
        body = prepare_token_request("fb_exchange_token", fb_exchange_token=refresh_token)
        return await self.request_tokens(body, "grant")


register = MetaBusinessProvider.register_in
