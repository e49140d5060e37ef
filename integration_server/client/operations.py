"""The server's functions as values: a request, and what becomes of its response. No I/O; both clients run them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from integration_server.client import rpcs
from integration_server.client.errors import (
    AccountNotConnected,
    FieldViolation,
    IntegrationsError,
    InvalidField,
    SeveralAccounts,
    error_of_status,
)
from integration_server.client.rpcs import Rpc
from integration_server.client.store import Key
from integration_server.client.values import ApiResponse, Attempt, CallbackResult, WebhookEvent, WebhookSecret
from integrations.v1 import credentials_pb2
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import operator_service_pb2 as operator_pb
from integrations.v1.integration_pb2 import HealthCheck, Integration, IntegrationTypeInfo, Status

ResultT = TypeVar("ResultT")
ItemT = TypeVar("ItemT")
MessageT = TypeVar("MessageT", bound=Message)
FieldsP = ParamSpec("FieldsP")

Config = Mapping[str, Any]
Pairs = Mapping[str, str] | Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Operation(Generic[ResultT]):
    """A call: its RPC, its request, and the result of its response."""

    rpc: Rpc[Any, Any]
    request: Message = field(repr=False)
    decode: Callable[[Any], ResultT] = field(repr=False)


class Page(NamedTuple, Generic[ItemT]):
    """A part of a list, and the token of the next one; empty after the last."""

    items: Sequence[ItemT]
    next_token: str


Listing = Callable[[str], Operation[Page[ItemT]]]
"""Returns the operation that reads the page of a token."""


MAX_BATCH = 1_000
"""Accounts of one `BatchGetCredentials`, as the contract says."""

MAX_DUE_COUNT = 1_000
"""What `due_count` of `ListDueWork` counts up to, as the contract says."""


def _struct(config: Config | None) -> Struct | None:
    if config is None:
        return None
    struct = Struct()
    try:
        struct.update(dict(config))
    except (TypeError, ValueError):
        raise _invalid("config", "has a value that JSON does not have") from None
    return struct


def _duration(duration: timedelta | None) -> Duration | None:
    if duration is None:
        return None
    message = Duration()
    message.FromTimedelta(duration)
    return message


def _time(message: Message, name: str) -> datetime | None:
    value: Timestamp = getattr(message, name)
    return value.ToDatetime(UTC) if message.HasField(name) else None


def _pairs(field: str, pairs: Pairs | None) -> Sequence[tuple[str, str]]:
    found = list(pairs.items()) if isinstance(pairs, Mapping) else list(pairs or ())
    for name, value in found:
        try:
            pb.QueryParameter(name=name, value=value)
        except (TypeError, ValueError) as error:
            raise _invalid(f"{field}[{name!r}]", _description(value, error)) from None
    return found


def _json(value: object) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise _invalid("json", f"is not JSON: {error}") from None


def _message(kind: Callable[FieldsP, MessageT], *_: FieldsP.args, **values: FieldsP.kwargs) -> MessageT:
    """Return a message. Raises `InvalidField` for values that it cannot have: protobuf's own errors name no field."""
    try:
        return kind(*_, **values)
    except (TypeError, ValueError):
        raise _first_invalid(kind, values) from None


def _first_invalid(kind: Callable[..., object], values: Mapping[str, object]) -> InvalidField:
    for name, value in values.items():
        try:
            kind(**{name: value})
        except (TypeError, ValueError) as error:
            return _invalid(name, _description(value, error))
    raise AssertionError("each value is valid")


def _description(value: object, error: Exception) -> str:
    # Not protobuf's own text, which may have the value.
    if isinstance(error, TypeError):
        return f"cannot have a value of type {type(value).__name__}"
    if isinstance(error, UnicodeError):
        return "has characters that are not Unicode"
    return "is out of range" if isinstance(value, int) else "is not one of the names that the contract has"


def _invalid(field: str, description: str) -> InvalidField:
    return InvalidField(f"{field} {description}", fields=[FieldViolation(field, description)])


def _with_secrets(function: Callable[FieldsP, Operation[ResultT]]) -> Callable[FieldsP, Operation[ResultT]]:
    """Give the errors of a function no frames of it: they hold secrets, and some reporters print local variables."""

    @wraps(function)
    def without_frames(*args: FieldsP.args, **values: FieldsP.kwargs) -> Operation[ResultT]:
        try:
            return function(*args, **values)
        except Exception as error:
            del args, values
            raise error.with_traceback(None)  # noqa: B904 - it is the error itself

    return without_frames


# --- Integrations ---------------------------------------------------------------------------------------------------


