"""Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`.

- HMAC-SHA256 in base64 of id, ".", time, "." and body, as "v1,…", several of them between spaces while a secret is
  rolled; the secret is base64 after "whsec_"; five minutes: version 1.0.0 of the specification,
  github.com/standard-webhooks/standard-webhooks [H]. Signatures with a private key ("v1a") are not taken.
- The id is signed, and the same when a message is sent again [H]. The body is JSON with a `type` [H].

Why not the package `standardwebhooks`: it asks the machine's clock and no other, takes headers as a dict, in which one
that is repeated has been lost, and fails with a ValueError at signatures and bodies of another form.
"""

from base64 import b64decode
from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.hmac_scheme import base64_text, hmac_sha256
from integration_server.providers.webhooks.parsing import UNKNOWN, digest, json_object
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys
from integration_server.providers.webhooks.verification import (
    FIVE_MINUTES,
    find_signing_secret,
    require_post,
    require_recent,
    single_header,
)

_PREFIX = "whsec_"


@dataclass(frozen=True, slots=True)
class StandardScheme:
    """Id, time and signatures in three headers."""

    tolerance: timedelta = FIVE_MINUTES
    secret_source: SecretSource = SecretSource.OWN

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read."""
        require_post(request)
        event_id = single_header(request, "webhook-id")
        timestamp = single_header(request, "webhook-timestamp")
        require_recent(timestamp, now, tolerance=self.tolerance)
        message = f"{event_id}.{timestamp}.".encode() + request.body
        given = single_header(request, "webhook-signature").split(" ")
        usable = [secret for secret in keys.secrets if _key(secret)]
        find_signing_secret(usable, given, lambda secret: f"v1,{base64_text(hmac_sha256(_key(secret), message))}")
        event_type = text_at(json_object(request.body), "type") or UNKNOWN
        stored_id = text_at([event_id], "0") or digest(event_id)
        return ReceivedWebhook([WebhookEvent(stored_id, event_type, None, request.body)])

    def secret_problem(self, secret: str) -> str | None:
        """That it is no key."""
        return None if _key(secret) else 'is not base64, with or without "whsec_" before it'


def _key(secret: str) -> bytes:
    """The key that a secret is written for; empty where it is none, and then nothing is signed with it."""
    encoded_key = secret.removeprefix(_PREFIX).rstrip("=")
    try:
        return b64decode(encoded_key + "=" * (-len(encoded_key) % 4), validate=True)
    except ValueError:
        return b""


STANDARD = StandardScheme()
