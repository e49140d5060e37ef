"""Signatures that are an HMAC-SHA256 (RFC 2104) in one header: most providers' schemes, which differ in data only."""

import hmac
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.webhooks import ReceivedWebhook, WebhookRequest, WebhookResponse
from integration_server.providers.webhooks.parsing import VerifiedRequest
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys
from integration_server.providers.webhooks.verification import (
    FIVE_MINUTES,
    SECOND,
    find_signing_secret,
    require_post,
    require_recent,
    single_header,
)


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """The digest of a message."""
    return hmac.digest(key, message, "sha256")


def base64_text(digest: bytes) -> str:
    """Standard base64, padded."""
    return b64encode(digest).decode()


def body_only(request: WebhookRequest, timestamp: str) -> bytes:
    """What most sign."""
    return request.body


def v0_message(request: WebhookRequest, timestamp: str) -> bytes:
    """What Slack and Zoom sign."""
    return f"v0:{timestamp}:".encode() + request.body


@dataclass(frozen=True, slots=True)
class Timestamp:
    """A header with the time of sending, which is part of what is signed."""

    header: str
    unit: timedelta = SECOND
    tolerance: timedelta = FIVE_MINUTES

    def read(self, request: WebhookRequest, now: datetime) -> str:
        """The time as it is written. Raises `InvalidWebhookSignature` where it is too far from now."""
        text = single_header(request, self.header)
        require_recent(text, now, unit=self.unit, tolerance=self.tolerance)
        return text


@dataclass(frozen=True, slots=True)
class HmacScheme:
    """What is signed (`message`), how the digest is written and where, and how the events are read.

    Without a `timestamp` a recorded request can be sent again at any time, and only the id of its event tells. A GET
    is answered by `respond_to_get`, where the provider asks so whether an address is ours.
    """

    signature_header: str
    read: Callable[[VerifiedRequest], ReceivedWebhook]
    encode: Callable[[bytes], str] = bytes.hex
    prefix: str = ""
    message: Callable[[WebhookRequest, str], bytes] = body_only
    timestamp: Timestamp | None = None
    respond_to_get: Callable[[WebhookRequest], WebhookResponse] | None = None
    secret_source: SecretSource = SecretSource.OWN

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read."""
        if request.method == "GET" and self.respond_to_get is not None:
            return ReceivedWebhook(response=self.respond_to_get(request))
        require_post(request)
        given = single_header(request, self.signature_header)
        timestamp = self.timestamp.read(request, now) if self.timestamp else ""
        message = self.message(request, timestamp)
        secret = find_signing_secret(
            keys.secrets, [given], lambda secret: self.prefix + self.encode(hmac_sha256(secret.encode(), message))
        )
        return self.read(VerifiedRequest(request, secret, now))
