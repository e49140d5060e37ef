"""Declarations with the shapes of real providers. Together they use every key of the language."""

from functools import cache
from pathlib import Path

from integration_server.providers.factory import ProviderFactory
from integration_server.providers.toml_providers import load_toml_providers

DECLARATIONS = Path(__file__).parent


@cache
def declared_types() -> ProviderFactory:
    """A factory of all of them, which is for building only: reading the files takes longer than a usual test."""
    factory = ProviderFactory()
    load_toml_providers(DECLARATIONS, factory, dev_mode=False)
    return factory
