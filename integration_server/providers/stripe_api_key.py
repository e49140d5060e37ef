"""Stripe, by the account's own secret or restricted key.

- `Authorization: Bearer`: docs.stripe.com/api/authentication [H].
- Verified by GET /v1/account, which answers for the key's own account [K]; a restricted key needs to be allowed to
  read it, or is refused [K].
- There is nothing to revoke: the user rolls the key at Stripe.
- 100 requests a second to one account, 25 in a sandbox and for most single resources: docs.stripe.com/rate-limits [H].
  Only the first holds for all, so only that is declared.
"""

from datetime import timedelta

from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.webhooks.stripe import STRIPE


class StripeApiKeyProvider(ApiKeyProvider):
    """A Stripe account."""

    integration_type = "stripe_api_key"
    display_name = "Stripe (API key)"
    verify_url = "https://api.stripe.com/v1/account"
    webhook_scheme = STRIPE
    account_id_field = "id"
    account_label_field = "email"
    api_base_url = "https://api.stripe.com"
    rate_limits = (RateLimit(100, timedelta(seconds=1)),)


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(StripeApiKeyProvider.integration_type, StripeApiKeyProvider)
