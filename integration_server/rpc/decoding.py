"""What comes in: each field checked, and turned into the domain's words. Every refusal names its field."""

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.struct_pb2 import Struct

from integration_server.domain.calls import ApiRequest
from integration_server.domain.errors import InvalidField
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.webhooks import WebhookRequest
from integrations.v1 import integration_service_pb2 as pb

LONGEST_USER_ID = 128
LONGEST_NAME = 255
LONGEST_SCOPE = 255
LONGEST_KEY = 4096
LONGEST_URL = 2048
LONGEST_PARAMETER = 8192  # of a callback; authorization codes of some providers run to two thousand characters
LONGEST_WEBHOOK_URL = 16 * 1024
LONGEST_CONSUMER = 64
LONGEST_METHOD = 16
MOST_SCOPES = 100
MOST_WEBHOOK_HEADERS = 200
LARGEST_CONFIG = 64 * 1024
USUAL_PAGE, LARGEST_PAGE = 50, 200
LONGEST_PATH = 2048
LONGEST_IDEMPOTENCY_KEY = 255
MOST_HEADERS = MOST_PARAMETERS = 100

# RFC 6749 §3.3: a scope is of visible ASCII characters other than quote and backslash.
_SCOPE_CHARACTERS = frozenset(map(chr, range(0x21, 0x7F))) - {'"', "\\"}
_HEADER_CHARACTERS = frozenset(map(chr, range(0x20, 0x7F)))


def text(field: str, value: str, longest: int) -> str:
    """An optional text: bounded, and without NUL, which PostgreSQL cannot store."""
    if len(value) > longest:
        raise InvalidField(field, f"has {len(value)} characters; {longest} is the most")
    if "\0" in value:
        raise InvalidField(field, "has a NUL character")
    return value


def required_text(field: str, value: str, longest: int) -> str:
    """A text that must be there."""
    if not value:
        raise InvalidField(field, "is required")
    return text(field, value, longest)


def user_id(value: str) -> UserId:
    """The user that a call is for."""
    return UserId(required_text("user_id", value, LONGEST_USER_ID))


def integration_type(value: str) -> str:
    """A type that must be named."""
    return required_text("integration_type", value, LONGEST_NAME)


def integration_id(value: int) -> IntegrationId:
    """An integration that must be named."""
    if value == 0:
        raise InvalidField("integration_id", "is required")
    return optional_integration_id(value)


def optional_integration_id(value: int) -> IntegrationId:
    """An integration, or 0 for none."""
    if value < 0:
        raise InvalidField("integration_id", "is negative")
    return IntegrationId(value)


def key(field: str, value: str) -> str:
    """A key or secret; it must fit into an HTTP header."""
    if not _HEADER_CHARACTERS.issuperset(text(field, value, LONGEST_KEY)):
        raise InvalidField(field, "has characters that a key cannot have")
    return value


def scopes(field: str, values: Iterable[str]) -> tuple[str, ...]:
    """Scopes, each as RFC 6749 §3.3 spells them."""
    checked = tuple(values)
    if len(checked) > MOST_SCOPES:
        raise InvalidField(field, f"has {len(checked)} scopes; {MOST_SCOPES} is the most")
    for index, scope in enumerate(checked):
        required_text(f"{field}[{index}]", scope, LONGEST_SCOPE)
        if not _SCOPE_CHARACTERS.issuperset(scope):
            raise InvalidField(f"{field}[{index}]", "has characters that a scope cannot have (RFC 6749 section 3.3)")
    return checked


def config(value: Struct) -> dict[str, Any]:
    """A config: bounded, and storable as JSON on every database."""
    try:
        decoded = MessageToDict(value)
        as_json = json.dumps(decoded, ensure_ascii=False, allow_nan=False)
    except (SerializeToJsonError, ValueError):
        raise InvalidField("config", "has a number that JSON cannot have (NaN or infinity)") from None
    size = len(as_json.encode())
    if size > LARGEST_CONFIG:
        raise InvalidField("config", f"is {size} bytes as JSON; {LARGEST_CONFIG} is the most")
    if "\\u0000" in as_json.replace("\\\\", ""):
        raise InvalidField("config", "has a NUL character")
    return decoded


def query(field: str, value: str) -> dict[str, str]:
    """The parameters of a URL's query; of one given more than once, the last."""
    parameters = parse_qsl(text(field, value, 2 * LONGEST_PARAMETER))
    for part in (part for parameter in parameters for part in parameter):
        text(field, part, LONGEST_PARAMETER)  # what was percent-encoded is to be seen only now
    return dict(parameters)


def duration(field: str, value: Duration) -> timedelta:
    """A length of time, not negative."""
    if value.seconds < 0 or value.nanos < 0:
        raise InvalidField(field, "is negative")
    if value.seconds > 315_576_000_000 or value.nanos > 999_999_999:  # the limits of google.protobuf.Duration
        raise InvalidField(field, "is out of range")
    return value.ToTimedelta()


def api_request(request: pb.CallProviderRequest) -> ApiRequest:
    """A request to a provider's API: bounded; what it may say is for the use case to judge."""
    return ApiRequest(
        method=required_text("method", request.method, 16),
        path=required_text("path", request.path, LONGEST_PATH),
        query=_pairs("query", request.query, MOST_PARAMETERS),
        headers=_pairs("headers", request.headers, MOST_HEADERS),
        body=request.body,
        idempotency_key=text("idempotency_key", request.idempotency_key, LONGEST_IDEMPOTENCY_KEY),
    )


def _pairs(field: str, values: Sequence[pb.HttpHeader | pb.QueryParameter], most: int) -> tuple[tuple[str, str], ...]:
    if len(values) > most:
        raise InvalidField(field, f"has {len(values)} entries; {most} is the most")
    return tuple(
        (
            required_text(f"{field}[{index}].name", value.name, LONGEST_NAME),
            text(f"{field}[{index}].value", value.value, LONGEST_PARAMETER),
        )
        for index, value in enumerate(values)
    )


def page_size(value: int) -> int:
    """How many to list: 0 means the usual number, and more than the most means the most."""
    if value < 0:
        raise InvalidField("page_size", "is negative")
    return min(value or USUAL_PAGE, LARGEST_PAGE)


def event_number(value: int) -> int:
    """The number of a webhook event."""
    if value <= 0:
        raise InvalidField("number", "is required, and positive")
    return value


def webhook(request: pb.ReceiveWebhookRequest) -> WebhookRequest:
    """A request as it came to a webhook address."""
    if len(request.headers) > MOST_WEBHOOK_HEADERS:
        raise InvalidField("headers", f"has {len(request.headers)} headers; {MOST_WEBHOOK_HEADERS} is the most")
    return WebhookRequest(
        method=required_text("method", request.method, LONGEST_METHOD),
        url=required_text("url", request.url, LONGEST_WEBHOOK_URL),
        headers=tuple((header.name, header.value) for header in request.headers),
        body=request.body,
    )
