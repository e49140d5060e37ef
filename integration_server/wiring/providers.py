"""Registers and configures the providers."""

from collections.abc import Callable, Mapping, Sequence

from integration_server.providers.base import ProviderContext
from integration_server.providers.built_in import register_built_in
from integration_server.providers.factory import ProviderFactory, ProviderRegistry
from integration_server.providers.http import ProviderHttp
from integration_server.providers.plugins import load_plugins
from integration_server.providers.toml_providers import load_toml_providers
from integration_server.service.common_types import Clock, Record, record_nothing
from integration_server.settings import Settings
from integration_server.wiring.system import utc_now

RegisterProviders = Callable[[ProviderFactory], None]


def build_providers(
    settings: Settings,
    environment: Mapping[str, str],
    http: ProviderHttp,
    clock: Clock = utc_now,
    extra: Sequence[RegisterProviders] = (),
    record_request: Record = record_nothing,
) -> ProviderRegistry:
    """The registered providers and the extra ones, configured. Raises `ProvidersError`."""
    factory = registered_providers(settings)
    for register in extra:
        register(factory)
    return factory.build(ProviderContext(http, clock, environment, record_request))


def registered_providers(settings: Settings) -> ProviderFactory:
    """The built-in providers, those of plugins and those of `PROVIDERS_DIR`. Raises `ProvidersError`."""
    factory = ProviderFactory()
    register_built_in(factory)
    load_plugins(factory)
    if settings.providers_dir is not None:
        load_toml_providers(settings.providers_dir, factory, dev_mode=settings.dev_mode)
    return factory
