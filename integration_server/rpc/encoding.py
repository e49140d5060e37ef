"""What goes out: the domain's values as messages. Only maps, decides nothing."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from integration_server.domain.credentials import AuthMethod, OAuthTokens
from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.health import ErrorRate, HealthCheck
from integration_server.domain.integration import Failure, Integration, IntegrationId, Status
from integration_server.domain.proxy_messages import ApiResponse
from integration_server.domain.revocation import RevocationState
from integration_server.domain.webhooks import WebhookResponse
from integration_server.service.credentials.credential_service import UsableCredentials
from integration_server.service.events.event_stream import StreamItem
from integration_server.service.provider_port import Provider
from integration_server.service.webhooks.webhook_delivery import NumberedEvent
from integrations.v1 import credentials_pb2, event_pb2, integration_pb2, integration_service_pb2, webhook_pb2

_STATUSES = {
    Status.ACTIVE: integration_pb2.STATUS_ACTIVE,
    Status.INACTIVE: integration_pb2.STATUS_INACTIVE,
    Status.ERROR: integration_pb2.STATUS_ERROR,
    Status.PENDING: integration_pb2.STATUS_PENDING,
    Status.EXPIRED: integration_pb2.STATUS_EXPIRED,
}
_EVENT_KINDS = {
    EventKind.CREATED: event_pb2.INTEGRATION_EVENT_KIND_CREATED,
    EventKind.UPDATED: event_pb2.INTEGRATION_EVENT_KIND_UPDATED,
    EventKind.STATUS_CHANGED: event_pb2.INTEGRATION_EVENT_KIND_STATUS_CHANGED,
    EventKind.CREDENTIALS_REFRESHED: event_pb2.INTEGRATION_EVENT_KIND_CREDENTIALS_REFRESHED,
    EventKind.DISCONNECTED: event_pb2.INTEGRATION_EVENT_KIND_DISCONNECTED,
    EventKind.WEBHOOK_RECEIVED: event_pb2.INTEGRATION_EVENT_KIND_WEBHOOK_RECEIVED,
}
_AUTH_METHODS = {
    AuthMethod.OAUTH2: integration_pb2.AUTH_METHOD_OAUTH2,
    AuthMethod.API_KEY: integration_pb2.AUTH_METHOD_API_KEY,
    AuthMethod.BASIC: integration_pb2.AUTH_METHOD_BASIC,
}
_REVOCATION_STATES = {
    RevocationState.REVOKED: (integration_pb2.REVOCATION_STATE_REVOKED, "Disconnected"),
    RevocationState.PENDING: (
        integration_pb2.REVOCATION_STATE_PENDING,
        "Disconnected here; the provider has not confirmed yet that the access is revoked",
    ),
    RevocationState.NOT_SUPPORTED: (
        integration_pb2.REVOCATION_STATE_NOT_SUPPORTED,
        "Disconnected here; the provider has no way to revoke the access from here",
    ),
    RevocationState.GRANT_SHARED: (
        integration_pb2.REVOCATION_STATE_GRANT_SHARED,
        "Disconnected here; the access is kept at the provider, since another integration uses it",
    ),
    RevocationState.NOTHING_TO_REVOKE: (integration_pb2.REVOCATION_STATE_NOTHING_TO_REVOKE, "Disconnected"),
}


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment; None stays unset."""
    if moment is None:
        return None
    encoded = Timestamp()
    encoded.FromDatetime(moment)
    return encoded


def integration(value: Integration, now: datetime) -> integration_pb2.Integration:
    """An integration with its status as of now."""
    encoded = integration_pb2.Integration(
        integration_id=value.integration_id,
        user_id=value.user_id,
        integration_type=value.integration_type,
        name=value.name,
        is_active=value.is_active,
        status=_STATUSES[value.status(now)],
        auth_method=_AUTH_METHODS[value.auth_method],
        scopes=value.scopes,
        missing_scopes=value.missing_scopes,
        account_id=value.account_id or "",
        account_label=value.account_label or "",
        is_connected=value.is_connected,
        last_error=_failure(value.last_error),
        error_count=value.error_count,
        last_health_check=timestamp(value.last_health_check),
        access_token_expire_time=timestamp(value.access_token_expire_time),
        refresh_token_expire_time=timestamp(value.refresh_token_expire_time),
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        connect_time=timestamp(value.connect_time),
    )
    encoded.config.update(value.config)
    return encoded


