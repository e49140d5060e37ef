"""Webhooks: what a provider tells us by itself, once it is known to be from that provider."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class InvalidWebhookSignature(Exception):
    """A request is not shown to be the provider's. It is answered with 401, and leaves nothing behind."""


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """A request as it came, byte for byte, since it is what was signed.

    `url` is what the provider called, with its query; `headers` are in their order, repeated ones too.
    """

    method: str
    url: str
    headers: Sequence[tuple[str, bytes]] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """What to answer the provider."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One thing that happened at the provider.

    `event_id` is the provider's own, or a digest of what came where it has none: a delivery that is repeated has the
    same. `account_id` is whose it is, as in `Integration.account_id`; None where only the address it was sent to tells.
    `ends_grant`: the account has taken our access back.
    """

    event_id: str
    event_type: str
    account_id: str | None
    payload: bytes = field(repr=False)
    ends_grant: bool = False


@dataclass(frozen=True, slots=True)
class ReceivedWebhook:
    """A request that is the provider's: its events, none for a handshake, and the answer once they are stored."""

    events: Sequence[WebhookEvent] = ()
    response: WebhookResponse = field(default_factory=WebhookResponse)
