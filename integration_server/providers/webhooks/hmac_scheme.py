"""Signatures that are an HMAC-SHA256 (RFC 2104) in one header: most providers' schemes, which differ in data only."""

import hmac
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.webhooks import ReceivedWebhook, WebhookAnswer, WebhookRequest
from integration_server.providers.webhooks.checking import (
    FIVE_MINUTES,
    SECOND,
    only_header,
    require_post,
    require_time,
    signer_of,
)
from integration_server.providers.webhooks.reading import Verified
from integration_server.providers.webhooks.scheme import SecretSource, WebhookKeys


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """The digest of a message."""
    return hmac.digest(key, message, "sha256")


def base64_text(digest: bytes) -> str:
    """Standard base64, padded."""
    return b64encode(digest).decode()


def body_alone(request: WebhookRequest, timestamp: str) -> bytes:
    """What most sign."""
    return request.body


def v0(request: WebhookRequest, timestamp: str) -> bytes:
    """What Slack and Zoom sign."""
    return f"v0:{timestamp}:".encode() + request.body


@dataclass(frozen=True, slots=True)
class Timestamp:
    """A header with the time of sending, which is part of what is signed."""

    header: str
    unit: timedelta = SECOND
    tolerance: timedelta = FIVE_MINUTES

    def read(self, request: WebhookRequest, now: datetime) -> str:
        """The time as it is written. Raises `WebhookForged` where it is too far from now."""
        text = only_header(request, self.header)
        require_time(text, now, unit=self.unit, tolerance=self.tolerance)
        return text


@dataclass(frozen=True, slots=True)
class HmacScheme:
    """What is signed (`message`), how the digest is written and where, and how the events are read.

    Without a `timestamp` a recorded request can be sent again at any time, and only the id of its event tells. A GET
    is answered by `answer_get`, where the provider asks so whether an address is ours.
    """

    signature_header: str
    read: Callable[[Verified], ReceivedWebhook]
    encode: Callable[[bytes], str] = bytes.hex
    prefix: str = ""
    message: Callable[[WebhookRequest, str], bytes] = body_alone
    timestamp: Timestamp | None = None
    answer_get: Callable[[WebhookRequest], WebhookAnswer] | None = None
    secret_source: SecretSource = SecretSource.OWN

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read."""
        if request.method == "GET" and self.answer_get is not None:
            return ReceivedWebhook(answer=self.answer_get(request))
        require_post(request)
        given = only_header(request, self.signature_header)
        timestamp = self.timestamp.read(request, now) if self.timestamp else ""
        message = self.message(request, timestamp)
        secret = signer_of(
            keys.secrets, [given], lambda secret: self.prefix + self.encode(hmac_sha256(secret.encode(), message))
        )
        return self.read(Verified(request, secret, now))
