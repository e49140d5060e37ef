"""What a scheme is: the only thing that a provider needs to take webhooks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Protocol, runtime_checkable

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest


class MalformedWebhook(Exception):
    """A request is the provider's, but its body is not what the provider sends. It is answered with 400."""


class SecretSource(Enum):
    """What a provider signs with."""

    OWN = auto()
    """A secret that is for webhooks only."""

    CLIENT_SECRET = auto()
    """The secret of our OAuth client, unless there is one for webhooks."""

    API_SECRET = auto()
    """The secret half of an account's own API key, unless there is one for webhooks."""


@dataclass(frozen=True, slots=True)
class WebhookKeys:
    """What may vouch for a request: at least one secret, and none of them empty. Raises `InvalidWebhookSignature` for
    less.

    There are two secrets while one replaces the other. `verify_tokens` are what a provider says when it is told of an
    address, where that is not the secret itself.
    """

    secrets: Sequence[str] = field(repr=False)
    verify_tokens: Sequence[str] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        # An empty key is one that everybody has.
        if not self.secrets or not all(self.secrets) or not all(self.verify_tokens):
            raise InvalidWebhookSignature


class WebhookScheme(Protocol):
    """How one provider's webhooks are verified and read."""

    @property
    def secret_source(self) -> SecretSource:
        """What the provider signs with."""

    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """What the request brings. Raises `InvalidWebhookSignature`, and `MalformedWebhook` for one that is not
        forged.
        """


@runtime_checkable
class SecretFormat(WebhookScheme, Protocol):
    """A scheme whose secrets have a form."""

    def secret_problem(self, secret: str) -> str | None:
        """What is wrong with a secret, as the end of a sentence; None if requests can be verified with it."""
