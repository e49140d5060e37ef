"""Acuity Scheduling, with user ID and API key.

- HTTP Basic, with the numeric user ID as user name and the API key as password:
  developers.acuityscheduling.com/reference/quick-start [H]. `api_key` is the user ID, `api_secret` the API key.
- Verification is GET /me [M]. The response has the account's `id`, `email` and `name` [K].
- Nothing is revoked: the user creates a new key at Acuity.
- The rate limit is ten requests a second [K].
"""

from datetime import timedelta

from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.api_key import BasicAuthProvider
from integration_server.providers.webhooks.acuity import ACUITY


class AcuityProvider(BasicAuthProvider):
    """An Acuity account."""

    integration_type = "acuity"
    display_name = "Acuity Scheduling"
    verify_url = "https://acuityscheduling.com/api/v1/me"
    account_id_field = "id"
    account_label_field = "email"
    api_base_url = "https://acuityscheduling.com/api/v1"
    webhook_scheme = ACUITY
    rate_limits = (RateLimit(10, timedelta(seconds=1)),)


register = AcuityProvider.register_in
