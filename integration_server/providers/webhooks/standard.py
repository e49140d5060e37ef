"""Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`, or `svix-…`. Keys are base64.

- HMAC-SHA256 in base64 of id, ".", timestamp, "." and body, as "v1,…", several of them separated by spaces during a
  rotation of the secret; the secret is base64 after "whsec_", some senders write "v1,whsec_"; five minutes: version
  1.0.0 of the specification, github.com/standard-webhooks/standard-webhooks [H]. Signatures with a private key ("v1a")
  are not accepted.
- Svix, from which the specification comes, names the headers `svix-id`, `svix-timestamp` and `svix-signature`:
  docs.svix.com/receiving/verifying-payloads/how-manual [H 2026-11-29].
- The id is signed, and stays the same when a message is retried [H]. The body is JSON with a `type` [H].

The package `standardwebhooks` is not used: its clock cannot be injected, it takes headers as a dict, which loses
repeated headers, and it raises ValueError for malformed signatures and bodies.
"""

import re
from base64 import b64decode
from dataclasses import replace
from datetime import datetime

from integration_server.domain.lenient_values import text_at
from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent, WebhookRequest
from integration_server.providers.webhooks.hmac_scheme import HmacScheme, Timestamp, base64_text
from integration_server.providers.webhooks.json_text import read_json_text
from integration_server.providers.webhooks.parsing import UNKNOWN, VerifiedRequest, digest
from integration_server.providers.webhooks.scheme import WebhookKeys
from integration_server.providers.webhooks.verification import header_values, single_header

_SVIX = re.compile("^svix-", re.IGNORECASE)


def _key(secret: str) -> bytes | None:
    encoded = secret.removeprefix("v1,").removeprefix("whsec_").rstrip("=")
    try:
        return b64decode(encoded + "=" * (-len(encoded) % 4), validate=True) or None
    except ValueError:
        return None


def _read(verified: VerifiedRequest) -> ReceivedWebhook:
    body = read_json_text(verified.body)  # which may be anything, because the id is in a header
    event_type = None if body is None else text_at(body.value, "type")
    event_id = verified.header("webhook-id") or digest(single_header(verified.request, "webhook-id"))
    return ReceivedWebhook([WebhookEvent(event_id, event_type or UNKNOWN, None, verified.body)])


class StandardScheme(HmacScheme):
    """Takes the headers of either name."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        if not header_values(request, self.signature_header):
            headers = [(_SVIX.sub("webhook-", name), value) for name, value in request.headers]
            request = replace(request, headers=headers)
        return super().receive(request, keys, now)


STANDARD = StandardScheme(
    "webhook-signature",
    read=_read,
    encode=base64_text,
    prefix="v1,",
    message=lambda request, timestamp: f"{single_header(request, 'webhook-id')}.{timestamp}.".encode() + request.body,
    timestamp=Timestamp("webhook-timestamp"),
    signatures=lambda header: header.split(" "),
    key=_key,
    key_problem='is not base64, with or without "whsec_" before it',
)
