"""Meta's services: an access token is its own refresh token, and the number of an error decides what it means."""

from dataclasses import replace

from integration_server.domain.credentials import OAuthTokens
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider


class MetaProvider(OAuth2Provider):
    """A Meta service."""

    def read_tokens(self, http_response: HttpResponse, subject: str) -> OAuthTokens:
        """The tokens in a token response, with the access token as refresh token."""
        tokens = super().read_tokens(http_response, subject)
        return replace(tokens, refresh_token=tokens.access_token, refresh_token_expire_time=tokens.expire_time)

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """Decided by the error's number; many errors share a status."""
        return response.is_refusal and self.oauth_error(response.json) not in {None, "temporarily_unavailable"}
