"""SendGrid, by API key.

- `Authorization: Bearer`, and GET /v3/scopes to see what a key may do: twilio.com/docs/sendgrid/api-reference
  (confirmed). The answer does not say whose the key is.
- EU subusers have a host of their own, api.eu.sendgrid.com (general knowledge); a declaration of one's own
  can name it.
"""

from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.factory import ProviderFactory


class SendGridProvider(ApiKeyProvider):
    """A SendGrid account."""

    integration_type = "sendgrid"
    display_name = "SendGrid"
    verify_url = "https://api.sendgrid.com/v3/scopes"
    api_base_url = "https://api.sendgrid.com"


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(SendGridProvider.integration_type, SendGridProvider)
