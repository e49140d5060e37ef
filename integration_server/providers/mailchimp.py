"""Mailchimp Marketing. "email_marketing" is the document's name for it.

- Endpoints, and client id and secret in the form:
  mailchimp.com/developer/marketing/guides/access-user-data-oauth-2 [H].
- There are no scopes and no refresh tokens, and tokens do not expire:
  developer.mailchimp.com/documentation/mailchimp/guides/how-to-use-oauth2 [H]. `expires_in` is 0 and `scope` null [M].
- Each account's API is in a data centre, `{dc}.api.mailchimp.com`, which the metadata resource tells [H]. It wants
  `Authorization: OAuth` [H]; the API takes Bearer too [M].
- Verified by the metadata: `user_id` names the account, `accountname` is its name [M].
- An account takes ten calls at once; no rate is documented [M].
- Nothing revokes a token [K]; the user removes the app at Mailchimp.
- PKCE is not documented; RFC 6749 §3.1 has unknown parameters ignored, so it is sent [K].
"""

from dataclasses import replace

from integration_server.domain.credentials import Credentials, OAuthTokens
from integration_server.domain.errors import ProviderRejected, ProviderUnavailable
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.lenient_json import read_object, text_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.urls import fill
from integration_server.service.integrations.ports import NewAccount


class MailchimpProvider(OAuth2Provider):
    """A Mailchimp account."""

    integration_type = "mailchimp"
    aliases = ("email_marketing",)
    display_name = "Mailchimp"
    oauth_authorize_url = "https://login.mailchimp.com/oauth2/authorize"
    oauth_token_url = "https://login.mailchimp.com/oauth2/token"
    token_auth = "client_secret_post"
    tokens_never_expire = True
    verify_url = "https://login.mailchimp.com/oauth2/metadata"
    account_id_field = "user_id"
    account_label_field = "accountname"
    api_base_url = "https://{dc}.api.mailchimp.com/3.0"
    calls_at_once = 10
    host_patterns = ("*.api.mailchimp.com",)

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Ask where the account is."""
        _, dc = await self._metadata(tokens)
        return replace(tokens, extras={**tokens.extras, "dc": dc})

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Ask whose the token is."""
        account, _ = await self._metadata(credentials)
        return account

    async def _metadata(self, credentials: Credentials) -> tuple[NewAccount, str]:
        if not isinstance(credentials, OAuthTokens):
            raise ProviderRejected("credentials")
        headers = {"Authorization": f"OAuth {credentials.access_token}"}
        response = await self.send("GET", self.verify_url, headers=headers)
        if self.rejects_credentials(response):
            raise ProviderRejected("credentials")
        fields = read_object(response.body) or {}
        if text_at(fields, "error") == "invalid_token":  # with HTTP 200 too
            raise ProviderRejected("credentials")
        dc = text_at(fields, "dc")
        if not response.is_success or dc is None or not _is_label(dc):
            raise ProviderUnavailable(retry_after=response.retry_after)
        return self.account_of(credentials, fields), dc


def _is_label(dc: str) -> bool:
    try:
        return "." not in fill("{dc}", {"dc": dc})
    except ValueError:
        return False


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(MailchimpProvider.integration_type, MailchimpProvider)