def _failure(value: Failure | None) -> integration_pb2.LastError | None:
    if value is None:
        return None
    return integration_pb2.LastError(
        error_class=value.error_class, error_time=timestamp(value.time), message=value.message
    )


def disconnect_response(
    integration_id: IntegrationId, state: RevocationState
) -> integration_service_pb2.DisconnectIntegrationResponse:
    """What became of an integration that is gone here."""
    encoded_state, message = _REVOCATION_STATES[state]
    return integration_service_pb2.DisconnectIntegrationResponse(
        success=True,
        message=message,
        integration_id=integration_id,
        provider_revoked=state is RevocationState.REVOKED,
        revocation_state=encoded_state,
    )


def health_check(value: HealthCheck) -> integration_pb2.HealthCheck:
    """A check with how the integration stands after it."""
    encoded = integration_pb2.HealthCheck(
        integration_id=value.integration.integration_id,
        integration_type=value.integration.integration_type,
        name=value.integration.name,
        status=_STATUSES[value.status],
        healthy=value.healthy,
        check_time=timestamp(value.check_time),
        error_class=value.error_class or "",
        message=value.message,
    )
    encoded.latency.FromTimedelta(value.latency)
    return encoded


def error_rate(value: ErrorRate) -> integration_pb2.ErrorRate:
    """An error rate."""
    encoded = integration_pb2.ErrorRate(checks=value.checks, failures=value.failures, rate=value.rate)
    encoded.window.FromTimedelta(value.window)
    return encoded


def integration_type(provider: Provider) -> integration_pb2.IntegrationTypeInfo:
    """A provider as what can be connected."""
    return integration_pb2.IntegrationTypeInfo(
        integration_type=provider.integration_type,
        display_name=provider.display_name,
        auth_method=_AUTH_METHODS[provider.auth_method],
        scopes=provider.required_scopes,
        required_fields=provider.required_fields,
        configured=not provider.missing_settings,
        missing_settings=provider.missing_settings,
        aliases=provider.aliases,
    )


def credentials(value: UsableCredentials) -> credentials_pb2.Credentials:
    """Credentials, ready to use."""
    encoded = credentials_pb2.Credentials(
        scopes=value.scopes,
        headers=value.request_auth.headers,
        query_params=value.request_auth.query_params,
    )
    if isinstance(value.credentials, OAuthTokens):
        encoded.bearer_token = value.credentials.access_token
        if value.credentials.expire_time is not None:
            encoded.expire_time.FromDatetime(value.credentials.expire_time)
    else:
        encoded.api_key.api_key = value.credentials.api_key
        encoded.api_key.api_secret = value.credentials.api_secret or ""
    return encoded


def webhook_response(value: WebhookResponse) -> integration_service_pb2.ReceiveWebhookResponse:
    """What to answer a provider."""
    headers = [webhook_pb2.WebhookHeader(name=name, value=text.encode()) for name, text in value.headers.items()]
    return integration_service_pb2.ReceiveWebhookResponse(status_code=value.status, headers=headers, body=value.body)


def webhook_event(value: NumberedEvent) -> webhook_pb2.WebhookEvent:
    """An event that a webhook has brought."""
    return webhook_pb2.WebhookEvent(
        number=value.number,
        event_id=value.event_id,
        event_type=value.event_type,
        receive_time=timestamp(value.receive_time),
        payload=value.payload,
    )


def stream_item(value: StreamItem) -> integration_service_pb2.WatchIntegrationsResponse:
    """What a stream says."""
    event = None if value.event is None else _integration_event(value.event)
    return integration_service_pb2.WatchIntegrationsResponse(cursor=value.cursor, event=event)


def _integration_event(value: IntegrationEvent) -> event_pb2.IntegrationEvent:
    return event_pb2.IntegrationEvent(
        kind=_EVENT_KINDS[value.kind],
        event_time=timestamp(value.event_time),
        integration_id=value.integration_id,
        user_id=value.user_id,
        integration_type=value.integration_type,
        status_before=None if value.status_before is None else _STATUSES[value.status_before],
        status_after=None if value.status_after is None else _STATUSES[value.status_after],
        webhook_event_number=value.webhook_number,
    )


def api_response(value: ApiResponse) -> integration_service_pb2.CallProviderResponse:
    """A provider's answer."""
    return integration_service_pb2.CallProviderResponse(
        status_code=value.status,
        headers=[integration_service_pb2.HttpHeader(name=name, value=text) for name, text in value.headers],
        body=value.body,
    )
