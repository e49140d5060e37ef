"""Telling who sent a request. Whatever is missing, repeated or of another form is forged: nothing is guessed."""

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from integration_server.domain.webhooks import InvalidWebhookSignature, WebhookRequest

FIVE_MINUTES = timedelta(minutes=5)
SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)

_TIMESTAMP = re.compile(r"[0-9]{1,15}")


def require_post(request: WebhookRequest) -> None:
    """Events come by POST, whoever sends them."""
    if request.method != "POST":
        raise InvalidWebhookSignature


def header_values(request: WebhookRequest, name: str) -> Sequence[bytes]:
    """The values of a header, in any case of its name."""
    return [value for given, value in request.headers if given.lower() == name.lower()]


def single_header(request: WebhookRequest, name: str) -> str:
    """The value of a header that must be there once.

    Of two, others on the way may have read the other one. Outside of ASCII there are no signatures.
    """
    values = header_values(request, name)
    if len(values) != 1 or not values[0].isascii():
        raise InvalidWebhookSignature
    return values[0].decode("ascii")


def constant_time_equal(expected: str, given: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(expected.encode(), given.encode())


def find_signing_secret(secrets: Sequence[str], given: Sequence[str], sign: Callable[[str], str]) -> str:
    """The secret that made one of the given signatures."""
    for secret in secrets:
        expected = sign(secret)
        if any(constant_time_equal(expected, signature) for signature in given):
            return secret
    raise InvalidWebhookSignature


def require_recent(text: str, now: datetime, *, unit: timedelta = SECOND, tolerance: timedelta) -> None:
    """A signed time must be near to now, in either direction: a recorded request is no good for longer."""
    if not _TIMESTAMP.fullmatch(text):
        raise InvalidWebhookSignature
    try:
        distance = abs(now.timestamp() - int(text) * unit.total_seconds())
    except OverflowError:
        raise InvalidWebhookSignature from None
    if distance > tolerance.total_seconds():
        raise InvalidWebhookSignature


def base64_bytes(text: str) -> bytes | None:
    """What a text of standard base64 says, with its padding; None if it is anything else (RFC 4648 §3.5 included)."""
    try:
        value = b64decode(text, validate=True)
    except ValueError:
        return None
    return value if b64encode(value).decode() == text else None