def list_integrations(user: str, integration_type: str) -> Listing[Integration]:
    """The user's integrations, the oldest first; of all types for an empty type."""

    def page(token: str) -> Operation[Page[Integration]]:
        request = _message(
            pb.ListIntegrationsRequest, user_id=user, integration_type=integration_type, page_size=200, page_token=token
        )
        return Operation(
            rpcs.LIST_INTEGRATIONS, request, lambda response: Page(response.integrations, response.next_page_token)
        )

    return page


def the_only_account(user: str, integration_type: str, integrations: Sequence[Integration]) -> int:
    """Return the number of the user's connected account of a type. Raises if there is none, or more than one."""
    connected = [row for row in integrations if row.is_connected]
    active = [row for row in connected if row.is_active] or connected
    if not active:
        raise AccountNotConnected(f"the user has connected no account of type {integration_type}")
    if len(active) > 1:
        listed = ", ".join(f"{row.integration_id} ({row.account_label or row.name})" for row in active[:20])
        raise SeveralAccounts(
            f"the user has connected {len(active)} accounts of type {integration_type}; pass the integration_id of "
            f"one: {listed}{', …' if len(active) > 20 else ''}",
            active,
        )
    return active[0].integration_id


def get_integration(key: Key) -> Operation[Integration]:
    """One integration."""
    request = _message(pb.GetIntegrationRequest, user_id=key.user_id, integration_id=key.integration_id)
    return Operation(rpcs.GET_INTEGRATION, request, lambda response: response.integration)


def update_integration(
    key: Key, name: str | None, config: Config | None, is_active: bool | None
) -> Operation[Integration]:
    """Change what is not None."""
    changes = {"name": name, "config": config, "is_active": is_active}
    request = _message(
        pb.UpdateIntegrationRequest,
        user_id=key.user_id,
        integration_id=key.integration_id,
        name=name,
        config=_struct(config),
        is_active=is_active,
        update_mask=FieldMask(paths=[path for path, value in changes.items() if value is not None]),
    )
    return Operation(rpcs.UPDATE_INTEGRATION, request, lambda response: response.integration)


def disconnect(key: Key) -> Operation[pb.DisconnectIntegrationResponse]:
    """Delete an integration, and revoke its credentials."""
    request = _message(pb.DisconnectIntegrationRequest, user_id=key.user_id, integration_id=key.integration_id)
    return Operation(rpcs.DISCONNECT, request, lambda response: response)


def list_types() -> Listing[IntegrationTypeInfo]:
    """The integration types of the server."""

    def page(token: str) -> Operation[Page[IntegrationTypeInfo]]:
        return Operation(
            rpcs.LIST_TYPES,
            _message(pb.ListIntegrationTypesRequest, page_token=token),
            lambda response: Page(response.integration_types, response.next_page_token),
        )

    return page


# --- Connecting -----------------------------------------------------------------------------------------------------


def connect(
    *,
    user: str,
    integration_type: str,
    scopes: Sequence[str] = (),
    redirect_uri: str = "",
    return_url: str = "",
    name: str = "",
    config: Config | None = None,
    integration_id: int = 0,
    oauth_client: str = "",
) -> Operation[Attempt]:
    """Begin a connection in the user's browser."""
    request = _message(
        pb.ConnectRequest,
        user_id=user,
        integration_type=integration_type,
        scopes=scopes,
        redirect_uri=redirect_uri,
        return_url=return_url,
        name=name,
        config=_struct(config),
        integration_id=integration_id,
        oauth_client=oauth_client,
    )

    def decode(response: pb.ConnectResponse) -> Attempt:
        return Attempt(
            integration_id=response.integration_id,
            user=user,
            integration_type=integration_type,
            authorization_url=response.authorization_url,
            state=response.state,
            user_code=response.user_code,
            verification_uri=response.verification_uri,
            verification_uri_complete=response.verification_uri_complete,
            expire_time=_time(response, "expire_time"),
        )

    return Operation(rpcs.CONNECT, request, decode)


@_with_secrets
def connect_with_api_key(
    *,
    user: str,
    integration_type: str,
    api_key: str = "",
    api_secret: str = "",
    secret_fields: Mapping[str, str] | None = None,
    webhook_secret: str = "",
    name: str = "",
    config: Config | None = None,
    integration_id: int = 0,
) -> Operation[Integration]:
    """Connect an account with what its user has copied from the provider."""
    request = _message(
        pb.ConnectWithApiKeyRequest,
        user_id=user,
        integration_type=integration_type,
        api_key=api_key,
        api_secret=api_secret,
        secret_fields=secret_fields,
        webhook_secret=webhook_secret,
        name=name,
        config=_struct(config),
        integration_id=integration_id,
    )
    return Operation(rpcs.CONNECT_WITH_API_KEY, request, lambda response: response.integration)


