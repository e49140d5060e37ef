"""SendGrid, with API key.

- `Authorization: Bearer`. GET /v3/scopes lists the permissions of a key [H]. The response does not name the account.
- EU subusers have another host, api.eu.sendgrid.com: twilio.com/docs/sendgrid/api-reference [H 2026-11-29]. `region` of
  the config is "global" or "eu".
"""

from typing import Literal

from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.base import ProviderConfig
from integration_server.providers.webhooks.sendgrid import SENDGRID

_HOSTS = {"global": "api.sendgrid.com", "eu": "api.eu.sendgrid.com"}


class SendGridConfig(ProviderConfig):
    """The region of the account."""

    region: Literal["global", "eu"] = "global"


class SendGridProvider(ApiKeyProvider):
    """A SendGrid account."""

    integration_type = "sendgrid"
    display_name = "SendGrid"
    url_params = {"host": _HOSTS["global"]}
    host_patterns = ("*.sendgrid.com", "*.eu.sendgrid.com")
    verify_url = "https://{host}/v3/scopes"
    api_base_url = "https://{host}"
    config_model = SendGridConfig
    allowed_request_headers = ("On-Behalf-Of",)
    webhook_scheme = SENDGRID

    def configure(self, config: SendGridConfig) -> "SendGridProvider":
        """Use the host of the region."""
        return self.with_url_params(host=_HOSTS[config.region])


register = SendGridProvider.register_in
