"""`integrations.v1.IntegrationService`: each method decodes, calls one use case and encodes."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from integration_server.domain.errors import InvalidField
from integration_server.rpc import decoding, encoding
from integration_server.rpc.authentication import current_allowed_types
from integration_server.service.common_types import Clock
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest, ApiKeyConnectionService
from integration_server.service.connections.oauth_connection import Callback, ConnectionRequest, OAuthConnectionService
from integration_server.service.connections.revocation import RevocationService
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.events.event_stream import EventStream
from integration_server.service.health.health_checks import HealthChecker
from integration_server.service.integrations.integration_manager import IntegrationManager, IntegrationUpdate
from integration_server.service.proxy.calls import ApiProxy
from integration_server.service.webhooks.webhook_delivery import WebhookDelivery
from integration_server.service.webhooks.webhook_ingestion import WebhookIngestion
from integration_server.service.webhooks.webhook_secrets import WebhookSecrets
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import integration_service_pb2_grpc as pb_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_CHANGEABLE = frozenset({"name", "config", "is_active"})


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the service can do."""

    oauth_connection: OAuthConnectionService
    api_key_connection: ApiKeyConnectionService
    integration_manager: IntegrationManager
    revocation_service: RevocationService
    credentials: CredentialService
    health_checker: HealthChecker
    webhook_ingestion: WebhookIngestion
    webhook_delivery: WebhookDelivery
    webhook_secrets: WebhookSecrets
    event_stream: EventStream
    api_proxy: ApiProxy


