"""Maps between protobuf messages and domain values.

`decode_*` functions check a request's field and convert it; each `InvalidField` that they raise names the field.
`encode_*` functions convert domain values to messages, and decide nothing.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from integration_server.domain.credentials import AuthMethod, OAuthTokens
from integration_server.domain.errors import InvalidField
from integration_server.domain.events import IntegrationEvent
from integration_server.domain.health import ErrorRate, HealthCheck
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status, UserId
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.domain.revocation import RevocationState
from integration_server.domain.webhooks import WebhookRequest, WebhookResponse
from integration_server.service.connections.oauth_connection import ConnectionResult
from integration_server.service.credentials.credential_service import UsableCredentials
from integration_server.service.events.event_stream import StreamItem
from integration_server.service.integrations.ports import IntegrationUpdate
from integration_server.service.provider_port import Provider
from integration_server.service.webhooks.webhook_delivery import NumberedEvent
from integrations.v1 import credentials_pb2, event_pb2, integration_pb2, webhook_pb2
from integrations.v1 import integration_service_pb2 as pb

# Lengths are in characters.
MAX_USER_ID_LENGTH = 128
MAX_NAME_LENGTH = MAX_SCOPE_LENGTH = MAX_IDEMPOTENCY_KEY_LENGTH = 255
MAX_KEY_LENGTH = 4096
MAX_URL_LENGTH = MAX_PATH_LENGTH = 2048
MAX_PARAMETER_LENGTH = 8192  # of a callback: some providers' authorization codes have 2,000 characters
MAX_WEBHOOK_URL_LENGTH = 16 * 1024
MAX_CONSUMER_LENGTH = 64
MAX_METHOD_LENGTH = 16
MAX_WEBHOOK_HEADERS = 200
MAX_CONFIG_BYTES = 64 * 1024
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 200
MAX_SCOPES = MAX_HEADERS = MAX_PARAMETERS = 100
MAX_DURATION_SECONDS, MAX_NANOS = 315_576_000_000, 999_999_999  # as google.protobuf.Duration defines

_UPDATABLE = frozenset({"name", "config", "is_active"})

# RFC 6749 §3.3: a scope consists of visible ASCII characters other than quote and backslash.
_SCOPE_CHARACTERS = frozenset(map(chr, range(0x21, 0x7F))) - {'"', "\\"}
_HEADER_CHARACTERS = frozenset(map(chr, range(0x20, 0x7F)))


# --- requests --------------------------------------------------------------------------------------------------------


def decode_text(field: str, value: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Return an optional text. It has no NUL, which PostgreSQL cannot store."""
    if len(value) > max_length:
        raise InvalidField(field, f"has {len(value)} characters; the maximum is {max_length}")
    if "\0" in value:
        raise InvalidField(field, "has a NUL character")
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


def decode_page(request: Any) -> tuple[int, str]:  # noqa: ANN401  # a request with these two fields
    """Return the page size and the page token of a request."""
    page_size = decode_page_size(request.page_size)
    return page_size, decode_text("page_token", request.page_token, MAX_PARAMETER_LENGTH)


def decode_page_size(value: int, max_page_size: int = MAX_PAGE_SIZE) -> int:
    """Return a page size: the default for 0, at most `max_page_size`."""
    if value < 0:
        raise InvalidField("page_size", "is negative")
    return min(value or DEFAULT_PAGE_SIZE, max_page_size)


def decode_key(field: str, value: str) -> str:
    """Return a key or secret that fits into an HTTP header."""
    if not _HEADER_CHARACTERS.issuperset(decode_text(field, value, MAX_KEY_LENGTH)):
        raise InvalidField(field, "has characters that a key cannot have")
    return value


def decode_scopes(field: str, values: Iterable[str]) -> tuple[str, ...]:
    """Return scopes that have the syntax of RFC 6749 §3.3."""
    scopes = tuple(values)
    if len(scopes) > MAX_SCOPES:
        raise InvalidField(field, f"has {len(scopes)} scopes; the maximum is {MAX_SCOPES}")
    for index, scope in enumerate(scopes):
        decode_required_text(f"{field}[{index}]", scope, MAX_SCOPE_LENGTH)
        if not _SCOPE_CHARACTERS.issuperset(scope):
            raise InvalidField(f"{field}[{index}]", "has characters that a scope cannot have (RFC 6749 section 3.3)")
    return scopes


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
        raise InvalidField("config", "has a NUL character")
    return config


def decode_query(field: str, value: str) -> dict[str, str]:
    """Return the parameters of a URL's query; of a repeated one, the last."""
    parameters = parse_qsl(decode_text(field, value, 2 * MAX_PARAMETER_LENGTH))
    for part in (part for parameter in parameters for part in parameter):
        decode_text(field, part, MAX_PARAMETER_LENGTH)  # percent-encoding may have hidden a NUL
    return dict(parameters)


