"""`integrations.v1.OperatorService`: each method decodes the request, calls one use case and encodes the result."""

from typing import Any

from integration_server.rpc import mapping
from integration_server.rpc.callers import current_allowed_types
from integration_server.rpc.integration_service import UseCases
from integration_server.rpc.methods import Context
from integration_server.service.oauth_clients.oauth_client_manager import OAuthClientChange, OAuthClientInfo
from integrations.v1 import operator_service_pb2 as pb
from integrations.v1 import operator_service_pb2_grpc as pb_grpc


class OperatorService(pb_grpc.OperatorServiceServicer):
    """Implements the service. The contract describes each RPC."""

    def __init__(self, use_cases: UseCases) -> None:
        self._use_cases = use_cases

    async def ListUnroutedWebhooks(
        self, request: pb.ListUnroutedWebhooksRequest, context: Context
    ) -> pb.ListUnroutedWebhooksResponse:
        """List webhook events that belong to no integration."""
        named = mapping.decode_text("integration_type", request.integration_type)
        page = await self._use_cases.unrouted_webhooks.list_unrouted_webhooks(
            self._use_cases.integration_manager.canonical_type(named),
            *mapping.decode_page(request),
            current_allowed_types(),
        )
        return mapping.encode(pb.ListUnroutedWebhooksResponse, page, unrouted_webhooks=page.items)

    async def PutOAuthClient(self, request: pb.PutOAuthClientRequest, context: Context) -> pb.PutOAuthClientResponse:
        """Add or change an OAuth client."""
        callers = mapping.require_at_most("callers", request.callers, mapping.MAX_CALLERS)
        max_length = mapping.MAX_SECRET_FIELD_LENGTH
        client = await self._use_cases.oauth_clients.put_oauth_client(
            OAuthClientChange(
                *_decode_target(request),
                client_id=mapping.decode_required_text("client_id", request.client_id),
                callers=tuple(
                    mapping.decode_required_text(f"callers[{index}]", name) for index, name in enumerate(callers)
                ),
                client_secret=mapping.decode_key("client_secret", request.client_secret, max_length),
                webhook_secret=mapping.decode_key("webhook_secret", request.webhook_secret),
                webhook_verify_token=mapping.decode_key("webhook_verify_token", request.webhook_verify_token),
                ends_rotation=request.end_rotation,
            )
        )
        return pb.PutOAuthClientResponse(oauth_client=_encode_client(client))

    async def ListOAuthClients(
        self, request: pb.ListOAuthClientsRequest, context: Context
    ) -> pb.ListOAuthClientsResponse:
        """List the OAuth clients."""
        named = mapping.decode_text("integration_type", request.integration_type)
        page = await self._use_cases.oauth_clients.list_oauth_clients(
            self._use_cases.integration_manager.canonical_type(named),
            *mapping.decode_page(request),
            current_allowed_types(),
        )
        clients = [_encode_client(client) for client in page.items]
        return pb.ListOAuthClientsResponse(oauth_clients=clients, next_page_token=page.next_page_token)

    async def DeleteOAuthClient(
        self, request: pb.DeleteOAuthClientRequest, context: Context
    ) -> pb.DeleteOAuthClientResponse:
        """Delete an OAuth client."""
        await self._use_cases.oauth_clients.delete_oauth_client(*_decode_target(request))
        return pb.DeleteOAuthClientResponse()


def _decode_target(request: Any) -> tuple[str, str]:  # noqa: ANN401  # a request with these two fields
    """Return the type and the name of a client."""
    integration_type = mapping.decode_required_text("integration_type", request.integration_type)
    mapping.decode_required_text("name", request.name)
    return integration_type, mapping.decode_oauth_client("name", request.name)


def _encode_client(client: OAuthClientInfo) -> pb.OAuthClient:
    alarm = client.alarm
    return mapping.encode(
        pb.OAuthClient,
        client,
        secret_state=None if alarm is None else f"SECRET_STATE_{alarm.state.name}",
        refuse_time=alarm and alarm.refuse_time,
        altered=client.is_altered,
    )
