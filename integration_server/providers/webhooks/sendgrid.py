"""SendGrid's event webhook: `X-Twilio-Email-Event-Webhook-Signature`. A private key signs (ECDSA).

- ECDSA over P-256 with SHA-256 of timestamp and body; the "secret" is the public key in base64 of DER, which the
  webhook's settings show: the SDK's `EventWebhook` [H]. It cannot sign, so it need not be compared in constant time.
- `X-Twilio-Email-Event-Webhook-Timestamp` is signed, but no tolerance is documented, nor whether a delivery that is
  retried for a day gets a new one [M]; so it is not checked, and a replayed request is recognized by the ids of its
  events, which are signed.
- The body is a list of events with `sg_event_id` and `event` [H]. None names the account.
"""

from base64 import b64decode, b64encode
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature as InvalidEcdsaSignature
from cryptography.exceptions import UnsupportedAlgorithm

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.webhooks.parsing import first_elements, read_json, received_events
from integration_server.providers.webhooks.scheme import WebhookKeys, WebhookScheme
from integration_server.providers.webhooks.verification import require_post, single_header

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_PREFIX = "X-Twilio-Email-Event-Webhook-"


def base64_bytes(text: str) -> bytes | None:
    """Decoded padded standard base64; None for any other text, non-canonical base64 included (RFC 4648 §3.5)."""
    try:
        value = b64decode(text, validate=True)
    except ValueError:
        return None
    return value if b64encode(value).decode() == text else None


def p256_key(text: str) -> "EllipticCurvePublicKey | None":
    """A public key of the curve P-256 (FIPS 186-5) from base64 of DER; None for any other text."""
    # No other part of a worker needs them, and they take half a megabyte.
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415

    try:
        key = load_der_public_key(base64_bytes(text) or b"")
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1) else None


class SendGridScheme(WebhookScheme):
    """Verifies signatures with a public key."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        require_post(request)
        signature = base64_bytes(single_header(request, f"{_PREFIX}Signature"))
        timestamp = single_header(request, f"{_PREFIX}Timestamp")
        if signature is None:
            raise InvalidWebhookSignature
        message = timestamp.encode() + request.body
        if not any(self.is_signed(key, signature, message) for key in keys.secrets):
            raise InvalidWebhookSignature
        return received_events(first_elements(read_json(request)), id_path="sg_event_id", type_path="event")

    def is_signed(self, key: str, signature: bytes, message: bytes) -> bool:
        """Whether the signature is by the owner of the public key."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

        public_key = p256_key(key)
        if public_key is None:
            return False
        try:
            public_key.verify(signature, message, ECDSA(SHA256()))
        except InvalidEcdsaSignature:
            return False
        return True

    def secret_problem(self, secret: str) -> str | None:
        """The problem of a public key; None if it can verify requests."""
        return None if p256_key(secret) else "is not SendGrid's public key (P-256) in base64, as its settings show it"


SENDGRID = SendGridScheme()
