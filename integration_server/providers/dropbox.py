"""Dropbox.

- Endpoints: www.dropbox.com/developers/documentation/http/documentation [H]. Client id and secret are sent in the form
  [K].
- `token_access_type=offline` requests a refresh token: dropbox.tech/developers/using-oauth-2-0-with-offline-access [H].
  Access tokens last about 4 hours [M]. The response to a refresh has no refresh token; the old one stays valid [M].
- Verification is POST of the current account, with neither body nor content type [K].
- A revocation ends the access token that authenticates it, its refresh token and all other tokens of the grant [H].
- Download, upload and export are on another host: dropbox.com/developers/documentation/http/documentation
  [H 2026-11-29]. A call names it with the API `content`, and long polling with `notify`. `list_folder` needs
  `files.metadata.read` [H 2026-11-29].
- PKCE is supported [H].
"""

from datetime import timedelta

from integration_server.providers.declaration import Verify
from integration_server.providers.lenient_values import field_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.dropbox import DROPBOX


class DropboxProvider(OAuth2Provider):
    """A user's files."""

    integration_type = "dropbox"
    oauth_authorize_url = "https://www.dropbox.com/oauth2/authorize"
    oauth_token_url = "https://api.dropboxapi.com/oauth2/token"
    revoke_url = "https://api.dropboxapi.com/2/auth/token/revoke"
    revoke_token = "bearer"
    required_scopes = ("account_info.read", "files.metadata.read", "files.content.read", "files.content.write")
    token_auth = "client_secret_post"
    authorize_params = {"token_access_type": "offline"}
    refresh_token_grace = timedelta.max
    verify = Verify(method="POST", url="https://api.dropboxapi.com/2/users/get_current_account")
    webhook_scheme = DROPBOX
    account_id_field = "account_id"
    account_label_field = "email"
    api_base_url = "https://api.dropboxapi.com/2"
    api_base_urls = {"content": "https://content.dropboxapi.com/2", "notify": "https://notify.dropboxapi.com/2"}
    reasons = ("expired_access_token", "invalid_access_token", "missing_scope", "user_suspended", "route_access_denied")
    allowed_request_headers = (
        "Dropbox-API-Arg",
        "Dropbox-API-Path-Root",
        "Dropbox-API-Select-Admin",
        "Dropbox-API-Select-User",
    )

    def reason_in(self, fields: object) -> str | None:
        """Also the tag of an error's union type, `{"error": {".tag": …}}`."""
        error = field_at(fields, "error")
        return super().reason_in({"error": error.get(".tag")} if isinstance(error, dict) else fields)


register = DropboxProvider.register_in
