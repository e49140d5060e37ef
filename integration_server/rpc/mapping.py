"""Maps between protobuf messages and domain values.

`decode_*` functions check a request's field and convert it; each `InvalidField` that they raise names the field.
`encode_*` functions convert domain values to messages, and decide nothing.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache, partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import RetryInfo

from integration_server.domain.credentials import AuthMethod, OAuthTokens
from integration_server.domain.errors import InvalidField
from integration_server.domain.health import HealthCheck
from integration_server.domain.integration import Integration, IntegrationId, Status, UserId
from integration_server.domain.oauth_client import OAUTH_CLIENT_NAME
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.domain.revocation import RevocationState
from integration_server.domain.text import control_character_problem
from integration_server.domain.webhooks import WebhookRequest, WebhookResponse
from integration_server.service.credentials.credential_service import TokenState, UsableCredentials
from integration_server.service.events.event_stream import StreamItem
from integration_server.service.integrations.ports import IntegrationUpdate
from integration_server.service.provider_port import DeclaredField, Provider
from integrations.v1 import credentials_pb2, event_pb2, integration_pb2, webhook_pb2
from integrations.v1 import integration_service_pb2 as pb

# Lengths are in characters.
MAX_USER_ID_LENGTH = 128
MAX_NAME_LENGTH = MAX_IDEMPOTENCY_KEY_LENGTH = 255
MAX_KEY_LENGTH = 4096
MAX_SECRET_FIELD_LENGTH = 8192  # the file of a service account has some 2,400 characters
MAX_SECRET_FIELDS = 16  # the most that a known provider has is four
MAX_URL_LENGTH = MAX_PATH_LENGTH = 2048
MAX_PARAMETER_LENGTH = 8192  # of a callback: some providers' authorization codes have 2,000 characters
MAX_WEBHOOK_URL_LENGTH = 16 * 1024
MAX_CONSUMER_LENGTH = MAX_API_LENGTH = 64
MAX_METHOD_LENGTH = 16
MAX_ACTION_LENGTH = 32  # of the column in the audit log
MAX_WEBHOOK_HEADERS = 200
MAX_CONFIG_BYTES = 64 * 1024
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 200
MAX_CHECK_PAGE_SIZE = 50  # each row is a call to a provider, eight at a time, and all have ten seconds
MAX_CALLERS = 100  # services that one policy file names
MAX_SCOPES = MAX_HEADERS = MAX_PARAMETERS = 100
MAX_DURATION_SECONDS, MAX_NANOS = 315_576_000_000, 999_999_999  # as google.protobuf.Duration defines

_UPDATABLE = frozenset({"name", "config", "is_active"})

# RFC 6749 §3.3: a scope consists of visible ASCII characters other than quote and backslash.
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")

_CONTROLS_BUT_NUL = "".join(map(chr, (*range(1, 0x20), *range(0x7F, 0xA0))))

# White space, and characters without width, which text copied from web pages and documents has at its ends.
_PASTED = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u2060\ufeff"

E = TypeVar("E", bound=Enum)
M = TypeVar("M", bound=Message)
T = TypeVar("T")


# --- requests --------------------------------------------------------------------------------------------------------


def decode_text(field: str, value: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Return an optional name, identifier or URL. It has no control characters."""
    return _checked(field, value, max_length, allowed="")


