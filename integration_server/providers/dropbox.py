"""Dropbox.

- Endpoints: www.dropbox.com/developers/documentation/http/documentation [H]. Client id and secret are sent in the form
  [K].
- `token_access_type=offline` requests a refresh token: dropbox.tech/developers/using-oauth-2-0-with-offline-access [H].
  Access tokens last about 4 hours [M]. The response to a refresh has no refresh token; the old one stays valid [M].
- Verification is POST of the current account, with neither body nor content type [K].
- A revocation ends the access token that authenticates it, its refresh token and all other tokens of the grant [H].
- PKCE is supported [H].
"""

from datetime import timedelta

from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.dropbox import DROPBOX


class DropboxProvider(OAuth2Provider):
    """A user's files."""

    integration_type = "dropbox"
    oauth_authorize_url = "https://www.dropbox.com/oauth2/authorize"
    oauth_token_url = "https://api.dropboxapi.com/oauth2/token"
    revoke_url = "https://api.dropboxapi.com/2/auth/token/revoke"
    revokes_with_access_token = True
    required_scopes = ("account_info.read", "files.content.read", "files.content.write")
    token_auth = "client_secret_post"
    authorize_params = {"token_access_type": "offline"}
    refresh_token_grace = timedelta.max
    verify_method = "POST"
    verify_url = "https://api.dropboxapi.com/2/users/get_current_account"
    webhook_scheme = DROPBOX
    account_id_field = "account_id"
    account_label_field = "email"
    api_base_url = "https://api.dropboxapi.com/2"
    allowed_request_headers = (
        "Dropbox-API-Arg",
        "Dropbox-API-Path-Root",
        "Dropbox-API-Select-Admin",
        "Dropbox-API-Select-User",
    )


register = DropboxProvider.register_in
