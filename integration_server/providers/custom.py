"""Anything else: a key that the user gives, and the URL of a webhook.

- The document's origin has it with a `webhook_url`. It is kept in the config for backends, and never called from here.
- Nothing is known of the other side, so a key is stored as it is given, and goes into `Authorization: Bearer`.
- It has no API host, so nothing calls it for a backend: `GetCredentials` hands out the key.
"""

from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.base import ProviderConfig
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.urls import url_problem
from integration_server.providers.webhooks.standard import STANDARD


def _https(value: str) -> str:
    problem = url_problem(value, dev_mode=False)
    if problem is not None:
        raise ValueError(problem)
    return value


class CustomConfig(ProviderConfig):
    """Where the other side takes or sends events."""

    webhook_url: Annotated[str, StringConstraints(max_length=2048), AfterValidator(_https)]


class CustomProvider(ApiKeyProvider):
    """A system of the user's own."""

    integration_type = "custom"
    display_name = "Custom"
    config_model = CustomConfig
    webhook_scheme = STANDARD


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(CustomProvider.integration_type, CustomProvider)
