"""SendGrid, by API key.

- `Authorization: Bearer`, and GET /v3/scopes tells what a key may do [H], but not whose it is.
- EU subusers have another host, api.eu.sendgrid.com [K].
"""

from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.webhooks.sendgrid import SENDGRID


class SendGridProvider(ApiKeyProvider):
    """A SendGrid account."""

    integration_type = "sendgrid"
    display_name = "SendGrid"
    verify_url = "https://api.sendgrid.com/v3/scopes"
    api_base_url = "https://api.sendgrid.com"
    webhook_scheme = SENDGRID


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(SendGridProvider.integration_type, SendGridProvider)
