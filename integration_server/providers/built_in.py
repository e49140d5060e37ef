"""The built-in providers: declarations in `catalogue/`, and modules for those whose behaviour differs."""

from importlib import import_module
from importlib.resources import files

from integration_server.providers.factory import ProviderFactory
from integration_server.providers.toml_providers import load_toml_providers

CATALOGUE = files("integration_server.providers") / "catalogue"
"""The directory of declarations."""

BUILT_IN = (
    *("acuity", "booksy", "custom", "sendgrid", "stripe_api_key", "twilio"),  # API keys
    *("gmail", "google_ads", "google_calendar", "google_my_business"),
    *("dropbox", "github", "hubspot", "instagram", "mailchimp", "meta_business", "microsoft_outlook", "quickbooks"),
    *("salesforce", "shopify", "slack", "stripe", "xero", "zoom"),
)
"""The names of their modules in this package. Each module exports `register(factory)`."""


def register_built_in(factory: ProviderFactory) -> None:
    """Add all built-in providers to a factory. Raises `ProvidersError`."""
    load_toml_providers(CATALOGUE, factory, dev_mode=False)
    for name in BUILT_IN:
        import_module(f"integration_server.providers.{name}").register(factory)
