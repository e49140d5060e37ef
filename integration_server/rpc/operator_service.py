"""`integrations.v1.OperatorService`: each method decodes the request, calls one use case and encodes the result."""

from integration_server.rpc import mapping
from integration_server.rpc.authorization import current_allowed_types
from integration_server.rpc.integration_service import UseCases
from integration_server.rpc.methods import Context
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
