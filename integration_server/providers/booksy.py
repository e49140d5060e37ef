"""Booksy, by API key.

- Booksy publishes no documentation of its API, so nothing here is confirmed: the host, and the key in `X-Api-Key`, are
  assumed [K].
- No resource is known that a key could be tried with, so a key is stored as it is given, and its first use shows
  whether it is right [K].
- There is nothing to revoke [K].
"""

from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.factory import ProviderFactory


class BooksyProvider(ApiKeyProvider):
    """A Booksy business."""

    integration_type = "booksy"
    display_name = "Booksy"
    api_key_header = "X-Api-Key"
    api_base_url = "https://us.booksy.com/api"


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(BooksyProvider.integration_type, BooksyProvider)
