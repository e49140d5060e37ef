"""Stripe with an API key: an error of Stripe with 403 shows that a restricted key works."""

from integration_server.domain.lenient_values import field_at
from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.http import HttpResponse


class StripeApiKeyProvider(ApiKeyProvider):
    """A Stripe account."""

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """401 only."""
        return response.status == 401

    def proves_credentials(self, response: HttpResponse) -> bool:
        """Also an error of Stripe with 403; any intermediary may send a 403 of another form."""
        is_restricted = response.status == 403 and field_at(response.json, "error.type") is not None
        return super().proves_credentials(response) or is_restricted
