"""SendGrid, with API key.

- `Authorization: Bearer`. GET /v3/scopes lists the permissions of a key [H]. The response does not name the account.
- EU subusers have another host, api.eu.sendgrid.com [K].
"""

from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.webhooks.sendgrid import SENDGRID


class SendGridProvider(ApiKeyProvider):
    """A SendGrid account."""

    integration_type = "sendgrid"
    display_name = "SendGrid"
    verify_url = "https://api.sendgrid.com/v3/scopes"
    api_base_url = "https://api.sendgrid.com"
    allowed_request_headers = ("On-Behalf-Of",)
    webhook_scheme = SENDGRID


register = SendGridProvider.register_in
