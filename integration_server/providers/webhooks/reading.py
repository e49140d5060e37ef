"""Reading the bodies of verified requests, and naming what they bring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl

from pydantic_core import from_json, to_json

from integration_server.domain.webhooks import WebhookAnswer, WebhookEvent, WebhookRequest
from integration_server.providers.json_answers import text_at
from integration_server.providers.webhooks.checking import headers_named
from integration_server.providers.webhooks.scheme import WebhookUnreadable

UNKNOWN = "unknown"
"""The type of an event that does not say what it is."""

_MOST_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class Verified:
    """A request that is known to be the provider's, by which secret, and when it came."""

    request: WebhookRequest
    secret: str
    now: datetime


# --- bodies


def read_json(body: bytes) -> Any:  # noqa: ANN401  # whatever the provider sent
    """The JSON in a body. Raises `WebhookUnreadable`."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:  # not chained: it quotes what it could not read
        raise WebhookUnreadable from None


def json_object(body: bytes) -> Mapping[str, Any]:
    """The JSON object in a body. Raises `WebhookUnreadable`."""
    return as_object(read_json(body))


def as_object(value: object) -> Mapping[str, Any]:
    """A JSON value that must be an object. Raises `WebhookUnreadable`."""
    if not isinstance(value, dict):
        raise WebhookUnreadable
    return value


def as_objects(value: object) -> Sequence[Mapping[str, Any]]:
    """A JSON value that must be a list of objects. Raises `WebhookUnreadable`."""
    if not isinstance(value, list):
        raise WebhookUnreadable
    return [as_object(item) for item in value]


def as_payload(value: object) -> bytes:
    """A part of a body, as JSON by itself."""
    return to_json(value, inf_nan_mode="null")  # JSON has no infinity, but may have 1e999


def read_form(text: str) -> Sequence[tuple[str, str]] | None:
    """The fields of a form or a query, in their order; None if it is none, or has more than anybody sends."""
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        return None


def form_of(body: bytes) -> Sequence[tuple[str, str]] | None:
    """The fields of a body that is a form."""
    try:
        return read_form(body.decode())
    except UnicodeDecodeError:
        return None


def query_of(request: WebhookRequest) -> Mapping[str, str]:
    """The query that was called, less what is repeated in it: of two, nobody knows which one is meant."""
    fields = read_form(request.url.partition("#")[0].partition("?")[2]) or ()
    names = [name for name, _ in fields]
    return {name: value for name, value in fields if names.count(name) == 1}


# --- what is beside the body, unsigned


def said_by_header(request: WebhookRequest, name: str) -> str | None:
    """What a header says, if it says it once and fit to store."""
    values = headers_named(request, name)
    return text_at([value.decode("ascii", errors="ignore") for value in values], "0") if len(values) == 1 else None


# --- events


def digest(*parts: bytes | str) -> str:
    """An id for what has none: the same for the same parts."""
    total = sha256()
    for part in parts:
        octets = part.encode() if isinstance(part, str) else part
        total.update(b"%d:" % len(octets) + octets)
    return f"sha256-{total.hexdigest()}"


def event_of(
    fields: Mapping[str, Any],
    payload: bytes,
    *,
    id_at: str,
    type_at: str,
    account_at: str | None = None,
    ends_grant: frozenset[str] = frozenset(),
) -> WebhookEvent:
    """An event that says itself what it is, at dotted paths. `ends_grant` are the types that take our access back."""
    event_type = text_at(fields, type_at) or UNKNOWN
    return WebhookEvent(
        event_id=text_at(fields, id_at) or digest(payload),
        event_type=event_type,
        account_id=text_at(fields, account_at) if account_at else None,
        payload=payload,
        ends_grant=event_type in ends_grant,
    )


# --- answers


def plain_text(text: str) -> WebhookAnswer:
    """A text that came with the request, said back so that no browser takes it for anything else."""
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return WebhookAnswer(headers=headers, body=text.encode())


def json_text(value: Mapping[str, str]) -> WebhookAnswer:
    """A JSON object."""
    return WebhookAnswer(headers={"Content-Type": "application/json"}, body=to_json(value))
