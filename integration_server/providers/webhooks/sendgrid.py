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

from cryptography.exceptions import InvalidSignature as InvalidEcdsaSignature
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.webhooks.parsing import as_objects, as_payload, build_event, read_json
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys
from integration_server.providers.webhooks.verification import base64_bytes, require_post, require_recent, single_header

_PREFIX = "X-Twilio-Email-Event-Webhook-"


def p256_key(text: str) -> ec.EllipticCurvePublicKey | None:
    """A public key of the curve P-256 (FIPS 186-5), in base64 of DER."""
    try:
        key = load_der_public_key(base64_bytes(text) or b"")
    except (ValueError, UnsupportedAlgorithm):
        return None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    return None


def signed_by_p256(key: str, signature: bytes, message: bytes) -> bool:
    """Whether the owner of a public key made the signature."""
    public_key = p256_key(key)
    if public_key is None:
        return False
    try:
        public_key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidEcdsaSignature:
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
        signature = base64_bytes(single_header(request, f"{_PREFIX}Signature"))
        timestamp = single_header(request, f"{_PREFIX}Timestamp")
        if signature is None:
            raise InvalidWebhookSignature
        if self.tolerance is not None:
            require_recent(timestamp, now, tolerance=self.tolerance)
        message = timestamp.encode() + request.body
        if not any(self.is_signed(key, signature, message) for key in keys.secrets):
            raise InvalidWebhookSignature
        return ReceivedWebhook(
            [
                build_event(fields, as_payload(fields), id_path="sg_event_id", type_path="event")
                for fields in as_objects(read_json(request.body))
            ]
        )

    def secret_problem(self, secret: str) -> str | None:
        """That it is no public key."""
        return None if p256_key(secret) else "is not SendGrid's public key (P-256) in base64, as its settings show it"


SENDGRID = SendGridScheme()