@_with_secrets
def handle_callback(
    *,
    state: str,
    code: str = "",
    error: str = "",
    iss: str = "",
    query: str = "",
    integration_type: str = "",
    user: str = "",
) -> Operation[CallbackResult]:
    """Complete a connection with the parameters of the provider's redirect, or ask for a device authorization."""
    request = _message(
        pb.HandleCallbackRequest,
        state=state,
        code=code,
        error=error,
        iss=iss,
        query=query,
        integration_type=integration_type,
        user_id=user,
    )
    return Operation(rpcs.HANDLE_CALLBACK, request, _callback_result)


@_with_secrets
def confirm(user: str, confirmation_token: str) -> Operation[CallbackResult]:
    """Complete a connection whose callback did not name the user."""
    request = _message(pb.ConfirmConnectionRequest, user_id=user, confirmation_token=confirmation_token)
    return Operation(rpcs.CONFIRM, request, _callback_result)


def _callback_result(response: pb.HandleCallbackResponse | pb.ConfirmConnectionResponse) -> CallbackResult:
    return CallbackResult(
        success=response.success,
        integration_id=response.integration_id,
        message=response.message,
        reason=response.reason,
        redirect_url=response.redirect_url,
        confirmation_token=response.confirmation_token if isinstance(response, pb.HandleCallbackResponse) else "",
        display_name=response.display_name,
        account_label=response.account_label,
    )


# --- Credentials and health -----------------------------------------------------------------------------------------


def get_credentials(key: Key, min_ttl: timedelta | None) -> Operation[credentials_pb2.Credentials]:
    """Valid credentials."""
    return Operation(rpcs.GET_CREDENTIALS, _credentials_request(key, min_ttl), lambda response: response.credentials)


def _credentials_request(key: Key, min_ttl: timedelta | None) -> pb.GetCredentialsRequest:
    return _message(
        pb.GetCredentialsRequest, user_id=key.user_id, integration_id=key.integration_id, min_ttl=_duration(min_ttl)
    )


def batch_get_credentials(
    keys: Sequence[Key], min_ttl: timedelta | None
) -> Operation[Sequence[credentials_pb2.Credentials | IntegrationsError]]:
    """For each account valid credentials, or an error. At most `MAX_BATCH` accounts."""
    requests = [_credentials_request(key, min_ttl) for key in keys]
    return Operation(
        rpcs.BATCH_GET_CREDENTIALS,
        _message(pb.BatchGetCredentialsRequest, requests=requests),
        lambda response: [
            result.credentials if result.HasField("credentials") else error_of_status(result.error)
            for result in response.results
        ],
    )


def refresh(key: Key, *, force: bool) -> Operation[pb.RefreshTokenResponse]:
    """Refresh the access token."""
    request = _message(pb.RefreshTokenRequest, user_id=key.user_id, integration_id=key.integration_id, force=force)
    return Operation(rpcs.REFRESH_TOKEN, request, lambda response: response)


def check_health(key: Key) -> Operation[HealthCheck]:
    """Check one integration."""
    request = _message(pb.CheckHealthRequest, user_id=key.user_id, integration_id=key.integration_id)
    return Operation(rpcs.CHECK_HEALTH, request, lambda response: response.health_check)


def check_all_health(user: str) -> Listing[HealthCheck]:
    """Check the user's integrations."""

    def page(token: str) -> Operation[Page[HealthCheck]]:
        return Operation(
            rpcs.CHECK_ALL_HEALTH,
            _message(pb.CheckAllHealthRequest, user_id=user, page_token=token),
            lambda response: Page(response.integrations, response.next_page_token),
        )

    return page


def list_health_checks(key: Key) -> Listing[HealthCheck]:
    """The last checks of an integration, the newest first."""

    def page(token: str) -> Operation[Page[HealthCheck]]:
        request = _message(
            pb.ListHealthChecksRequest,
            user_id=key.user_id,
            integration_id=key.integration_id,
            page_size=200,
            page_token=token,
        )
        return Operation(
            rpcs.LIST_HEALTH_CHECKS, request, lambda response: Page(response.health_checks, response.next_page_token)
        )

    return page


# --- API proxy ------------------------------------------------------------------------------------------------------


