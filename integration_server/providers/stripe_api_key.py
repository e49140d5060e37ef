"""Stripe, with the account's own secret or restricted key.

- `Authorization: Bearer`: docs.stripe.com/api/authentication [H].
- Verification is GET /v1/account, which returns the account of the key [K]. 401 means a wrong key. A restricted key
  without the permission to read the account gets Stripe's 403, which shows that the key works [M 2026-11-29]; its
  account is then not known.
- Nothing is revoked: the user rolls the key at Stripe.
- 100 requests a second per account, 25 in a sandbox and for most single resources: docs.stripe.com/rate-limits [H].
  Only the limit per account applies to all requests, so only that is declared.
"""

from datetime import timedelta

from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_values import field_at
from integration_server.providers.webhooks.stripe import STRIPE


class StripeApiKeyProvider(ApiKeyProvider):
    """A Stripe account."""

    integration_type = "stripe_api_key"
    display_name = "Stripe (API key)"
    verify_url = "https://api.stripe.com/v1/account"
    webhook_scheme = STRIPE
    reason_paths = ("error.code", "error.type")
    reasons = ("api_key_expired", "account_invalid", "invalid_request_error", "more_permissions_required", "rate_limit")
    account_id_field = "id"
    account_label_field = "email"
    api_base_url = "https://api.stripe.com"
    allowed_request_headers = ("Stripe-Account", "Stripe-Context", "Stripe-Version")
    rate_limits = (RateLimit(100, timedelta(seconds=1)),)

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """401 only."""
        return response.status == 401

    def proves_credentials(self, response: HttpResponse) -> bool:
        """Also an error of Stripe with 403; any intermediary may send a 403 of another form."""
        is_restricted = response.status == 403 and field_at(response.json, "error.type") is not None
        return super().proves_credentials(response) or is_restricted


register = StripeApiKeyProvider.register_in
