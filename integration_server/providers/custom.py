"""Any other system: an API key from the user, and the URL of a webhook.

- The requirements define the type with a `webhook_url`. It is stored in the config for backends; the server never sends
  anything to it.
- The system is not known, so a key is stored without a check, and `Authorization: Bearer` carries it.
- The type declares no API, so `CallProvider` does not apply; `GetCredentials` returns the key.
"""

from typing import Annotated

from pydantic import StringConstraints

from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.base import ProviderConfig
from integration_server.providers.url_templates import Url
from integration_server.providers.webhooks.standard import STANDARD


class CustomConfig(ProviderConfig):
    """The webhook URL of the other system."""

    webhook_url: Annotated[Url, StringConstraints(max_length=2048)]


class CustomProvider(ApiKeyProvider):
    """A system of the user's own."""

    integration_type = "custom"
    config_model = CustomConfig
    webhook_scheme = STANDARD


register = CustomProvider.register_in
