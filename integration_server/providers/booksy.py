"""Booksy, with API key.

- Booksy publishes no API documentation. The host and the header `X-Api-Key` are assumptions [K].
- No resource is known that could verify a key, so a key is stored without a check [K].
- Nothing is revoked [K].
"""

from integration_server.providers.api_key import ApiKeyProvider


class BooksyProvider(ApiKeyProvider):
    """A Booksy business."""

    integration_type = "booksy"
    request_headers = {"X-Api-Key": "{api_key}"}
    api_base_url = "https://us.booksy.com/api"


register = BooksyProvider.register_in
