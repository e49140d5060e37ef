"""Acuity Scheduling, by user ID and API key.

- HTTP Basic, with the numeric user ID as user name and the key as password:
  developers.acuityscheduling.com/reference/quick-start [H]. `api_key` is the user ID, `api_secret` the API key.
- Verified by GET /me [M], which has the account's `id`, `email` and `name` [K].
- There is nothing to revoke: the user makes a new key at Acuity.
- Ten requests a second [K].
"""

from datetime import timedelta

from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.api_key import BasicAuthProvider
from integration_server.providers.factory import ProviderFactory


class AcuityProvider(BasicAuthProvider):
    """An Acuity account."""

    integration_type = "acuity"
    display_name = "Acuity Scheduling"
    verify_url = "https://acuityscheduling.com/api/v1/me"
    account_id_field = "id"
    account_label_field = "email"
    api_base_url = "https://acuityscheduling.com/api/v1"
    rate_limits = (RateLimit(10, timedelta(seconds=1)),)


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(AcuityProvider.integration_type, AcuityProvider)
