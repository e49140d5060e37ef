"""Stripe: `Stripe-Signature: t=…,v1=…`.

- HMAC-SHA256 in hex of time, "." and body, with the endpoint's `whsec_…` secret as it is written; 300 s; several `v1`
  while a secret is rolled; other versions (`v0`) are for tests: docs.stripe.com/webhooks#verify-manually [H].
- Events have an `id`, a `type`, and for connected accounts their `account` [H].
- `account.application.deauthorized`: the account has disconnected our platform:
  docs.stripe.com/connect/standard-accounts [H].
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.webhooks.hmac_scheme import hmac_sha256
from integration_server.providers.webhooks.parsing import build_event, json_object
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys
from integration_server.providers.webhooks.verification import (
    FIVE_MINUTES,
    find_signing_secret,
    require_post,
    require_recent,
    single_header,
)

_ENDS_GRANT = frozenset({"account.application.deauthorized"})


@dataclass(frozen=True, slots=True)
class StripeScheme:
    """Time and signatures in one header."""

    tolerance: timedelta = FIVE_MINUTES
    secret_source: SecretSource = SecretSource.OWN

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read."""
        require_post(request)
        parts = [part.partition("=") for part in single_header(request, "Stripe-Signature").split(",")]
        times = [value for name, _, value in parts if name == "t"]
        if len(times) != 1:
            raise InvalidWebhookSignature
        require_recent(times[0], now, tolerance=self.tolerance)
        message = f"{times[0]}.".encode() + request.body
        given = [value for name, _, value in parts if name == "v1"]
        find_signing_secret(keys.secrets, given, lambda secret: hmac_sha256(secret.encode(), message).hex())
        event = build_event(
            json_object(request.body),
            request.body,
            id_path="id",
            type_path="type",
            account_path="account",
            ends_grant=_ENDS_GRANT,
        )
        return ReceivedWebhook([event])


STRIPE = StripeScheme()
