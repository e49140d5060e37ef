"""Reading the bodies of verified requests, and naming what they bring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl

from pydantic_core import from_json, to_json

from integration_server.domain.webhooks import WebhookEvent, WebhookRequest, WebhookResponse
from integration_server.providers.lenient_json import text_at
from integration_server.providers.webhooks.scheme import MalformedWebhook
from integration_server.providers.webhooks.verification import header_values

UNKNOWN = "unknown"
"""The type of an event that does not say what it is."""

_MAX_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """A request that is known to be the provider's, by which secret, and when it came."""

    request: WebhookRequest
    secret: str
    now: datetime


# --- bodies


def read_json(body: bytes) -> Any:  # noqa: ANN401  # whatever the provider sent
    """The JSON in a body. Raises `MalformedWebhook`."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:  # not chained: it quotes what it could not read
        raise MalformedWebhook from None


def json_object(body: bytes) -> Mapping[str, Any]:
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
    """A part of a body, as JSON by itself."""
    return to_json(value, inf_nan_mode="null")  # JSON has no infinity, but may have 1e999


def read_form(text: str) -> Sequence[tuple[str, str]] | None:
    """The fields of a form or a query, in their order; None if it is none, or has more than anybody sends."""
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
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


def header_text(request: WebhookRequest, name: str) -> str | None:
    """What a header says, if it says it once and fit to store."""
    values = header_values(request, name)
    return text_at([value.decode("ascii", errors="ignore") for value in values], "0") if len(values) == 1 else None


# --- events


def digest(*parts: bytes | str) -> str:
    """An id for what has none: the same for the same parts."""
    total = sha256()
    for part in parts:
        octets = part.encode() if isinstance(part, str) else part
        total.update(b"%d:" % len(octets) + octets)
    return f"sha256-{total.hexdigest()}"


def build_event(
    fields: Mapping[str, Any],
    payload: bytes,
    *,
    id_path: str,
    type_path: str,
    account_path: str | None = None,
    ends_grant: frozenset[str] = frozenset(),
) -> WebhookEvent:
    """An event that says itself what it is, at dotted paths. `ends_grant` are the types that take our access back."""
    event_type = text_at(fields, type_path) or UNKNOWN
    return WebhookEvent(
        event_id=text_at(fields, id_path) or digest(payload),
        event_type=event_type,
        account_id=text_at(fields, account_path) if account_path else None,
        payload=payload,
        ends_grant=event_type in ends_grant,
    )


# --- answers


def text_response(text: str) -> WebhookResponse:
    """A text that came with the request, said back so that no browser takes it for anything else."""
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return WebhookResponse(headers=headers, body=text.encode())


def json_response(value: Mapping[str, str]) -> WebhookResponse:
    """A JSON object."""
    return WebhookResponse(headers={"Content-Type": "application/json"}, body=to_json(value))
