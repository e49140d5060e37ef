"""Stripe, with the account's own secret or restricted key.

- `Authorization: Bearer`: docs.stripe.com/api/authentication [H].
- Verification is GET /v1/account, which returns the account of the key [K]; a restricted key needs the permission to
  read it, or is rejected [K].
- Nothing is revoked: the user rolls the key at Stripe.
- 100 requests a second per account, 25 in a sandbox and for most single resources: docs.stripe.com/rate-limits [H].
  Only the limit per account applies to all requests, so only that is declared.
"""

from datetime import timedelta

from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.api_key import ApiKeyProvider
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
    allowed_request_headers = ("Stripe-Account", "Stripe-Context", "Stripe-Version")
    rate_limits = (RateLimit(100, timedelta(seconds=1)),)


register = StripeApiKeyProvider.register_in
