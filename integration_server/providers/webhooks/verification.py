"""Checks that a request is from the provider. A missing, repeated or malformed value counts as an invalid signature."""

import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from integration_server.domain.webhooks import InvalidWebhookSignature, WebhookRequest

T = TypeVar("T")


def require_post(request: WebhookRequest) -> None:
    """Every provider sends events by POST."""
    if request.method != "POST":
        raise InvalidWebhookSignature


def header_values(request: WebhookRequest, name: str) -> Sequence[bytes]:
    """The values of a header; its name is case-insensitive."""
    return [value for header, value in request.headers if header.lower() == name.lower()]


def single_header(request: WebhookRequest, name: str) -> str:
    """The value of a header that must occur once, in ASCII. An intermediary may have checked another occurrence."""
    values = header_values(request, name)
    if len(values) != 1 or not values[0].isascii():
        raise InvalidWebhookSignature
    return values[0].decode("ascii")


def constant_time_equal(expected: str, actual: str) -> bool:
    """Whether two texts are equal. The duration does not reveal where they differ."""
    return hmac.compare_digest(expected.encode(errors="surrogatepass"), actual.encode(errors="surrogatepass"))


def find_signing_secret(candidates: Iterable[T], signatures: Sequence[str], sign: Callable[[T], str]) -> T:
    """The candidate (a secret) whose signature is one of those given."""
    for candidate in candidates:
        expected = sign(candidate)
        if any(constant_time_equal(expected, signature) for signature in signatures):
            return candidate
    raise InvalidWebhookSignature
