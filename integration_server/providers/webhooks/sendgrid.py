"""SendGrid's event webhook: `X-Twilio-Email-Event-Webhook-Signature`.

- ECDSA over P-256 with SHA-256 of time and body; the "secret" is the public key in base64 of DER, which the settings of
  the webhook show: the SDK's `EventWebhook` [H]. Nobody can sign with it, so nothing need be compared in secret.
- `X-Twilio-Email-Event-Webhook-Timestamp` is signed, but no tolerance is documented, nor whether a delivery that is
  tried again for a day gets a new one [M]; so it is not judged, and what is recorded and sent again is known by its
  events' ids, which are signed. `tolerance` would judge it.
- The body is a list of events with `sg_event_id` and `event` [H]. None says whose account it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from integration_server.domain.webhooks import ReceivedWebhook, WebhookForged, WebhookRequest
from integration_server.providers.webhooks.checking import base64_bytes, only_header, require_post, require_time
from integration_server.providers.webhooks.reading import as_objects, as_payload, event_of, read_json
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys

_PREFIX = "X-Twilio-Email-Event-Webhook-"


def signed_by_p256(key: str, signature: bytes, message: bytes) -> bool:
    """Whether the owner of a public key, in base64 of DER, made the signature (FIPS 186-5)."""
    der = base64_bytes(key)
    try:
        public_key = load_der_public_key(der or b"")
    except (ValueError, UnsupportedAlgorithm):
        return False
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        return False
    try:
        public_key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True, slots=True)
class SendGridScheme:
    """A public key's signature."""

    tolerance: timedelta | None = None
    is_signed: Callable[[str, bytes, bytes], bool] = signed_by_p256
    secret_source: SecretSource = SecretSource.OWN

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read."""
        require_post(request)
        signature = base64_bytes(only_header(request, f"{_PREFIX}Signature"))
        timestamp = only_header(request, f"{_PREFIX}Timestamp")
        if signature is None:
            raise WebhookForged
        if self.tolerance is not None:
            require_time(timestamp, now, tolerance=self.tolerance)
        message = timestamp.encode() + request.body
        if not any(self.is_signed(key, signature, message) for key in keys.secrets):
            raise WebhookForged
        return ReceivedWebhook(
            [
                event_of(fields, as_payload(fields), id_at="sg_event_id", type_at="event")
                for fields in as_objects(read_json(request.body))
            ]
        )


SENDGRID = SendGridScheme()
