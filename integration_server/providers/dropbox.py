"""Dropbox.

- Endpoints: www.dropbox.com/developers/documentation/http/documentation [H]; client id and secret in the form [K].
- `token_access_type=offline` asks for a refresh token: dropbox.tech/developers/using-oauth-2-0-with-offline-access [H].
  Access tokens last about 4 hours [M]; a refresh answers without another refresh token, and the old one stays [M].
- Verified by POST of the current account, with neither body nor content type [K].
- Revoking ends the token that it is called with, its refresh token and all that came of it [H].
- PKCE is supported [H].
"""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

from integration_server.domain.credentials import Credentials
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.dropbox import DROPBOX


class DropboxProvider(OAuth2Provider):
    """A user's files."""

    integration_type = "dropbox"
    display_name = "Dropbox"
    oauth_authorize_url = "https://www.dropbox.com/oauth2/authorize"
    oauth_token_url = "https://api.dropboxapi.com/oauth2/token"
    revoke_url = "https://api.dropboxapi.com/2/auth/token/revoke"
    required_scopes = ("account_info.read", "files.content.read", "files.content.write")
    token_auth = "client_secret_post"
    authorize_params: Mapping[str, str] = MappingProxyType({"token_access_type": "offline"})
    refresh_token_grace = timedelta.max  # a refresh leaves the refresh token as it is
    verify_method = "POST"
    verify_url = "https://api.dropboxapi.com/2/users/get_current_account"
    webhook_scheme = DROPBOX
    account_id_field = "account_id"
    account_label_field = "email"
    api_base_url = "https://api.dropboxapi.com/2"

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """End the grant, with an access token of it."""
        return await self.revoke_with_access_token(credentials, "POST")


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(DropboxProvider.integration_type, DropboxProvider)