class ApiCall(NamedTuple):
    """A request to the provider's API. `json_body` is sent as JSON, with its content type."""

    method: str
    path: str
    query: Pairs | None = None
    headers: Pairs | None = None
    json_body: object = None
    body: bytes = b""
    idempotency_key: str = ""
    api: str = ""
    sub_account: str = ""

    def fields(self, key: Key) -> dict[str, Any]:
        """Return the fields that the requests of both RPCs have in common, except for the body."""
        headers = _pairs("headers", self.headers)
        if self.json_body is not None and "content-type" not in {name.lower() for name, _ in headers}:
            headers = [*headers, ("Content-Type", "application/json")]
        return {
            "user_id": key.user_id,
            "integration_id": key.integration_id,
            "method": self.method,
            "path": self.path,
            "query": [pb.QueryParameter(name=name, value=value) for name, value in _pairs("query", self.query)],
            "headers": [pb.HttpHeader(name=name, value=value) for name, value in headers],
            "idempotency_key": self.idempotency_key,
            "api": self.api,
            "sub_account": self.sub_account,
        }


def call_provider(key: Key, call: ApiCall) -> Operation[ApiResponse]:
    """Call the provider's API."""
    if call.json_body is not None and call.body:
        raise InvalidField(
            "body: is not empty beside json", fields=[FieldViolation("body", "is not empty beside json")]
        )
    body = call.body if call.json_body is None else _json(call.json_body)
    request = _message(pb.CallProviderRequest, **call.fields(key), body=body)
    return Operation(rpcs.CALL_PROVIDER, request, api_response)


def api_response(response: pb.CallProviderResponse | pb.StreamProviderResponse) -> ApiResponse:
    """Return a response, or the head of a streamed one with the first part of its body."""
    headers = [(header.name, header.value) for header in response.headers]
    return ApiResponse(status_code=response.status_code, headers=headers, body=response.body)


def first_part(key: Key, call: ApiCall, content_length: int | None) -> pb.StreamProviderRequest:
    """Return the head of a streamed request."""
    return _message(pb.StreamProviderRequest, **call.fields(key), content_length=content_length)


MAX_PART = 256 * 1024  # bytes of a part of a streamed body; the server takes up to 1 MiB


def parts(chunk: bytes) -> Sequence[pb.StreamProviderRequest]:
    """Return the further parts of a streamed request that a chunk of its body becomes."""
    offsets = range(0, len(chunk), MAX_PART)
    return [_message(pb.StreamProviderRequest, body=chunk[offset : offset + MAX_PART]) for offset in offsets]


# --- Webhooks -------------------------------------------------------------------------------------------------------


def list_webhook_events(key: Key, consumer: str) -> Operation[Sequence[WebhookEvent]]:
    """The first events after the consumer's offset."""
    request = _message(
        pb.ListWebhookEventsRequest,
        user_id=key.user_id,
        integration_id=key.integration_id,
        consumer=consumer,
        page_size=100,
    )

    def decode(response: pb.ListWebhookEventsResponse) -> Sequence[WebhookEvent]:
        return [
            WebhookEvent(
                number=event.number,
                event_id=event.event_id,
                event_type=event.event_type,
                receive_time=event.receive_time.ToDatetime(UTC),
                payload=event.payload,
            )
            for event in response.events
        ]

    return Operation(rpcs.LIST_WEBHOOK_EVENTS, request, decode)


def ack_webhook_events(key: Key, consumer: str, through_number: int) -> Operation[int]:
    """Advance the consumer's offset."""
    request = _message(
        pb.AckWebhookEventsRequest,
        user_id=key.user_id,
        integration_id=key.integration_id,
        consumer=consumer,
        through_number=through_number,
    )
    return Operation(rpcs.ACK_WEBHOOK_EVENTS, request, lambda response: response.through_number)


def get_webhook_endpoint(key: Key) -> Operation[pb.GetWebhookEndpointResponse]:
    """The integration's webhook URL."""
    request = _message(pb.GetWebhookEndpointRequest, user_id=key.user_id, integration_id=key.integration_id)
    return Operation(rpcs.GET_WEBHOOK_ENDPOINT, request, lambda response: response)


@_with_secrets
def set_webhook_secret(key: Key, webhook_secret: str, previous_ttl: timedelta | None) -> Operation[WebhookSecret]:
    """Set the secret of the integration's webhook URL."""
    request = _message(
        pb.SetWebhookSecretRequest,
        user_id=key.user_id,
        integration_id=key.integration_id,
        webhook_secret=webhook_secret,
        previous_ttl=_duration(previous_ttl),
    )

    def decode(response: pb.SetWebhookSecretResponse) -> WebhookSecret:
        return WebhookSecret(
            webhook_url=response.webhook_url,
            webhook_secret=response.webhook_secret,
            previous_expire_time=_time(response, "previous_expire_time"),
        )

    return Operation(rpcs.SET_WEBHOOK_SECRET, request, decode)


