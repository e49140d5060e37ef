"""`integrations.v1.IntegrationService`: each method decodes the request, calls one use case and encodes the result."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from integration_server.domain.callers import current_allowed_types, current_caller_name
from integration_server.domain.integration import Integration
from integration_server.rpc import mapping
from integration_server.rpc.call_audit import response_source
from integration_server.rpc.credential_results import CredentialResults
from integration_server.rpc.credential_watch import CredentialWatch
from integration_server.rpc.methods import Context
from integration_server.service.common_types import Clock
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest, ApiKeyConnectionService
from integration_server.service.connections.oauth_callback import Callback, OAuthCallbackService
from integration_server.service.connections.oauth_connection import ConnectionRequest, OAuthConnectionService
from integration_server.service.connections.revocation import RevocationService
from integration_server.service.credentials.credential_service import CredentialService
from integration_server.service.events.event_stream import EventStream
from integration_server.service.events.watched_changes import ChangeDispatcher
from integration_server.service.health.health_checks import HealthChecker
from integration_server.service.integrations.integration_manager import IntegrationManager
from integration_server.service.oauth_clients.oauth_client_manager import OAuthClientManager
from integration_server.service.operators.audit_log_reader import AuditLogReader
from integration_server.service.operators.due_work_list import DueWorkList
from integration_server.service.operators.integration_search import IntegrationSearch
from integration_server.service.proxy.calls import ApiProxy
from integration_server.service.webhooks.unrouted_webhooks import UnroutedWebhookLog
from integration_server.service.webhooks.webhook_delivery import WebhookDelivery
from integration_server.service.webhooks.webhook_ingestion import WebhookIngestion
from integration_server.service.webhooks.webhook_secrets import WebhookSecrets
from integrations.v1 import integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import integration_service_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class UseCases:
    """The use cases that the RPCs call."""

    oauth_connection: OAuthConnectionService
    oauth_callback: OAuthCallbackService
    api_key_connection: ApiKeyConnectionService
    integration_manager: IntegrationManager
    revocation_service: RevocationService
    credentials: CredentialService
    health_checker: HealthChecker
    webhook_ingestion: WebhookIngestion
    webhook_delivery: WebhookDelivery
    webhook_secrets: WebhookSecrets
    unrouted_webhooks: UnroutedWebhookLog
    event_stream: EventStream
    watched_changes: ChangeDispatcher
    api_proxy: ApiProxy
    oauth_clients: OAuthClientManager
    integration_search: IntegrationSearch
    due_work_list: DueWorkList
    audit_log_reader: AuditLogReader


class IntegrationService(pb_grpc.IntegrationServiceServicer):
    """Implements the service. The contract describes each RPC."""

    def __init__(self, use_cases: UseCases, clock: Clock, results: CredentialResults | None = None) -> None:
        self._use_cases = use_cases
        self._results = results or CredentialResults(use_cases.credentials)
        self._credential_watch = CredentialWatch(
            use_cases.credentials,
            use_cases.watched_changes,
            self._results,
            clock,
            heartbeat=use_cases.event_stream.heartbeat,
        )
        self._clock = clock

    async def Connect(self, request: pb.ConnectRequest, context: Context) -> pb.ConnectResponse:
        """Start an OAuth 2 connection."""
        authorization = await self._use_cases.oauth_connection.begin_connection(
            ConnectionRequest(
                user_id=mapping.decode_user_id(request.user_id),
                integration_type=mapping.decode_required_text("integration_type", request.integration_type),
                redirect_uri=mapping.decode_text("redirect_uri", request.redirect_uri, mapping.MAX_URL_LENGTH),
                scopes=mapping.decode_scopes("scopes", request.scopes),
                return_url=mapping.decode_text("return_url", request.return_url, mapping.MAX_URL_LENGTH),
                name=mapping.decode_text("name", request.name),
                config=mapping.decode_config(request.config),
                integration_id=mapping.decode_optional_integration_id(request.integration_id),
                oauth_client=mapping.decode_oauth_client("oauth_client", request.oauth_client),
                caller=current_caller_name(),
            )
        )
        return mapping.encode(pb.ConnectResponse, authorization, authorization_url=authorization.url)

    async def HandleCallback(self, request: pb.HandleCallbackRequest, context: Context) -> pb.HandleCallbackResponse:
        """Handle the provider's response to an authorization request."""
        max_length = mapping.MAX_PARAMETER_LENGTH
        mapping.decode_content("error_description", request.error_description, max_length)
        result = await self._use_cases.oauth_callback.handle_callback(
            Callback(
                state=mapping.decode_required_text("state", request.state, max_length),
                code=mapping.decode_content("code", request.code, max_length),
                integration_type=_decode_callback_type(request.integration_type),
                iss=mapping.decode_content("iss", request.iss, mapping.MAX_URL_LENGTH),
                error=mapping.decode_content("error", request.error, max_length),
                user_id=mapping.decode_user_id(request.user_id) if request.user_id else None,
                query=mapping.decode_query("query", request.query or _query_at_proxy(context)),
                allowed_types=current_allowed_types(),
            )
        )
        return mapping.encode(pb.HandleCallbackResponse, result)

    async def ConfirmConnection(
        self, request: pb.ConfirmConnectionRequest, context: Context
    ) -> pb.ConfirmConnectionResponse:
        """Complete a connection for the signed-in user."""
        result = await self._use_cases.oauth_callback.confirm_connection(
            mapping.decode_required_text(
                "confirmation_token", request.confirmation_token, mapping.MAX_PARAMETER_LENGTH
            ),
            mapping.decode_user_id(request.user_id),
            current_allowed_types(),
        )
        return mapping.encode(pb.ConfirmConnectionResponse, result)

    async def ConnectWithApiKey(
        self, request: pb.ConnectWithApiKeyRequest, context: Context
    ) -> pb.ConnectWithApiKeyResponse:
        """Connect an account with an API key."""
        integration = await self._use_cases.api_key_connection.connect_with_api_key(
            ApiKeyConnectionRequest(
                user_id=mapping.decode_user_id(request.user_id),
                integration_type=mapping.decode_required_text("integration_type", request.integration_type),
                api_key=mapping.decode_key("api_key", request.api_key),
                api_secret=mapping.decode_key("api_secret", request.api_secret),
                webhook_secret=mapping.decode_key("webhook_secret", request.webhook_secret),
                secret_fields=mapping.decode_secret_fields(request.secret_fields),
                name=mapping.decode_text("name", request.name),
                config=mapping.decode_config(request.config),
                integration_id=mapping.decode_optional_integration_id(request.integration_id),
            )
        )
        return pb.ConnectWithApiKeyResponse(integration=mapping.encode_integration(integration, self._clock()))

    async def ListIntegrations(
        self, request: pb.ListIntegrationsRequest, context: Context
    ) -> pb.ListIntegrationsResponse:
        """List a user's integrations."""
        page = await self._use_cases.integration_manager.list_integrations(
            mapping.decode_user_id(request.user_id),
            mapping.decode_text("integration_type", request.integration_type),
            *mapping.decode_page(request),
            current_allowed_types(),
        )
        integrations = await encode_integrations(page.items, self._clock())
        return pb.ListIntegrationsResponse(integrations=integrations, next_page_token=page.next_page_token)

    async def GetIntegration(self, request: pb.GetIntegrationRequest, context: Context) -> pb.GetIntegrationResponse:
        """Return one integration."""
        integration = await self._use_cases.integration_manager.get_integration(*mapping.decode_target(request))
        return pb.GetIntegrationResponse(integration=mapping.encode_integration(integration, self._clock()))

    async def UpdateIntegration(
        self, request: pb.UpdateIntegrationRequest, context: Context
    ) -> pb.UpdateIntegrationResponse:
        """Update one integration."""
        integration = await self._use_cases.integration_manager.update_integration(
            *mapping.decode_target(request), mapping.decode_update(request)
        )
        return pb.UpdateIntegrationResponse(integration=mapping.encode_integration(integration, self._clock()))

    async def DisconnectIntegration(
        self, request: pb.DisconnectIntegrationRequest, context: Context
    ) -> pb.DisconnectIntegrationResponse:
        """Delete one integration and revoke its credentials."""
        integration_id, user_id = mapping.decode_target(request)
        state = await self._use_cases.revocation_service.disconnect_integration(integration_id, user_id)
        return mapping.encode_disconnect_response(integration_id, state)

    async def CheckAllHealth(self, request: pb.CheckAllHealthRequest, context: Context) -> pb.CheckAllHealthResponse:
        """Check a page of a user's integrations, and count all."""
        report = await self._use_cases.health_checker.check_all_health(
            mapping.decode_user_id(request.user_id),
            *mapping.decode_page(request, mapping.MAX_CHECK_PAGE_SIZE),
            current_allowed_types(),
        )
        return pb.CheckAllHealthResponse(
            total_integrations=report.counts.total,
            healthy_count=report.counts.healthy,
            error_count=report.counts.error,
            inactive_count=report.counts.inactive,
            integrations=map(mapping.encode_health_check, report.items),
            check_time=report.check_time,
            next_page_token=report.next_page_token,
        )

    async def CheckHealth(self, request: pb.CheckHealthRequest, context: Context) -> pb.CheckHealthResponse:
        """Check one integration."""
        check = await self._use_cases.health_checker.check_health(*mapping.decode_target(request))
        return pb.CheckHealthResponse(health_check=mapping.encode_health_check(check))

    async def ListHealthChecks(
        self, request: pb.ListHealthChecksRequest, context: Context
    ) -> pb.ListHealthChecksResponse:
        """List the health checks of one integration."""
        history = await self._use_cases.health_checker.list_health_checks(
            *mapping.decode_target(request), *mapping.decode_page(request)
        )
        checks = [mapping.encode_health_check(check) for check in history.items]
        return mapping.encode(pb.ListHealthChecksResponse, history, health_checks=checks)

    async def RefreshToken(self, request: pb.RefreshTokenRequest, context: Context) -> pb.RefreshTokenResponse:
        """Refresh an access token."""
        token = await self._use_cases.credentials.refresh_token(*mapping.decode_target(request), force=request.force)
        return mapping.encode_token_state(token)

    async def ListIntegrationTypes(
        self, request: pb.ListIntegrationTypesRequest, context: Context
    ) -> pb.ListIntegrationTypesResponse:
        """List the integration types of this server."""
        page = await self._use_cases.integration_manager.list_integration_types(
            *mapping.decode_page(request, default=mapping.MAX_PAGE_SIZE), current_allowed_types()
        )
        return pb.ListIntegrationTypesResponse(
            integration_types=map(mapping.encode_integration_type, page.items), next_page_token=page.next_page_token
        )

    async def GetCredentials(self, request: pb.GetCredentialsRequest, context: Context) -> pb.GetCredentialsResponse:
        """Return valid credentials."""
        usable = await self._use_cases.credentials.get_credentials(
            *mapping.decode_target(request),
            mapping.decode_duration("min_ttl", request),
            mapping.decode_scopes("required_scopes", request.required_scopes),
        )
        if (source := response_source.get()) is not None:
            source.integration, source.valid_until = usable.integration, usable.valid_until
        return pb.GetCredentialsResponse(credentials=mapping.encode_credentials(usable))

    async def BatchGetCredentials(
        self, request: pb.BatchGetCredentialsRequest, context: Context
    ) -> pb.BatchGetCredentialsResponse:
        """Return the credentials of many integrations."""
        # Encoded already, as `ProtectedHandlers` takes it.
        return cast("pb.BatchGetCredentialsResponse", await self._results.batch(request, context))

    async def WatchCredentials(
        self, request: pb.WatchCredentialsRequest, context: Context
    ) -> AsyncIterator[pb.WatchCredentialsResponse]:
        """Stream the credentials of integrations."""
        async with aclosing(self._credential_watch.watch(request)) as responses:
            async for response in responses:
                yield cast("pb.WatchCredentialsResponse", response)  # encoded already, as `ProtectedHandlers` takes it

    async def ReceiveWebhook(self, request: pb.ReceiveWebhookRequest, context: Context) -> pb.ReceiveWebhookResponse:
        """Receive a provider's webhook request."""
        response = await self._use_cases.webhook_ingestion.receive_webhook(
            mapping.decode_required_text("integration_type", request.integration_type),
            mapping.decode_required_text("endpoint", request.endpoint),
            mapping.decode_webhook_request(request),
        )
        return mapping.encode_webhook_response(response)

    async def ListWebhookEvents(
        self, request: pb.ListWebhookEventsRequest, context: Context
    ) -> pb.ListWebhookEventsResponse:
        """List webhook events after the consumer's offset."""
        page = await self._use_cases.webhook_delivery.list_webhook_events(
            *mapping.decode_target(request),
            mapping.decode_required_text("consumer", request.consumer, mapping.MAX_CONSUMER_LENGTH),
            *mapping.decode_page(request),
        )
        return mapping.encode(pb.ListWebhookEventsResponse, page, events=page.items)

    async def AckWebhookEvents(
        self, request: pb.AckWebhookEventsRequest, context: Context
    ) -> pb.AckWebhookEventsResponse:
        """Advance a consumer's offset."""
        through_number = await self._use_cases.webhook_delivery.acknowledge_webhook_events(
            *mapping.decode_target(request),
            mapping.decode_required_text("consumer", request.consumer, mapping.MAX_CONSUMER_LENGTH),
            mapping.decode_through_number(request.through_number),
        )
        return pb.AckWebhookEventsResponse(through_number=through_number)

    async def GetWebhookEndpoint(
        self, request: pb.GetWebhookEndpointRequest, context: Context
    ) -> pb.GetWebhookEndpointResponse:
        """Return an integration's webhook endpoint."""
        endpoint = await self._use_cases.webhook_secrets.get_webhook_endpoint(*mapping.decode_target(request))
        return mapping.encode(pb.GetWebhookEndpointResponse, endpoint, webhook_url=endpoint.url)

    async def SetWebhookSecret(
        self, request: pb.SetWebhookSecretRequest, context: Context
    ) -> pb.SetWebhookSecretResponse:
        """Set or generate an integration's webhook secret."""
        result = await self._use_cases.webhook_secrets.set_webhook_secret(
            *mapping.decode_target(request),
            mapping.decode_key("webhook_secret", request.webhook_secret),
            mapping.decode_duration("previous_ttl", request),
        )
        return mapping.encode(
            pb.SetWebhookSecretResponse, result, webhook_url=result.url, webhook_secret=result.generated_secret
        )

    async def WatchIntegrations(
        self, request: pb.WatchIntegrationsRequest, context: Context
    ) -> AsyncIterator[pb.WatchIntegrationsResponse]:
        """Stream the events of integrations."""
        items = self._use_cases.event_stream.watch(
            mapping.decode_user_id(request.user_id) if request.user_id else None,
            mapping.decode_text("integration_type", request.integration_type),
            mapping.decode_text("cursor", request.cursor, mapping.MAX_PARAMETER_LENGTH),
            current_allowed_types(),
        )
        async with aclosing(items):
            async for item in items:
                if item.response is None:  # streams share the items of events, so that each is encoded once
                    item.response = mapping.encode_stream_item(item).SerializeToString()
                yield item.response  # encoded already, as `ProtectedHandlers` takes it

    async def CallProvider(self, request: pb.CallProviderRequest, context: Context) -> pb.CallProviderResponse:
        """Call the provider's API."""
        response = await self._use_cases.api_proxy.call_provider(
            *mapping.decode_target(request), mapping.decode_api_request(request)
        )
        return mapping.encode_api_response(response)

    async def StreamProvider(
        self, requests: AsyncIterator[pb.StreamProviderRequest], context: Context
    ) -> AsyncIterator[pb.StreamProviderResponse]:
        """Call the provider's API with bodies in parts."""
        head = await anext(requests)
        streaming = self._use_cases.api_proxy.stream_provider(
            *mapping.decode_target(head),
            mapping.decode_api_request(head),
            (request.body async for request in requests),
            content_length=mapping.decode_content_length(head),
            within=context.time_remaining(),
        )
        async with streaming as stream:
            yield mapping.encode_stream_head(stream.response)
            async for part in stream.chunks:
                yield pb.StreamProviderResponse(body=part)


async def encode_integrations(
    integrations: Iterable[Integration], now: datetime
) -> Sequence[integration_pb2.Integration]:
    """Convert integrations. Other calls proceed after each config, whose conversion can take ten milliseconds."""
    encoded = []
    for integration in integrations:
        encoded.append(mapping.encode_integration(integration, now))
        if integration.config:
            await asyncio.sleep(0)
    return encoded


def _decode_callback_type(integration_type: str) -> str:
    """The type in a callback; empty for what JavaScript makes of a parameter that its page does not have."""
    return (
        "" if integration_type in {"null", "undefined"} else mapping.decode_text("integration_type", integration_type)
    )


def _query_at_proxy(context: Context) -> str:
    """The query of a callback that Envoy has converted to this RPC; it knows only the parameters of the contract."""
    path = dict(context.invocation_metadata() or ()).get("x-envoy-original-path", "")
    return str(path).partition("?")[2]
