"""Reads the bodies of verified requests and makes events from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any, Generic, TypeVar, overload
from urllib.parse import parse_qsl

from pydantic_core import from_json, to_json

from integration_server.domain.webhooks import ReceivedWebhook, WebhookEvent, WebhookRequest, WebhookResponse
from integration_server.providers.lenient_values import text_at
from integration_server.providers.webhooks.scheme import MalformedWebhook
from integration_server.providers.webhooks.verification import header_values

T = TypeVar("T")

UNKNOWN = "unknown"
"""The type of an event that states none."""

_MAX_FIELDS = 1000  # of a form or query
# Lists and objects of a JSON body, counted by their brackets. A parser needs about 20 ms for so many, during which the
# event loop waits; 350,000 empty ones fit into 1 MiB. A batch of 1,000 rich events has some 20,000.
_MAX_CONTAINERS = 100_000


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

    def json(self) -> Any:  # noqa: ANN401  # whatever the provider sent
        """The JSON value in the body. Raises `MalformedWebhook`."""
        return read_json(self.body)

    def json_object(self) -> Mapping[str, Any]:
        """The JSON object in the body. Raises `MalformedWebhook`."""
        return read_object(self.body)

    def header(self, name: str) -> str | None:
        """The value of a header if it occurs once and can be stored. Most such headers are not signed."""
        values = header_values(self.request, name)
        return text_at([value.decode("ascii", errors="ignore") for value in values], "0") if len(values) == 1 else None


# --- bodies


def read_json(body: bytes) -> Any:  # noqa: ANN401  # whatever the provider sent
    """The JSON value in a body. Raises `MalformedWebhook`, also for more lists and objects than providers send."""
    if body.count(b"{") + body.count(b"[") > _MAX_CONTAINERS:
        raise MalformedWebhook
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:  # not chained, because the error quotes the body
        raise MalformedWebhook from None


def read_object(body: bytes) -> Mapping[str, Any]:
    """The JSON object in a body. Raises `MalformedWebhook`."""
    return as_object(read_json(body))


def as_object(value: object) -> Mapping[str, Any]:
    """A JSON value that must be an object. Raises `MalformedWebhook`."""
    if not isinstance(value, dict):
        raise MalformedWebhook
    return value


def as_objects(value: object) -> Sequence[Mapping[str, Any]]:
    """A JSON value that must be a list of objects. Raises `MalformedWebhook`."""
    if not isinstance(value, list):
        raise MalformedWebhook
    return [as_object(item) for item in value]


def as_payload(value: object) -> bytes:
    """A part of a body, encoded as JSON."""
    return to_json(value, inf_nan_mode="null")  # JSON has no infinity, but may have 1e999


def read_form(encoded: str | bytes) -> Sequence[tuple[str, str]] | None:
    """The fields of a form or query, in order; None if it is malformed or has too many."""
    try:
        text = encoded if isinstance(encoded, str) else encoded.decode()
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError:
        return None


def query_of(request: WebhookRequest) -> Mapping[str, str]:
    """The query of the called URL without repeated parameters, which are ambiguous."""
    fields = read_form(request.url.partition("#")[0].partition("?")[2]) or ()
    names = [name for name, _ in fields]
    return {name: value for name, value in fields if names.count(name) == 1}


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
        octets = part.encode() if isinstance(part, str) else part
        total.update(b"%d:" % len(octets) + octets)
    return f"sha256-{total.hexdigest()}"


def build_event(
    fields: object,
    payload: bytes | None = None,
    *,
    type_path: str,
    id_path: str | None = None,
    account_path: str | None = None,
    reports_grant_end: frozenset[str] = frozenset(),
) -> WebhookEvent:
    """An event whose id, type and account are at dotted paths in `fields`.

    `payload` is the fields as JSON if None. `type_path` may be several paths separated by "+". Without an id, a digest
    of the payload is the id. `reports_grant_end` are the types that revoke our access.
    """
    payload = as_payload(fields) if payload is None else payload
    event_type = ".".join(text_at(fields, path) or UNKNOWN for path in type_path.split("+"))
    return WebhookEvent(
        event_id=(id_path and text_at(fields, id_path)) or digest(payload),
        event_type=event_type,
        account_id=text_at(fields, account_path) if account_path else None,
        payload=payload,
        reports_grant_end=event_type in reports_grant_end,
    )


def received_events(items: object, **paths: str) -> ReceivedWebhook:
    """The events in a list, one for each element; `paths` as for `build_event`. Raises `MalformedWebhook`.

    An element that is no object is an event of an unknown type: it does not cost the others of its batch.
    """
    if not isinstance(items, list) or (items and not any(isinstance(one, dict) for one in items)):
        raise MalformedWebhook
    return ReceivedWebhook(EventBatch(items, partial(build_event, **paths)))  # type: ignore[arg-type]


# --- handshakes


def text_handshake(text: str) -> ReceivedWebhook:
    """A response that echoes a text of an unsigned request, with headers that keep a browser from interpreting it."""
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return ReceivedWebhook(response=WebhookResponse(headers=headers, body=text.encode(), is_verified=False))


def json_handshake(value: Mapping[str, str]) -> ReceivedWebhook:
    """A response with a JSON object."""
    return ReceivedWebhook(response=WebhookResponse(headers={"Content-Type": "application/json"}, body=to_json(value)))