# --- For operators --------------------------------------------------------------------------------------------------


def list_unrouted_webhooks(integration_type: str) -> Listing[operator_pb.UnroutedWebhook]:
    """The webhook events that belong to no integration, the newest first; of all types for an empty type."""

    def page(token: str) -> Operation[Page[operator_pb.UnroutedWebhook]]:
        request = _message(
            operator_pb.ListUnroutedWebhooksRequest, integration_type=integration_type, page_size=200, page_token=token
        )
        return Operation(
            rpcs.LIST_UNROUTED_WEBHOOKS,
            request,
            lambda response: Page(response.unrouted_webhooks, response.next_page_token),
        )

    return page


def list_oauth_clients(integration_type: str) -> Listing[operator_pb.OAuthClient]:
    """The OAuth clients, by type and name; of all types for an empty type."""

    def page(token: str) -> Operation[Page[operator_pb.OAuthClient]]:
        request = _message(
            operator_pb.ListOAuthClientsRequest, integration_type=integration_type, page_size=200, page_token=token
        )
        return Operation(
            rpcs.LIST_OAUTH_CLIENTS, request, lambda response: Page(response.oauth_clients, response.next_page_token)
        )

    return page


def find_integrations(integration_type: str, status: "Status | str", account_id: str) -> Listing[Integration]:
    """The integrations of all users that meet the conditions, the oldest first; empty and unspecified ones: any."""

    def page(token: str) -> Operation[Page[Integration]]:
        request = _message(
            operator_pb.FindIntegrationsRequest,
            integration_type=integration_type,
            status=status,
            account_id=account_id,
            page_size=200,
            page_token=token,
        )
        return Operation(
            rpcs.FIND_INTEGRATIONS, request, lambda response: Page(response.integrations, response.next_page_token)
        )

    return page


def count_integrations(
    integration_type: str, status: "Status | str", account_id: str
) -> Listing[operator_pb.IntegrationCount]:
    """The numbers of the integrations that `find_integrations` finds, of each page: `sum_of_counts` adds them."""

    def page(token: str) -> Operation[Page[operator_pb.IntegrationCount]]:
        request = _message(
            operator_pb.FindIntegrationsRequest,
            integration_type=integration_type,
            status=status,
            account_id=account_id,
            page_token=token,
            count_only=True,
        )
        return Operation(
            rpcs.FIND_INTEGRATIONS, request, lambda response: Page(response.counts, response.next_page_token)
        )

    return page


def sum_of_counts(counts: Iterable[operator_pb.IntegrationCount]) -> Sequence[operator_pb.IntegrationCount]:
    """The sums of the counts by type and status."""
    sums = Counter[tuple[str, Status]]()
    for each in counts:
        sums[each.integration_type, each.status] += each.count
    return [
        operator_pb.IntegrationCount(integration_type=integration_type, status=status, count=count)
        for (integration_type, status), count in sorted(sums.items())
    ]


def list_due_work(
    integration_type: str, job: "operator_pb.Job | str", *, oldest_only: bool
) -> Listing[operator_pb.DueWork]:
    """The background work that is due, by job and OAuth client, the longest due first; an unspecified job: all jobs."""

    def page(token: str) -> Operation[Page[operator_pb.DueWork]]:
        request = _message(
            operator_pb.ListDueWorkRequest,
            job=job,
            integration_type=integration_type,
            oldest_only=oldest_only,
            page_size=200,
            page_token=token,
        )
        return Operation(
            rpcs.LIST_DUE_WORK, request, lambda response: Page(response.due_work, response.next_page_token)
        )

    return page


def list_audit_entries(
    *,
    user: str = "",
    integration_id: int = 0,
    caller: str = "",
    action: str = "",
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    page_size: int = 200,
) -> Listing[operator_pb.AuditEntry]:
    """The entries of the audit log that meet the conditions, the newest first."""

    def page(token: str) -> Operation[Page[operator_pb.AuditEntry]]:
        request = _message(
            operator_pb.ListAuditEntriesRequest,
            user_id=user,
            integration_id=integration_id,
            caller=caller,
            action=action,
            start_time=start_time,
            end_time=end_time,
            page_size=page_size,
            page_token=token,
        )
        return Operation(
            rpcs.LIST_AUDIT_ENTRIES, request, lambda response: Page(response.audit_entries, response.next_page_token)
        )

    return page
