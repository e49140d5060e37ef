"""Mailchimp Marketing. The requirements call it "email_marketing".

- Endpoints; client id and secret are sent in the form:
  mailchimp.com/developer/marketing/guides/access-user-data-oauth-2 [H].
- There are no scopes and no refresh tokens, and access tokens do not expire:
  developer.mailchimp.com/documentation/mailchimp/guides/how-to-use-oauth2 [H]. `expires_in` is 0 and `scope` null [M].
- Each account's API is in a data centre, `{dc}.api.mailchimp.com`, which the metadata resource names [H]. That resource
  requires `Authorization: OAuth` [H]; the API accepts Bearer too [M].
- Verification is the metadata: `user_id` identifies the account, `accountname` is its name [M].
- Ten concurrent calls per account; no rate is documented [M].
- Tokens cannot be revoked [K]; the user removes the app at Mailchimp.
- PKCE is not documented; RFC 6749 §3.1 requires that unknown parameters are ignored, so it is sent [K].
"""

import re
from dataclasses import replace

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_values import text_at
from integration_server.providers.oauth2 import OAuth2Provider

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")


class MailchimpProvider(OAuth2Provider):
    """A Mailchimp account."""

    integration_type = "mailchimp"
    aliases = ("email_marketing",)
    oauth_authorize_url = "https://login.mailchimp.com/oauth2/authorize"
    oauth_token_url = "https://login.mailchimp.com/oauth2/token"
    token_auth = "client_secret_post"
    never_expires = True
    verify_url = "https://login.mailchimp.com/oauth2/metadata"
    account_id_field = "user_id"
    account_label_field = "accountname"
    api_base_url = "https://{dc}.api.mailchimp.com/3.0"
    calls_at_once = 10
    host_patterns = ("*.api.mailchimp.com",)

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Add the data centre of the account."""
        response = await self.request_verification(tokens)
        return replace(tokens, extras={**tokens.extras, "dc": text_at(response.json, "dc") or ""})

    def is_failure(self, response: HttpResponse) -> bool:
        """Whether the metadata names no data centre."""
        return not _LABEL.fullmatch(text_at(response.json, "dc") or "")

    def verification_auth(self, credentials: Credentials) -> RequestAuth:
        """The access token with the authentication scheme `OAuth`."""
        headers = self.request_auth(credentials).headers
        return RequestAuth(headers={name: value.replace("Bearer", "OAuth", 1) for name, value in headers.items()})

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """Also `invalid_token` with HTTP 200."""
        return super().rejects_credentials(response) or text_at(response.json, "error") == "invalid_token"


register = MailchimpProvider.register_in