def decode_content(field: str, value: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Return an optional text of any content: of several lines, or as a provider sends it. It has no NUL.

    PostgreSQL cannot store that one character.
    """
    return _checked(field, value, max_length, allowed=_CONTROLS_BUT_NUL)


def _checked(field: str, value: str, max_length: int, allowed: str) -> str:
    if len(value) > max_length:
        raise InvalidField(field, f"has {len(value)} characters; the maximum is {max_length}")
    if problem := control_character_problem(value, allowed):
        raise InvalidField(field, problem)
    return value


def decode_required_text(field: str, value: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Return a text that is not empty."""
    if not value:
        raise InvalidField(field, "is required")
    return decode_text(field, value, max_length)


def decode_user_id(value: str) -> UserId:
    """Return the user that a call concerns."""
    return UserId(decode_required_text("user_id", value, MAX_USER_ID_LENGTH))


def decode_integration_id(value: int) -> IntegrationId:
    """Return the id of an integration."""
    if value == 0:
        raise InvalidField("integration_id", "is required")
    return decode_optional_integration_id(value)


def decode_optional_integration_id(value: int) -> IntegrationId:
    """Return the id of an integration, or 0."""
    if value < 0:
        raise InvalidField("integration_id", "is negative")
    return IntegrationId(value)


def decode_target(request: Any) -> tuple[IntegrationId, UserId]:  # noqa: ANN401  # a request with these two fields
    """Return the integration and the user that a request names."""
    return decode_integration_id(request.integration_id), decode_user_id(request.user_id)


def decode_page(
    request: Any,  # noqa: ANN401  # a request with these two fields
    max_page_size: int = MAX_PAGE_SIZE,
    *,
    default: int = DEFAULT_PAGE_SIZE,
) -> tuple[int, str]:
    """Return the page size (the default for 0, at most `max_page_size`) and the page token of a request."""
    if request.page_size < 0:
        raise InvalidField("page_size", "is negative")
    page_size = min(request.page_size or default, max_page_size)
    return page_size, decode_text("page_token", request.page_token, MAX_PARAMETER_LENGTH)


def decode_matching(
    field: str, value: str, pattern: re.Pattern[str], problem: str, max_length: int = MAX_NAME_LENGTH
) -> str:
    """Return a text that matches the pattern as a whole."""
    if not pattern.fullmatch(decode_content(field, value, max_length)):
        raise InvalidField(field, problem)
    return value


def decode_key(field: str, value: str, max_length: int = MAX_KEY_LENGTH) -> str:
    """Return a key or secret without what was pasted with it. Its type says which characters it may have."""
    return decode_content(field, value, max_length).strip(_PASTED)


def decode_secret_fields(values: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets that a type declares, without what was pasted with them. Files have several lines."""
    names = [decode_text("secret_fields", name, MAX_NAME_LENGTH) for name in values]
    require_at_most("secret_fields", names, MAX_SECRET_FIELDS)
    return {
        name: decode_content(f"secret_fields.{name}", values[name], MAX_SECRET_FIELD_LENGTH).strip(_PASTED)
        for name in names
    }


def decode_oauth_client(field: str, value: str) -> str:
    """Return the name of an OAuth client, or an empty text for the operator's own."""
    if not value:
        return value
    problem = "must be letters, digits, '.', '_' and '-', at most 64, of which the first is a letter or digit"
    return decode_matching(field, value, OAUTH_CLIENT_NAME, problem)


def require_at_most(field: str, values: Sequence[T], max_count: int) -> Sequence[T]:
    """Return a repeated field that is not too long."""
    if len(values) > max_count:
        raise InvalidField(field, f"has {len(values)} entries; the maximum is {max_count}")
    return values


def decode_scopes(field: str, values: Sequence[str]) -> tuple[str, ...]:
    """Return scopes that have the syntax of RFC 6749 §3.3."""
    problem = "has characters that a scope cannot have (RFC 6749 section 3.3)"
    return tuple(
        decode_matching(f"{field}[{index}]", decode_required_text(f"{field}[{index}]", scope), _SCOPE, problem)
        for index, scope in enumerate(require_at_most(field, values, MAX_SCOPES))
    )


def decode_config(value: Struct) -> dict[str, Any]:
    """Return a config that every database can store as JSON."""
    try:
        config = MessageToDict(value)
        as_json = json.dumps(config, ensure_ascii=False, allow_nan=False)
    except (SerializeToJsonError, ValueError):
        raise InvalidField("config", "has a number that JSON cannot have (NaN or infinity)") from None
    size = len(as_json.encode())
    if size > MAX_CONFIG_BYTES:
        raise InvalidField("config", f"has {size} bytes as JSON; the maximum is {MAX_CONFIG_BYTES}")
    if "\\u0000" in as_json.replace("\\\\", ""):
        raise InvalidField("config", "contains U+0000 (control character)")
    return config


def decode_query(field: str, value: str) -> dict[str, str]:
    """Return the parameters of a URL's query; of a repeated one, the last."""
    parameters = parse_qsl(decode_content(field, value, 2 * MAX_PARAMETER_LENGTH))
    for part in (part for parameter in parameters for part in parameter):
        decode_content(field, part, MAX_PARAMETER_LENGTH)  # percent-encoding may have hidden a NUL
    return dict(parameters)


def decode_duration(field: str, request: Message) -> timedelta | None:
    """Return the duration of 0 or more in a request's field, or None if the field is unset."""
    if not request.HasField(field):
        return None
    value: Duration = getattr(request, field)
    if value.seconds < 0 or value.nanos < 0:
        raise InvalidField(field, "is negative")
    if value.seconds > MAX_DURATION_SECONDS or value.nanos > MAX_NANOS:
        raise InvalidField(field, "is out of range")
    return value.ToTimedelta()


def decode_time(message: Message, name: str, parent: str = "") -> datetime | None:
    """Return the time in the field `name` of a message at `parent`; None if it is unset."""
    if not message.HasField(name):
        return None
    try:
        moment: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidField(f"{parent}{name}", "is not a time between the years 1 and 9999") from None
    return moment


def decode_enum(target: type[E], message: Message, name: str, parent: str = "") -> E | None:
    """Return the member of `target` for the enum field `name` of a message at `parent`; None if it is unset."""
    field: Any = message.DESCRIPTOR.fields_by_name[name]
    if not (value := getattr(message, name)):
        return None
    try:
        return target[field.enum_type.values_by_number[value].name.removeprefix(_enum_prefix(field))]
    except KeyError:
        raise InvalidField(f"{parent}{name}", "is not a known value") from None


def decode_through_number(value: int) -> int:
    """Return the number of a webhook event."""
    if value <= 0:
        raise InvalidField("through_number", "is required, and positive")
    return value


def decode_update_mask(mask: FieldMask, updatable: frozenset[str]) -> frozenset[str]:
    """Return the names of the fields to set."""
    for path in set(mask.paths) - updatable:
        raise InvalidField("update_mask", f"can name {', '.join(sorted(updatable))}; not {path[:64]!r}")
    return frozenset(mask.paths)


def decode_update(request: pb.UpdateIntegrationRequest) -> IntegrationUpdate:
    """Return the update of an integration: the masked fields, absent ones cleared; without a mask, the present ones."""
    masked = decode_update_mask(request.update_mask, _UPDATABLE)
    updated = masked or {field for field in _UPDATABLE if request.HasField(field)}
    if "is_active" in updated and not request.HasField("is_active"):
        raise InvalidField("is_active", "cannot be cleared; set it, or remove it from update_mask")
    return IntegrationUpdate(
        name=decode_text("name", request.name) if "name" in updated else None,
        config=decode_config(request.config) if "config" in updated else None,
        is_active=request.is_active if "is_active" in updated else None,
    )


def decode_api_request(request: pb.CallProviderRequest | pb.StreamProviderRequest) -> ApiRequest:
    """Return a request to a provider's API within its size limits; the use case checks what it contains."""
    return ApiRequest(
        method=decode_required_text("method", request.method, MAX_METHOD_LENGTH),
        path=decode_required_text("path", request.path, MAX_PATH_LENGTH),
        query=_decode_pairs("query", request.query, MAX_PARAMETERS),
        headers=_decode_pairs("headers", request.headers, MAX_HEADERS),
        body=request.body,
        idempotency_key=decode_text("idempotency_key", request.idempotency_key, MAX_IDEMPOTENCY_KEY_LENGTH),
        api=decode_text("api", request.api, MAX_API_LENGTH),
        sub_account=decode_text("sub_account", request.sub_account, MAX_API_LENGTH),
    )


def decode_content_length(request: pb.StreamProviderRequest) -> int | None:
    """Return the announced length of a body; None if it is not known."""
    if not request.HasField("content_length"):
        return None
    if request.content_length < 0:
        raise InvalidField("content_length", "is negative")
    return request.content_length


def _decode_pairs(
    field: str, values: Sequence[pb.HttpHeader | pb.QueryParameter], max_count: int
) -> tuple[tuple[str, str], ...]:
    return tuple(
        (
            decode_required_text(f"{field}[{index}].name", value.name),
            decode_content(f"{field}[{index}].value", value.value, MAX_PARAMETER_LENGTH),
        )
        for index, value in enumerate(require_at_most(field, values, max_count))
    )


def decode_webhook_request(request: pb.ReceiveWebhookRequest) -> WebhookRequest:
    """Return a request to a webhook endpoint."""
    headers = require_at_most("headers", request.headers, MAX_WEBHOOK_HEADERS)
    return WebhookRequest(
        method=decode_required_text("method", request.method, MAX_METHOD_LENGTH),
        url=decode_required_text("url", request.url, MAX_WEBHOOK_URL_LENGTH),
        headers=tuple((header.name, header.value) for header in headers),
        body=request.body,
    )


# --- responses -------------------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_STATUSES = {status: f"STATUS_{status.name}" for status in Status}
_AUTH_METHODS = {auth_method: f"AUTH_METHOD_{auth_method.name}" for auth_method in AuthMethod}

_DISCONNECT_MESSAGES = {
    RevocationState.REVOKED: "Disconnected",
    RevocationState.PENDING: "Disconnected here; the access is not revoked at the provider yet",
    RevocationState.NOT_SUPPORTED: "Disconnected here; the provider has no way to revoke the access from here",
    RevocationState.GRANT_SHARED: (
        "Disconnected here; the access is kept at the provider, since another of your integrations uses it"
    ),
    RevocationState.NOTHING_TO_REVOKE: "Disconnected",
}


def encode(message_class: type[M], source: object, **field_values: Any) -> M:  # noqa: ANN401  # values of any field
    """Return a message with the given field values. Other fields have the value of the attribute with the same name.

    A member of an enum becomes the value with its name, and a dataclass becomes a message. None stays unset. Raises
    `ValueError` for a value of a field that the message lacks.
    """
    encoders = _encoders(message_class)  # type: ignore[arg-type]  # a class is hashable
    if not field_values.keys() <= encoders.keys():
        raise ValueError(f"{message_class.__name__} has no field {min(field_values.keys() - encoders.keys())}")
    values = {}
    for name, (encode_value, is_default_unset) in encoders.items():
        value = field_values[name] if name in field_values else getattr(source, name)
        if value or not (value is None or is_default_unset):  # protobuf takes time for each value
            values[name] = value if encode_value is None else encode_value(value)
    return message_class(**values)


_Encode = Callable[[Any], Any]


@lru_cache(maxsize=256)
def _encoders(message_class: type[Message]) -> Mapping[str, tuple[_Encode | None, bool]]:
    """Return the fields of a message with the conversions of their values; None where the value itself is right.

    The last says whether a field that has the default value is the same as one that is not set.
    Cached, because this depends on the contract only, and reading descriptors takes longer than converting values.
    """
    fields: Mapping[str, Any] = message_class.DESCRIPTOR.fields_by_name
    return {name: (_encoder(field), not field.has_presence) for name, field in fields.items()}


def _encoder(field: Any) -> _Encode | None:  # noqa: ANN401  # as `_enum_prefix`
    if field.enum_type is not None:
        encode_one: _Encode = partial(_encode_member, _enum_prefix(field))
    elif field.message_type is None or field.message_type.GetOptions().map_entry:
        return None
    elif field.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
        encode_one = encode_time
    else:
        encode_one = partial(_encode_message, field)
    return (lambda values: [encode_one(value) for value in values]) if field.is_repeated else encode_one


def encode_time(value: Any) -> Any:  # noqa: ANN401  # what the constructor of a message takes
    """Return a time as the fields of a Timestamp, which protobuf converts three times as fast as a datetime."""
    if not isinstance(value, datetime):
        return value
    since_epoch = value - _EPOCH
    return {"seconds": since_epoch.days * 86_400 + since_epoch.seconds, "nanos": since_epoch.microseconds * 1000}


@lru_cache(maxsize=1024, typed=True)  # of each member; its name takes longer to read
def _encode_member(prefix: str, value: Any) -> Any:  # noqa: ANN401  # a member, or the value itself
    return prefix + value.name if isinstance(value, Enum) else value


def _encode_message(field: Any, value: Any) -> Any:  # noqa: ANN401  # as `_enum_prefix`; a dataclass, or the value itself
    return encode(GetMessageClass(field.message_type), value) if is_dataclass(value) else value


def _enum_prefix(field: Any) -> str:  # noqa: ANN401  # FieldDescriptor, which protoc and upb type differently
    prefix: str = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
    return prefix


def encode_integration(integration: Integration, now: datetime) -> integration_pb2.Integration:
    """Convert an integration, with its status at `now`. Not by `encode`, because pages have hundreds of them."""
    failure = integration.last_error
    return integration_pb2.Integration(
        integration_id=integration.integration_id,
        user_id=integration.user_id,
        integration_type=integration.integration_type,
        name=integration.name,
        config=integration.config or None,
        is_active=integration.is_active,
        status=_STATUSES[integration.status(now)],
        auth_method=_AUTH_METHODS[integration.auth_method],
        scopes=integration.scopes,
        missing_scopes=integration.missing_scopes,
        account_id=integration.account_id,
        account_label=integration.account_label,
        is_connected=integration.is_connected,
        last_error=None if failure is None else encode(integration_pb2.LastError, failure, error_time=failure.time),
        error_count=integration.error_count,
        last_health_check=encode_time(integration.last_health_check),
        access_token_expire_time=encode_time(integration.access_token_expire_time),
        refresh_token_expire_time=encode_time(integration.refresh_token_expire_time),
        create_time=encode_time(integration.create_time),
        update_time=encode_time(integration.update_time),
        connect_time=encode_time(integration.connect_time),
        oauth_client=integration.oauth_client,
    )


def encode_disconnect_response(
    integration_id: IntegrationId, state: RevocationState
) -> pb.DisconnectIntegrationResponse:
    """Convert the result of a disconnection."""
    return pb.DisconnectIntegrationResponse(
        success=True,
        message=_DISCONNECT_MESSAGES[state],
        integration_id=integration_id,
        provider_revoked=state is RevocationState.REVOKED,
        revocation_state=f"REVOCATION_STATE_{state.name}",
    )


def encode_health_check(check: HealthCheck) -> integration_pb2.HealthCheck:
    """Convert a health check."""
    return encode(
        integration_pb2.HealthCheck,
        check,
        integration_id=check.integration.integration_id,
        integration_type=check.integration.integration_type,
        name=check.integration.name,
    )


def encode_integration_type(provider: Provider) -> integration_pb2.IntegrationTypeInfo:
    """Convert a provider to the integration type that it implements."""
    configured = not provider.missing_settings
    return encode(
        integration_pb2.IntegrationTypeInfo,
        provider,
        scopes=provider.required_scopes,
        configured=configured,
        config_fields=[_encode_field(name, config_field) for name, config_field in provider.config_fields.items()],
        secret_fields=[_encode_field(name, secret_field) for name, secret_field in provider.secret_fields.items()],
    )


def _encode_field(name: str, declared: DeclaredField) -> integration_pb2.DeclaredField:
    title = declared.title or name.replace("_", " ").capitalize()
    required = declared.required and declared.default is None
    return encode(integration_pb2.DeclaredField, declared, name=name, title=title, required=required)


def encode_credentials(usable: UsableCredentials) -> credentials_pb2.Credentials:
    """Convert credentials."""
    credentials = usable.credentials
    secrets: dict[str, Any]
    if isinstance(credentials, OAuthTokens):
        expire_time = credentials.expire_time and encode_time(credentials.expire_time)
        secrets = {"bearer_token": credentials.access_token, "expire_time": expire_time}
    else:
        secrets = {"api_key": {"api_key": credentials.api_key, "api_secret": credentials.api_secret}}
    message = credentials_pb2.Credentials(scopes=usable.scopes, **secrets)
    # The constructor of a message takes several times as long for a map.
    for name, value in usable.request_auth.headers.items():
        message.headers[name] = value
    for name, value in usable.request_auth.query_params.items():
        message.query_params[name] = value
    return message


def encode_token_state(token: TokenState) -> pb.RefreshTokenResponse:
    """The outcome of a refresh that did not fail."""
    wait, message = token.retry_after, "Refreshed" if token.refreshed else "Not refreshed: the token is still valid"
    if wait is not None:
        message = f"Not refreshed: the last refresh is too recent; wait {math.ceil(wait.total_seconds())} s"
    return encode(
        pb.RefreshTokenResponse,
        token,
        success=True,
        message=message,
        access_token_expire_time=token.expire_time,
        retry_info=None if wait is None else RetryInfo(retry_delay=wait),
    )


def encode_webhook_response(response: WebhookResponse) -> pb.ReceiveWebhookResponse:
    """Convert the HTTP response to a webhook request."""
    headers = [webhook_pb2.WebhookHeader(name=name, value=text.encode()) for name, text in response.headers.items()]
    return pb.ReceiveWebhookResponse(
        status_code=response.status, headers=headers, body=response.body, verified=response.is_verified
    )


def encode_stream_item(item: StreamItem) -> pb.WatchIntegrationsResponse:
    """Convert an item of the event stream."""
    if item.event is None:
        return pb.WatchIntegrationsResponse(cursor=item.cursor)
    number = item.event.webhook_number
    event = encode(event_pb2.IntegrationEvent, item.event, webhook_event_number=number)
    return pb.WatchIntegrationsResponse(cursor=item.cursor, event=event)


def encode_stream_head(response: ApiResponse) -> pb.StreamProviderResponse:
    """Convert the status and the headers of a streamed response."""
    return pb.StreamProviderResponse(
        status_code=response.status,
        headers=[pb.HttpHeader(name=name, value=text) for name, text in response.headers],
    )


def encode_api_response(response: ApiResponse) -> pb.CallProviderResponse:
    """Convert the response of a provider's API."""
    return pb.CallProviderResponse(
        status_code=response.status,
        headers=[pb.HttpHeader(name=name, value=text) for name, text in response.headers],
        body=response.body,
    )
