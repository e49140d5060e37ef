"""The interface of a webhook scheme."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto

from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest


class MalformedWebhook(Exception):
    """The body of a verified request cannot be read. It is stored as one event, with all of its bytes."""


class SecretSource(Enum):
    """Where the secret that signs a provider's webhooks comes from."""

    OWN = auto()
    """A secret for webhooks only."""

    CLIENT_SECRET = auto()
    """The OAuth client's secret, unless a secret for webhooks is set."""

    API_SECRET = auto()
    """The secret half of an account's API key, unless a secret for webhooks is set."""


@dataclass(frozen=True, slots=True)
class WebhookKeys:
    """The secrets that may verify a request: at least one (two during a rotation), none of them empty.

    `verify_tokens` are what the provider sends when it verifies a new address, where that is not a secret. Raises
    `InvalidWebhookSignature` if a value is missing or empty.
    """

    secrets: Sequence[str] = field(repr=False)
    verify_tokens: Sequence[str] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        # Everybody knows an empty key.
        if not self.secrets or not all(self.secrets) or not all(self.verify_tokens):
            raise InvalidWebhookSignature


class WebhookScheme(ABC):
    """How the webhooks of one provider are verified and read."""

    secret_source: SecretSource = SecretSource.OWN

    @abstractmethod
    def receive(self, request: WebhookRequest, keys: WebhookKeys, now: datetime) -> ReceivedWebhook:
        """Verify and read a request. Raises `InvalidWebhookSignature`, or `MalformedWebhook` if it is verified."""

    def secret_problem(self, secret: str) -> str | None:
        """The problem of a secret's format, as the end of a sentence; None if the secret can verify requests."""
        return None