def decode_duration(field: str, value: Duration) -> timedelta:
    """Return a duration of 0 or more."""
    if value.seconds < 0 or value.nanos < 0:
        raise InvalidField(field, "is negative")
    if value.seconds > MAX_DURATION_SECONDS or value.nanos > MAX_NANOS:
        raise InvalidField(field, "is out of range")
    return value.ToTimedelta()


def decode_optional_duration(field: str, request: Any) -> timedelta | None:  # noqa: ANN401  # a request with the field
    """Return the duration in a request's field, or None if the field is unset."""
    return decode_duration(field, getattr(request, field)) if request.HasField(field) else None


def decode_through_number(value: int) -> int:
    """Return the number of a webhook event."""
    if value <= 0:
        raise InvalidField("through_number", "is required, and positive")
    return value


def decode_update(request: pb.UpdateIntegrationRequest) -> IntegrationUpdate:
    """Return the update of an integration: the masked fields, absent ones cleared; without a mask, the present ones."""
    masked = frozenset(request.update_mask.paths)
    for path in masked - _UPDATABLE:
        raise InvalidField("update_mask", f"can name {', '.join(sorted(_UPDATABLE))}; not {path[:64]!r}")
    updated = masked or {field for field in _UPDATABLE if request.HasField(field)}
    if "is_active" in updated and not request.HasField("is_active"):
        raise InvalidField("is_active", "cannot be cleared; set it, or remove it from update_mask")
    return IntegrationUpdate(
        name=decode_text("name", request.name) if "name" in updated else None,
        config=decode_config(request.config) if "config" in updated else None,
        is_active=request.is_active if "is_active" in updated else None,
    )


def decode_api_request(request: pb.CallProviderRequest) -> ApiRequest:
    """Return a request to a provider's API within its size limits; the use case checks what it contains."""
    return ApiRequest(
        method=decode_required_text("method", request.method, MAX_METHOD_LENGTH),
        path=decode_required_text("path", request.path, MAX_PATH_LENGTH),
        query=_decode_pairs("query", request.query, MAX_PARAMETERS),
        headers=_decode_pairs("headers", request.headers, MAX_HEADERS),
        body=request.body,
        idempotency_key=decode_text("idempotency_key", request.idempotency_key, MAX_IDEMPOTENCY_KEY_LENGTH),
    )


def _decode_pairs(
    field: str, values: Sequence[pb.HttpHeader | pb.QueryParameter], max_count: int
) -> tuple[tuple[str, str], ...]:
    if len(values) > max_count:
        raise InvalidField(field, f"has {len(values)} entries; the maximum is {max_count}")
    return tuple(
        (
            decode_required_text(f"{field}[{index}].name", value.name),
            decode_text(f"{field}[{index}].value", value.value, MAX_PARAMETER_LENGTH),
        )
        for index, value in enumerate(values)
    )


def decode_webhook_request(request: pb.ReceiveWebhookRequest) -> WebhookRequest:
    """Return a request to a webhook endpoint."""
    if len(request.headers) > MAX_WEBHOOK_HEADERS:
        raise InvalidField("headers", f"has {len(request.headers)} headers; the maximum is {MAX_WEBHOOK_HEADERS}")
    return WebhookRequest(
        method=decode_required_text("method", request.method, MAX_METHOD_LENGTH),
        url=decode_required_text("url", request.url, MAX_WEBHOOK_URL_LENGTH),
        headers=tuple((header.name, header.value) for header in request.headers),
        body=request.body,
    )


# --- responses -------------------------------------------------------------------------------------------------------

_DISCONNECT_MESSAGES = {
    RevocationState.REVOKED: "Disconnected",
    RevocationState.PENDING: "Disconnected here; the provider has not confirmed yet that the access is revoked",
    RevocationState.NOT_SUPPORTED: "Disconnected here; the provider has no way to revoke the access from here",
    RevocationState.GRANT_SHARED: (
        "Disconnected here; the access is kept at the provider, since another integration uses it"
    ),
    RevocationState.NOTHING_TO_REVOKE: "Disconnected",
}


def encode_timestamp(time: datetime | None) -> Timestamp | None:
    """Convert a time; None stays unset."""
    if time is None:
        return None
    encoded = Timestamp()
    encoded.FromDatetime(time)
    return encoded


def _encode_status(status: Status) -> str:
    return f"STATUS_{status.name}"


def _encode_auth_method(method: AuthMethod) -> str:
    return f"AUTH_METHOD_{method.name}"


def encode_integration(integration: Integration, now: datetime) -> integration_pb2.Integration:
    """Convert an integration, with its status at `now`."""
    encoded = integration_pb2.Integration(
        integration_id=integration.integration_id,
        user_id=integration.user_id,
        integration_type=integration.integration_type,
        name=integration.name,
        is_active=integration.is_active,
        status=_encode_status(integration.status(now)),
        auth_method=_encode_auth_method(integration.auth_method),
        scopes=integration.scopes,
        missing_scopes=integration.missing_scopes,
        account_id=integration.account_id or "",
        account_label=integration.account_label or "",
        is_connected=integration.is_connected,
        last_error=_encode_failure(integration.last_error),
        error_count=integration.error_count,
        last_health_check=encode_timestamp(integration.last_health_check),
        access_token_expire_time=encode_timestamp(integration.access_token_expire_time),
        refresh_token_expire_time=encode_timestamp(integration.refresh_token_expire_time),
        create_time=encode_timestamp(integration.create_time),
        update_time=encode_timestamp(integration.update_time),
        connect_time=encode_timestamp(integration.connect_time),
    )
    encoded.config.update(integration.config)
    return encoded


