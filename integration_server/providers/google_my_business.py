"""Google Business Profile, "My Business" by its former name.

- Scope, and verification by listing accounts: the document's origin. The API answers only to projects that Google has
  approved [K].
- The first account in the list is taken for the user's own, since personal accounts come first [K].
- 300 requests a minute for our project: developers.google.com/my-business/content/limits [H].
"""

from datetime import timedelta

from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.google import GoogleProvider


class GoogleMyBusinessProvider(GoogleProvider):
    """A user's business profiles."""

    integration_type = "google_my_business"
    display_name = "Google Business Profile"
    required_scopes = ("https://www.googleapis.com/auth/business.manage",)
    verify_url = "https://mybusinessaccountmanagement.googleapis.com/v1/accounts"
    account_id_field = "accounts.0.name"
    account_label_field = "accounts.0.accountName"
    api_base_url = "https://mybusinessaccountmanagement.googleapis.com/v1"
    rate_limits = (RateLimit(300, timedelta(minutes=1), LimitScope.APP),)


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(GoogleMyBusinessProvider.integration_type, GoogleMyBusinessProvider)