class IntegrationService(pb_grpc.IntegrationServiceServicer):
    """The RPCs of the contract."""

    def __init__(self, use_cases: UseCases, clock: Clock) -> None:
        self._use_cases = use_cases
        self._clock = clock

    async def Connect(self, request: pb.ConnectRequest, context: Context) -> pb.ConnectResponse:
        """Begin an OAuth 2 connection."""
        authorization = await self._use_cases.oauth_connection.begin_connection(
            ConnectionRequest(
                user_id=decoding.user_id(request.user_id),
                integration_type=decoding.integration_type(request.integration_type),
                redirect_uri=decoding.text("redirect_uri", request.redirect_uri, decoding.MAX_URL_LENGTH),
                scopes=decoding.scopes("scopes", request.scopes),
                return_url=decoding.text("return_url", request.return_url, decoding.MAX_URL_LENGTH),
                name=decoding.text("name", request.name, decoding.MAX_NAME_LENGTH),
                config=decoding.config(request.config),
                integration_id=decoding.optional_integration_id(request.integration_id),
            )
        )
        return pb.ConnectResponse(
            authorization_url=authorization.url,
            state=authorization.state,
            expire_time=encoding.timestamp(authorization.expire_time),
            integration_id=authorization.integration_id,
        )

    async def HandleCallback(self, request: pb.HandleCallbackRequest, context: Context) -> pb.HandleCallbackResponse:
        """Take the provider's answer to an authorization."""
        decoding.text("error_description", request.error_description, decoding.MAX_PARAMETER_LENGTH)
        outcome = await self._use_cases.oauth_connection.handle_callback(
            Callback(
                state=decoding.required_text("state", request.state, decoding.MAX_PARAMETER_LENGTH),
                code=decoding.text("code", request.code, decoding.MAX_PARAMETER_LENGTH),
                integration_type=decoding.text("integration_type", request.integration_type, decoding.MAX_NAME_LENGTH),
                iss=decoding.text("iss", request.iss, decoding.MAX_URL_LENGTH),
                error=decoding.text("error", request.error, decoding.MAX_PARAMETER_LENGTH),
                user_id=decoding.user_id(request.user_id) if request.user_id else None,
                query=decoding.query("query", request.query),
                allowed_types=current_allowed_types(),
            )
        )
        return pb.HandleCallbackResponse(
            success=outcome.success,
            integration_id=outcome.integration_id,
            redirect_url=outcome.redirect_url,
            message=outcome.message,
            reason=outcome.reason,
            confirmation_token=outcome.confirmation_token,
        )

    async def ConfirmConnection(
        self, request: pb.ConfirmConnectionRequest, context: Context
    ) -> pb.ConfirmConnectionResponse:
        """Finish a connection for the user who is signed in."""
        outcome = await self._use_cases.oauth_connection.confirm_connection(
            decoding.required_text("confirmation_token", request.confirmation_token, decoding.MAX_PARAMETER_LENGTH),
            decoding.user_id(request.user_id),
            current_allowed_types(),
        )
        return pb.ConfirmConnectionResponse(
            success=outcome.success,
            integration_id=outcome.integration_id,
            redirect_url=outcome.redirect_url,
            message=outcome.message,
            reason=outcome.reason,
        )

    async def ConnectWithApiKey(
        self, request: pb.ConnectWithApiKeyRequest, context: Context
    ) -> pb.ConnectWithApiKeyResponse:
        """Connect with a key."""
        integration = await self._use_cases.api_key_connection.connect_with_api_key(
            ApiKeyConnectionRequest(
                user_id=decoding.user_id(request.user_id),
                integration_type=decoding.integration_type(request.integration_type),
                api_key=decoding.key("api_key", request.api_key),
                api_secret=decoding.key("api_secret", request.api_secret),
                webhook_secret=decoding.key("webhook_secret", request.webhook_secret),
                name=decoding.text("name", request.name, decoding.MAX_NAME_LENGTH),
                config=decoding.config(request.config),
                integration_id=decoding.optional_integration_id(request.integration_id),
            )
        )
        return pb.ConnectWithApiKeyResponse(integration=encoding.integration(integration, self._clock()))

    async def ListIntegrations(
        self, request: pb.ListIntegrationsRequest, context: Context
    ) -> pb.ListIntegrationsResponse:
        """List a user's integrations."""
        page = await self._use_cases.integration_manager.list_integrations(
            decoding.user_id(request.user_id),
            decoding.text("integration_type", request.integration_type, decoding.MAX_NAME_LENGTH),
            decoding.page_size(request.page_size),
            decoding.text("page_token", request.page_token, decoding.MAX_PARAMETER_LENGTH),
            current_allowed_types(),
        )
        now = self._clock()
        return pb.ListIntegrationsResponse(
            integrations=[encoding.integration(row, now) for row in page.integrations],
            next_page_token=page.next_page_token,
        )

    async def GetIntegration(self, request: pb.GetIntegrationRequest, context: Context) -> pb.GetIntegrationResponse:
        """Look at one integration."""
        integration = await self._use_cases.integration_manager.get_integration(
            decoding.integration_id(request.integration_id), decoding.user_id(request.user_id)
        )
        return pb.GetIntegrationResponse(integration=encoding.integration(integration, self._clock()))

    async def UpdateIntegration(
        self, request: pb.UpdateIntegrationRequest, context: Context
    ) -> pb.UpdateIntegrationResponse:
        """Change one integration."""
        integration = await self._use_cases.integration_manager.update_integration(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            _change(request),
        )
        return pb.UpdateIntegrationResponse(integration=encoding.integration(integration, self._clock()))

    async def DisconnectIntegration(
        self, request: pb.DisconnectIntegrationRequest, context: Context
    ) -> pb.DisconnectIntegrationResponse:
        """Delete one integration."""
        integration_id = decoding.integration_id(request.integration_id)
        state = await self._use_cases.revocation_service.disconnect_integration(
            integration_id, decoding.user_id(request.user_id)
        )
        return encoding.disconnect_response(integration_id, state)

    async def CheckAllHealth(self, request: pb.CheckAllHealthRequest, context: Context) -> pb.CheckAllHealthResponse:
        """Check all of a user's integrations."""
        report = await self._use_cases.health_checker.check_all_health(
            decoding.user_id(request.user_id), current_allowed_types()
        )
        return pb.CheckAllHealthResponse(
            total_integrations=len(report.checks),
            healthy_count=report.healthy_count,
            error_count=report.error_count,
            inactive_count=report.inactive_count,
            integrations=map(encoding.health_check, report.checks),
            check_time=encoding.timestamp(report.check_time),
        )

    async def CheckHealth(self, request: pb.CheckHealthRequest, context: Context) -> pb.CheckHealthResponse:
        """Check one integration."""
        check = await self._use_cases.health_checker.check_health(
            decoding.integration_id(request.integration_id), decoding.user_id(request.user_id)
        )
        return pb.CheckHealthResponse(health_check=encoding.health_check(check))

    async def ListHealthChecks(
        self, request: pb.ListHealthChecksRequest, context: Context
    ) -> pb.ListHealthChecksResponse:
        """List the checks of one integration."""
        history = await self._use_cases.health_checker.list_health_checks(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            decoding.page_size(request.page_size),
            decoding.text("page_token", request.page_token, decoding.MAX_PARAMETER_LENGTH),
        )
        return pb.ListHealthChecksResponse(
            health_checks=map(encoding.health_check, history.checks),
            next_page_token=history.next_page_token,
            error_rates=map(encoding.error_rate, history.error_rates),
        )

    async def RefreshToken(self, request: pb.RefreshTokenRequest, context: Context) -> pb.RefreshTokenResponse:
        """Renew an access token."""
        token = await self._use_cases.credentials.refresh_token(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            force=request.force,
        )
        return pb.RefreshTokenResponse(
            success=True,
            refreshed=token.refreshed,
            message="Refreshed" if token.refreshed else "Still good; nothing to refresh",
            access_token_expire_time=encoding.timestamp(token.expire_time),
        )

    async def ListIntegrationTypes(
        self, request: pb.ListIntegrationTypesRequest, context: Context
    ) -> pb.ListIntegrationTypesResponse:
        """List what can be connected here."""
        providers = self._use_cases.integration_manager.list_integration_types(current_allowed_types())
        return pb.ListIntegrationTypesResponse(integration_types=map(encoding.integration_type, providers))

    async def GetCredentials(self, request: pb.GetCredentialsRequest, context: Context) -> pb.GetCredentialsResponse:
        """Hand out credentials that work."""
        usable = await self._use_cases.credentials.get_credentials(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            decoding.duration("min_ttl", request.min_ttl) if request.HasField("min_ttl") else None,
            decoding.scopes("required_scopes", request.required_scopes),
        )
        return pb.GetCredentialsResponse(credentials=encoding.credentials(usable))

    async def ReceiveWebhook(self, request: pb.ReceiveWebhookRequest, context: Context) -> pb.ReceiveWebhookResponse:
        """Take what a provider sends by itself."""
        response = await self._use_cases.webhook_ingestion.receive_webhook(
            decoding.integration_type(request.integration_type),
            decoding.required_text("endpoint", request.endpoint, decoding.MAX_NAME_LENGTH),
            decoding.webhook(request),
        )
        return encoding.webhook_response(response)

    async def ListWebhookEvents(
        self, request: pb.ListWebhookEventsRequest, context: Context
    ) -> pb.ListWebhookEventsResponse:
        """List what webhooks have brought."""
        page = await self._use_cases.webhook_delivery.list_webhook_events(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            decoding.required_text("consumer", request.consumer, decoding.MAX_CONSUMER_LENGTH),
            decoding.page_size(request.page_size),
            decoding.text("page_token", request.page_token, decoding.MAX_PARAMETER_LENGTH),
        )
        return pb.ListWebhookEventsResponse(
            events=map(encoding.webhook_event, page.events), next_page_token=page.next_page_token
        )

    async def AckWebhookEvents(
        self, request: pb.AckWebhookEventsRequest, context: Context
    ) -> pb.AckWebhookEventsResponse:
        """Move a consumer's place."""
        through_number = await self._use_cases.webhook_delivery.acknowledge_webhook_events(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            decoding.required_text("consumer", request.consumer, decoding.MAX_CONSUMER_LENGTH),
            decoding.through_number(request.through_number),
        )
        return pb.AckWebhookEventsResponse(through_number=through_number)

    async def GetWebhookEndpoint(
        self, request: pb.GetWebhookEndpointRequest, context: Context
    ) -> pb.GetWebhookEndpointResponse:
        """Tell an integration's own webhook address."""
        address = await self._use_cases.webhook_secrets.get_webhook_endpoint(
            decoding.integration_id(request.integration_id), decoding.user_id(request.user_id)
        )
        return pb.GetWebhookEndpointResponse(
            webhook_url=address.url,
            has_secret=address.has_secret,
            secret_set_time=encoding.timestamp(address.secret_set_time),
            previous_expire_time=encoding.timestamp(address.previous_expire_time),
        )

    async def SetWebhookSecret(
        self, request: pb.SetWebhookSecretRequest, context: Context
    ) -> pb.SetWebhookSecretResponse:
        """Set or make what an integration's own webhooks are signed with."""
        result = await self._use_cases.webhook_secrets.set_webhook_secret(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            decoding.key("webhook_secret", request.webhook_secret),
            decoding.duration("previous_ttl", request.previous_ttl) if request.HasField("previous_ttl") else None,
        )
        return pb.SetWebhookSecretResponse(
            webhook_url=result.url,
            webhook_secret=result.generated_secret,
            previous_expire_time=encoding.timestamp(result.previous_expire_time),
        )

    async def WatchIntegrations(
        self, request: pb.WatchIntegrationsRequest, context: Context
    ) -> AsyncIterator[pb.WatchIntegrationsResponse]:
        """Tell of what happens to integrations."""
        stream = self._use_cases.event_stream.watch(
            decoding.user_id(request.user_id) if request.user_id else None,
            decoding.text("integration_type", request.integration_type, decoding.MAX_NAME_LENGTH),
            decoding.text("cursor", request.cursor, decoding.MAX_PARAMETER_LENGTH),
            current_allowed_types(),
        )
        async with aclosing(stream):
            async for stream_item in stream:
                yield encoding.stream_item(stream_item)

    async def CallProvider(self, request: pb.CallProviderRequest, context: Context) -> pb.CallProviderResponse:
        """Call the provider's API."""
        response = await self._use_cases.api_proxy.call_provider(
            decoding.integration_id(request.integration_id),
            decoding.user_id(request.user_id),
            decoding.api_request(request),
        )
        return encoding.api_response(response)


def _change(request: pb.UpdateIntegrationRequest) -> IntegrationUpdate:
    """What to set: the masked fields, absent ones cleared; without a mask the fields that are present."""
    masked = frozenset(request.update_mask.paths)
    for path in masked - _CHANGEABLE:
        raise InvalidField("update_mask", f"can name {', '.join(sorted(_CHANGEABLE))}; not {path[:64]!r}")
    chosen = masked or {field for field in _CHANGEABLE if request.HasField(field)}
    if "is_active" in chosen and not request.HasField("is_active"):
        raise InvalidField("is_active", "cannot be cleared; give it, or leave it out of update_mask")
    return IntegrationUpdate(
        name=decoding.text("name", request.name, decoding.MAX_NAME_LENGTH) if "name" in chosen else None,
        config=decoding.config(request.config) if "config" in chosen else None,
        is_active=request.is_active if "is_active" in chosen else None,
    )
