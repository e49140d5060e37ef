"""What comes in: each field checked, and turned into the domain's words. Every refusal names its field."""

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.struct_pb2 import Struct

from integration_server.domain.errors import InvalidField
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.proxy_messages import ApiRequest
from integration_server.domain.webhooks import WebhookRequest
from integrations.v1 import integration_service_pb2 as pb

MAX_USER_ID_LENGTH = 128
MAX_NAME_LENGTH = 255
MAX_SCOPE_LENGTH = 255
MAX_KEY_LENGTH = 4096
MAX_URL_LENGTH = 2048
MAX_PARAMETER_LENGTH = 8192  # of a callback; authorization codes of some providers run to two thousand characters
MAX_WEBHOOK_URL_LENGTH = 16 * 1024
MAX_CONSUMER_LENGTH = 64
MAX_METHOD_LENGTH = 16
MAX_SCOPES = 100
MAX_WEBHOOK_HEADERS = 200
MAX_CONFIG_BYTES = 64 * 1024
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 200
MAX_PATH_LENGTH = 2048
MAX_IDEMPOTENCY_KEY_LENGTH = 255
MAX_HEADERS = MAX_PARAMETERS = 100

# RFC 6749 §3.3: a scope is of visible ASCII characters other than quote and backslash.
_SCOPE_CHARACTERS = frozenset(map(chr, range(0x21, 0x7F))) - {'"', "\\"}
_HEADER_CHARACTERS = frozenset(map(chr, range(0x20, 0x7F)))


def text(field: str, value: str, max_length: int) -> str:
    """An optional text: bounded, and without NUL, which PostgreSQL cannot store."""
    if len(value) > max_length:
        raise InvalidField(field, f"has {len(value)} characters; {max_length} is the most")
    if "\0" in value:
        raise InvalidField(field, "has a NUL character")
    return value


def required_text(field: str, value: str, max_length: int) -> str:
    """A text that must be there."""
    if not value:
        raise InvalidField(field, "is required")
    return text(field, value, max_length)


def user_id(value: str) -> UserId:
    """The user that a call is for."""
    return UserId(required_text("user_id", value, MAX_USER_ID_LENGTH))


def integration_type(value: str) -> str:
    """A type that must be named."""
    return required_text("integration_type", value, MAX_NAME_LENGTH)


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
    if not _HEADER_CHARACTERS.issuperset(text(field, value, MAX_KEY_LENGTH)):
        raise InvalidField(field, "has characters that a key cannot have")
    return value


def scopes(field: str, values: Iterable[str]) -> tuple[str, ...]:
    """Scopes, each as RFC 6749 §3.3 spells them."""
    checked = tuple(values)
    if len(checked) > MAX_SCOPES:
        raise InvalidField(field, f"has {len(checked)} scopes; {MAX_SCOPES} is the most")
    for index, scope in enumerate(checked):
        required_text(f"{field}[{index}]", scope, MAX_SCOPE_LENGTH)
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
    if size > MAX_CONFIG_BYTES:
        raise InvalidField("config", f"is {size} bytes as JSON; {MAX_CONFIG_BYTES} is the most")
    if "\\u0000" in as_json.replace("\\\\", ""):
        raise InvalidField("config", "has a NUL character")
    return decoded


def query(field: str, value: str) -> dict[str, str]:
    """The parameters of a URL's query; of one given more than once, the last."""
    parameters = parse_qsl(text(field, value, 2 * MAX_PARAMETER_LENGTH))
    for part in (part for parameter in parameters for part in parameter):
        text(field, part, MAX_PARAMETER_LENGTH)  # what was percent-encoded is to be seen only now
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
        path=required_text("path", request.path, MAX_PATH_LENGTH),
        query=_pairs("query", request.query, MAX_PARAMETERS),
        headers=_pairs("headers", request.headers, MAX_HEADERS),
        body=request.body,
        idempotency_key=text("idempotency_key", request.idempotency_key, MAX_IDEMPOTENCY_KEY_LENGTH),
    )


def _pairs(
    field: str, values: Sequence[pb.HttpHeader | pb.QueryParameter], max_count: int
) -> tuple[tuple[str, str], ...]:
    if len(values) > max_count:
        raise InvalidField(field, f"has {len(values)} entries; {max_count} is the most")
    return tuple(
        (
            required_text(f"{field}[{index}].name", value.name, MAX_NAME_LENGTH),
            text(f"{field}[{index}].value", value.value, MAX_PARAMETER_LENGTH),
        )
        for index, value in enumerate(values)
    )


def page_size(value: int) -> int:
    """How many to list: 0 means the usual number, and more than the most means the most."""
    if value < 0:
        raise InvalidField("page_size", "is negative")
    return min(value or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def through_number(value: int) -> int:
    """The number of a webhook event."""
    if value <= 0:
        raise InvalidField("through_number", "is required, and positive")
    return value


def webhook(request: pb.ReceiveWebhookRequest) -> WebhookRequest:
    """A request as it came to a webhook address."""
    if len(request.headers) > MAX_WEBHOOK_HEADERS:
        raise InvalidField("headers", f"has {len(request.headers)} headers; {MAX_WEBHOOK_HEADERS} is the most")
    return WebhookRequest(
        method=required_text("method", request.method, MAX_METHOD_LENGTH),
        url=required_text("url", request.url, MAX_WEBHOOK_URL_LENGTH),
        headers=tuple((header.name, header.value) for header in request.headers),
        body=request.body,
    )
