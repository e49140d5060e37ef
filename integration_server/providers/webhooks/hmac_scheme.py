"""The scheme of most providers: an HMAC (RFC 2104) in a header. Such schemes differ in data only."""

import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.webhooks.parsing import VerifiedRequest
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys, WebhookScheme
from integration_server.providers.webhooks.verification import find_signing_secret, require_post, single_header

_TIMESTAMP = re.compile(r"[0-9]{1,15}")


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """The digest of a message."""
    return hmac.digest(key, message, "sha256")


def base64_text(digest: bytes) -> str:
    """Padded standard base64."""
    return b64encode(digest).decode()


def v0_message(request: WebhookRequest, timestamp: str) -> bytes:
    """The signed message of Slack and Zoom."""
    return f"v0:{timestamp}:".encode() + request.body


@dataclass(frozen=True, slots=True)
class Timestamp:
    """A header with the time of sending, which is part of the signed message. `extract` finds it in the value."""

    header: str
    unit: timedelta = timedelta(seconds=1)
    tolerance: timedelta = timedelta(minutes=5)
    extract: Callable[[str], str] = str

    def read(self, request: WebhookRequest, now: datetime) -> str:
        """The timestamp as written. Raises `InvalidWebhookSignature` if it is too far from now, in either direction.

        This limits replays of recorded requests.
        """
        text = self.extract(single_header(request, self.header))
        if not _TIMESTAMP.fullmatch(text):
            raise InvalidWebhookSignature
        if abs(now.timestamp() - int(text) * self.unit.total_seconds()) > self.tolerance.total_seconds():
            raise InvalidWebhookSignature
        return text


@dataclass(frozen=True, slots=True)
class HmacScheme(WebhookScheme):
    """An HMAC scheme, declared by its data.

    Without a `timestamp` a recorded request can be replayed at any time; only the id of its event reveals that.

    Attributes:
        signature_header: the header with the signature.
        read: returns the events of a verified request.
        encode: how the digest is written.
        prefix: the text before the digest.
        message: the signed message, made from the request and the timestamp ("" without one).
        timestamp: where the time of sending is.
        signatures: all signatures in the header's value, where there may be several.
        key: the key that a secret stands for; None if the secret is malformed.
        key_problem: the problem of a malformed secret, as the end of a sentence.
        secret_source: where the secrets come from.
        algorithm: the name of the hash.
    """

    signature_header: str
    read: Callable[[VerifiedRequest], ReceivedWebhook]
    encode: Callable[[bytes], str] = bytes.hex
    prefix: str = ""
    message: Callable[[WebhookRequest, str], bytes] = lambda request, _: request.body
    timestamp: Timestamp | None = None
    signatures: Callable[[str], Sequence[str]] = lambda value: [value]
    key: Callable[[str], bytes | None] = str.encode
    key_problem: str = ""
    secret_source: SecretSource = SecretSource.OWN
    algorithm: str = "sha256"

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request."""
        require_post(request)
        signatures = self.signatures(single_header(request, self.signature_header))
        timestamp = self.timestamp.read(request, now) if self.timestamp else ""
        message = self.message(request, timestamp)
        candidates = [(secret, key) for secret in keys.secrets if (key := self.key(secret)) is not None]
        secret, _ = find_signing_secret(
            candidates,
            signatures,
            lambda candidate: self.prefix + self.encode(hmac.digest(candidate[1], message, self.algorithm)),
        )
        return self.read(VerifiedRequest(request, secret, now))

    def secret_problem(self, secret: str) -> str | None:
        """The problem of a secret; None if it can verify requests."""
        return self.key_problem if self.key(secret) is None else None
