"""Reads the bodies of verified requests and makes events from them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import islice
from typing import Any, Generic, TypeVar, overload
from urllib.parse import parse_qsl

from pydantic_core import to_json

from integration_server.domain.lenient_values import text_at
from integration_server.domain.text import has_control_characters
from integration_server.domain.webhooks import (
    MAX_EVENTS,
    ReceivedWebhook,
    WebhookEvent,
    WebhookRequest,
    WebhookResponse,
)
from integration_server.providers.webhooks.json_text import JsonText, read_json_text
from integration_server.providers.webhooks.scheme import MalformedWebhook
from integration_server.providers.webhooks.verification import header_values

T = TypeVar("T")

UNKNOWN = "unknown"
"""The type of an event that states none."""

_MAX_FIELDS = 1000  # of a form or query


@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """A request of the provider, with the secret that verified it and the time at which it arrived."""

    request: WebhookRequest
    secret: str
    now: datetime

    @property
    def body(self) -> bytes:
        """The body as received."""
        return self.request.body

    def json(self) -> JsonText:
        """The JSON value in the body. Raises `MalformedWebhook`."""
        return read_json(self.request)

    def json_object(self) -> Mapping[str, Any]:
        """The JSON object in the body. Raises `MalformedWebhook`."""
        return as_object(self.json().value)

    def header(self, name: str) -> str | None:
        """The value of a header if it occurs once and can be stored. Most such headers are not signed."""
        values = header_values(self.request, name)
        return text_at([value.decode("ascii", errors="ignore") for value in values], "0") if len(values) == 1 else None


# --- bodies


def read_json(request: WebhookRequest) -> JsonText:
    """The JSON value in the body of a request. Raises `MalformedWebhook`."""
    content_types = header_values(request, "Content-Type")
    found = read_json_text(request.body, content_types[0] if content_types else b"")
    if found is None:
        raise MalformedWebhook
    return found


def as_object(value: object) -> Mapping[str, Any]:
    """A JSON value that must be an object. Raises `MalformedWebhook`."""
    if not isinstance(value, dict):
        raise MalformedWebhook
    return value


def as_payload(value: object) -> bytes:
    """A value that is not in a body, encoded as JSON."""
    return to_json(value)


def read_form(encoded: str | bytes) -> Sequence[tuple[str, str]] | None:
    """The fields of a form or query, in order, with repeated ones; None if there are too many.

    Bytes that are not UTF-8 become lone surrogates, from which `encode_text` makes the same bytes again.
    """
    text = encoded if isinstance(encoded, str) else encoded.decode(errors="surrogateescape")
    try:
        return parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=_MAX_FIELDS)
    except ValueError:
        return None


def encode_text(text: str) -> bytes:
    """The bytes from which `read_form` has made a text."""
    return text.encode(errors="surrogateescape")


def query_of(request: WebhookRequest) -> Mapping[str, str]:
    """The query of the called URL without repeated parameters, which are ambiguous, and without invalid text."""
    fields = read_form(request.url.partition("#")[0].partition("?")[2]) or ()
    counts = Counter(name for name, _ in fields)
    return {name: value for name, value in fields if counts[name] == 1 and not has_control_characters(value)}


# --- events


@dataclass(frozen=True, slots=True)
class EventBatch(Sequence[WebhookEvent], Generic[T]):
    """The events of a batch, each made from its part of the body when it is read.

    Thousands of them made at once would block the event loop. `make` raises nothing.
    """

    parts: Sequence[T]
    make: Callable[[T], WebhookEvent]

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, index: int) -> WebhookEvent: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[WebhookEvent]: ...

    def __getitem__(self, index: int | slice) -> WebhookEvent | Sequence[WebhookEvent]:
        if isinstance(index, slice):
            return [self.make(part) for part in self.parts[index]]
        return self.make(self.parts[index])


def digest(*parts: bytes | str) -> str:
    """An id for an event without one: equal for equal parts."""
    total = sha256()
    for part in parts:
        octets = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        total.update(b"%d:" % len(octets) + octets)
    return f"sha256-{total.hexdigest()}"


def unread_event(request: WebhookRequest) -> WebhookEvent:
    """The event of a verified request that cannot be read: all of its body."""
    return WebhookEvent(digest(request.body), UNKNOWN, None, request.body, is_readable=False)


def build_event(
    fields: object,
    payload: bytes,
    *,
    type_path: str,
    id_path: str | None = None,
    account_path: str | None = None,
    reports_grant_end: frozenset[str] = frozenset(),
) -> WebhookEvent:
    """An event whose id, type and account are at dotted paths in `fields`.

    `type_path` may be several paths separated by "+". Without an id, a digest of the payload is the id.
    `reports_grant_end` are the types that revoke our access.
    """
    event_type = ".".join(text_at(fields, path) or UNKNOWN for path in type_path.split("+"))
    return WebhookEvent(
        event_id=(id_path and text_at(fields, id_path)) or digest(payload),
        event_type=event_type,
        account_id=text_at(fields, account_path) if account_path else None,
        payload=payload,
        reports_grant_end=event_type in reports_grant_end,
        is_readable=isinstance(fields, dict),
    )


def first_elements(items: JsonText | None) -> Sequence[JsonText]:
    """The elements of a list, as many as are read of a request. Raises `MalformedWebhook` if it is not a list."""
    if items is None or not isinstance(items.value, list):
        raise MalformedWebhook
    return list(islice(items.elements(), MAX_EVENTS + 1))


def received_events(items: Sequence[JsonText], **paths: str) -> ReceivedWebhook:
    """One event for each of these values, with its bytes as payload; `paths` as for `build_event`.

    A value that is no object is an event of an unknown type: it does not cost the others of its batch.
    """
    return ReceivedWebhook(EventBatch(items, lambda item: build_event(item.value, item.raw, **paths)))  # type: ignore[arg-type]


# --- handshakes


def text_handshake(text: str) -> ReceivedWebhook:
    """A response that echoes a text of an unsigned request, with headers that keep a browser from interpreting it."""
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return ReceivedWebhook(response=WebhookResponse(headers=headers, body=text.encode(), is_verified=False))


def json_handshake(value: Mapping[str, str]) -> ReceivedWebhook:
    """A response with a JSON object."""
    return ReceivedWebhook(response=WebhookResponse(headers={"Content-Type": "application/json"}, body=to_json(value)))
