"""The built-in providers."""

from importlib import import_module

from integration_server.providers.factory import ProviderFactory

BUILT_IN = (
    *("acuity", "booksy", "custom", "sendgrid", "stripe_api_key", "twilio"),  # API keys
    *("gmail", "google_ads", "google_calendar", "google_my_business"),
    *("dropbox", "github", "hubspot", "instagram", "mailchimp", "meta_business", "microsoft_outlook", "quickbooks"),
    *("salesforce", "shopify", "slack", "square", "stripe", "xero", "zoom"),
)
"""The names of their modules in this package. Each module exports `register(factory)`."""


def register_built_in(factory: ProviderFactory) -> None:
    """Add all built-in providers to a factory."""
    for name in BUILT_IN:
        import_module(f"integration_server.providers.{name}").register(factory)
