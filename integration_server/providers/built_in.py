"""The built-in providers: the declarations of `catalogue/`, and a class for each type whose behaviour differs."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from integration_server.providers.factory import ProviderFactory
from integration_server.providers.instagram import InstagramProvider
from integration_server.providers.meta_business import MetaBusinessProvider
from integration_server.providers.shopify import ShopifyProvider
from integration_server.providers.slack import SlackProvider
from integration_server.providers.stripe import StripeProvider
from integration_server.providers.stripe_api_key import StripeApiKeyProvider
from integration_server.providers.toml_providers import (
    CATALOGUE,
    load_toml_providers,
    provider_class,
    read_declaration,
)
from integration_server.providers.xero import XeroProvider
from integration_server.providers.zoom import ZoomProvider

BEHAVIOURS: Mapping[str, Any] = MappingProxyType(
    {
        "instagram": InstagramProvider,
        "meta_business": MetaBusinessProvider,
        "shopify": ShopifyProvider,
        "slack": SlackProvider,
        "stripe": StripeProvider,
        "stripe_api_key": StripeApiKeyProvider,
        "xero": XeroProvider,
        "zoom": ZoomProvider,
    }
)
"""The classes of types that differ from the generic providers. The first line of their modules says how."""


def register_built_in(factory: ProviderFactory) -> None:
    """Add all built-in providers to a factory. Raises `ProvidersError`."""
    factory.register_all(_built_in())


@cache
def _built_in() -> ProviderFactory:
    """All built-in providers. A process reads the files, which are a part of the package, once.

    Tests look for mistakes in them, and not each start of a server.
    """
    factory = ProviderFactory()
    load_toml_providers(CATALOGUE, factory, dev_mode=False, behaviours=BEHAVIOURS, finds_mistakes=False)
    return factory


def built_in_class(integration_type: str) -> Any:  # noqa: ANN401  # a class whose declarations are attributes
    """The class of one built-in provider."""
    file = CATALOGUE / f"{integration_type}.toml"
    return provider_class(read_declaration(file, dev_mode=False), file, BEHAVIOURS.get(integration_type))
