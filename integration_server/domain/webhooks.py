"""Webhooks: requests that a provider sends to us, and the events in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

MAX_EVENTS = 10_000
"""The events of one request that are read. Providers document batches of at most 1,000."""

_PATH = "/api/v1/webhooks"


def webhook_url(public_url: str, integration_type: str, endpoint: str) -> str:
    """The address to which a provider delivers the webhooks of an endpoint: of an integration, or of an app."""
    return f"{public_url}{_PATH}/{integration_type}/{endpoint}"


class InvalidWebhookSignature(Exception):
    """A request is not verified as the provider's. The response is 401, and nothing is stored."""


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """A request exactly as received, because its bytes are signed.

    `url` is the URL that the provider called, with its query. `headers` are in order, with repeated ones.
    """

    method: str
    url: str
    headers: Sequence[tuple[str, bytes]] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """The response to the provider. `is_verified` is false where anybody could have sent the request."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    is_verified: bool = True


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """An event at the provider.

    `event_id` is the provider's id, or a digest of the event if it has none: a repeated delivery has the same id,
    unless `has_stable_id` is False. `account_id` is the account that the event belongs to, as in
    `Integration.account_id`; None if only the address identifies it. `reports_grant_end`: the account seems to have
    revoked our access, which is confirmed at the provider before the grant is ended. `route`: another key of the
    recipient, such as "subscription:…", by which an event whose account is not known is routed. `is_readable`: False if
    the event could not be parsed, so that only its bytes are known.
    """

    event_id: str
    event_type: str
    account_id: str | None
    payload: bytes = field(repr=False)
    reports_grant_end: bool = False
    has_stable_id: bool = True
    route: str | None = None
    is_readable: bool = True


class UnroutedReason(StrEnum):
    """Why a verified event at the app's address belongs to no integration."""

    UNREADABLE = "unreadable"
    """The event could not be parsed."""

    NO_ACCOUNT = "no_account"
    """The event names no account."""

    UNKNOWN_ACCOUNT = "unknown_account"
    """No connected integration of the type has the account."""

    UNKNOWN_ROUTE = "unknown_route"
    """The event names no account, but another key, such as a subscription, that is not known to be an integration's."""

    @classmethod
    def of(cls, event: WebhookEvent) -> "UnroutedReason":
        """Why an event has no recipient."""
        if event.account_id is not None:
            return cls.UNKNOWN_ACCOUNT
        if event.route is not None:
            return cls.UNKNOWN_ROUTE
        return cls.NO_ACCOUNT if event.is_readable else cls.UNREADABLE


@dataclass(frozen=True, slots=True)
class ReceivedWebhook:
    """A verified request: its events (none for a handshake), and the response to send after they are stored.

    The events of a batch may be made one by one as they are read.
    """

    events: Sequence[WebhookEvent] = ()
    response: WebhookResponse = field(default_factory=WebhookResponse)
