"""The client credentials grant (RFC 6749 §4.4)."""

from typing import TYPE_CHECKING

from integration_server.domain.credentials import OAuthTokens

if TYPE_CHECKING:
    from integration_server.providers.oauth2 import OAuth2Provider


async def request_tokens(provider: "OAuth2Provider") -> OAuthTokens:
    """Tokens for the client of a provider. Raises `ProviderError`."""
    standard = {"grant_type": "client_credentials", **provider.scope_params()}
    return await provider.request_tokens(provider.token_request(standard), "grant")
