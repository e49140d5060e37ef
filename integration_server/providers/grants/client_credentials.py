"""The client credentials grant (RFC 6749 §4.4)."""

from integration_server.domain.credentials import OAuthTokens
from integration_server.providers.grants.grant_client import GrantClient


async def request_tokens(provider: GrantClient) -> OAuthTokens:
    """Tokens for the client of a provider. Raises `ProviderError`."""
    standard = {"grant_type": "client_credentials", **provider.scope_params()}
    return await provider.request_tokens(provider.token_request(standard), "grant")