def _encode_failure(failure: Failure | None) -> integration_pb2.LastError | None:
    if failure is None:
        return None
    return integration_pb2.LastError(
        error_class=failure.error_class, error_time=encode_timestamp(failure.time), message=failure.message
    )


def encode_callback_response(result: ConnectionResult) -> pb.HandleCallbackResponse:
    """Convert the result of a callback."""
    return pb.HandleCallbackResponse(
        success=result.success,
        integration_id=result.integration_id,
        redirect_url=result.redirect_url,
        message=result.message,
        reason=result.reason,
        confirmation_token=result.confirmation_token,
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
    encoded = integration_pb2.HealthCheck(
        integration_id=check.integration.integration_id,
        integration_type=check.integration.integration_type,
        name=check.integration.name,
        status=_encode_status(check.status),
        healthy=check.healthy,
        check_time=encode_timestamp(check.check_time),
        error_class=check.error_class or "",
        message=check.message,
    )
    encoded.latency.FromTimedelta(check.latency)
    return encoded


def encode_error_rate(rate: ErrorRate) -> integration_pb2.ErrorRate:
    """Convert an error rate."""
    encoded = integration_pb2.ErrorRate(checks=rate.checks, failures=rate.failures, rate=rate.rate)
    encoded.window.FromTimedelta(rate.window)
    return encoded


def encode_integration_type(provider: Provider) -> integration_pb2.IntegrationTypeInfo:
    """Convert a provider to the integration type that it implements."""
    return integration_pb2.IntegrationTypeInfo(
        integration_type=provider.integration_type,
        display_name=provider.display_name,
        auth_method=_encode_auth_method(provider.auth_method),
        scopes=provider.required_scopes,
        required_fields=provider.required_fields,
        configured=not provider.missing_settings,
        missing_settings=provider.missing_settings,
        aliases=provider.aliases,
    )


def encode_credentials(usable: UsableCredentials) -> credentials_pb2.Credentials:
    """Convert credentials."""
    encoded = credentials_pb2.Credentials(
        scopes=usable.scopes,
        headers=usable.request_auth.headers,
        query_params=usable.request_auth.query_params,
    )
    if isinstance(usable.credentials, OAuthTokens):
        encoded.bearer_token = usable.credentials.access_token
        if usable.credentials.expire_time is not None:
            encoded.expire_time.FromDatetime(usable.credentials.expire_time)
    else:
        encoded.api_key.api_key = usable.credentials.api_key
        encoded.api_key.api_secret = usable.credentials.api_secret or ""
    return encoded


def encode_webhook_response(response: WebhookResponse) -> pb.ReceiveWebhookResponse:
    """Convert the HTTP response to a webhook request."""
    headers = [webhook_pb2.WebhookHeader(name=name, value=text.encode()) for name, text in response.headers.items()]
    return pb.ReceiveWebhookResponse(status_code=response.status, headers=headers, body=response.body)


def encode_webhook_event(event: NumberedEvent) -> webhook_pb2.WebhookEvent:
    """Convert a webhook event."""
    return webhook_pb2.WebhookEvent(
        number=event.number,
        event_id=event.event_id,
        event_type=event.event_type,
        receive_time=encode_timestamp(event.receive_time),
        payload=event.payload,
    )


def encode_stream_item(item: StreamItem) -> pb.WatchIntegrationsResponse:
    """Convert an item of the event stream."""
    event = None if item.event is None else _encode_integration_event(item.event)
    return pb.WatchIntegrationsResponse(cursor=item.cursor, event=event)


def _encode_integration_event(event: IntegrationEvent) -> event_pb2.IntegrationEvent:
    return event_pb2.IntegrationEvent(
        kind=f"INTEGRATION_EVENT_KIND_{event.kind.name}",
        event_time=encode_timestamp(event.event_time),
        integration_id=event.integration_id,
        user_id=event.user_id,
        integration_type=event.integration_type,
        status_before=None if event.status_before is None else _encode_status(event.status_before),
        status_after=None if event.status_after is None else _encode_status(event.status_after),
        webhook_event_number=event.webhook_number,
    )


def encode_api_response(response: ApiResponse) -> pb.CallProviderResponse:
    """Convert the response of a provider's API."""
    return pb.CallProviderResponse(
        status_code=response.status,
        headers=[pb.HttpHeader(name=name, value=text) for name, text in response.headers],
        body=response.body,
    )
