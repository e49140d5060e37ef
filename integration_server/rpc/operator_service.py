"""`integrations.v1.OperatorService`: each method decodes the request, calls one use case and encodes the result."""

from typing import Any

from integration_server.domain.callers import current_allowed_types
from integration_server.domain.integration import Status, UserId
from integration_server.rpc import mapping
from integration_server.rpc.integration_service import UseCases, encode_integrations
from integration_server.rpc.methods import Context
from integration_server.service.background.ports import JobKind
from integration_server.service.common_types import Clock
from integration_server.service.oauth_clients.oauth_client_manager import OAuthClientChange, OAuthClientInfo
from integration_server.service.operators.ports import AuditFilter, DueItem, ListedEntry
from integrations.v1 import operator_service_pb2 as pb
from integrations.v1 import operator_service_pb2_grpc as pb_grpc


class OperatorService(pb_grpc.OperatorServiceServicer):
    """Implements the service. The contract describes each RPC."""

    def __init__(self, use_cases: UseCases, clock: Clock) -> None:
        self._use_cases = use_cases
        self._clock = clock

    async def FindIntegrations(
        self, request: pb.FindIntegrationsRequest, context: Context
    ) -> pb.FindIntegrationsResponse:
        """Search the integrations of all users, or count them."""
        search = self._use_cases.integration_search
        conditions = (
            mapping.decode_text("integration_type", request.integration_type),
            mapping.decode_enum(Status, request, "status"),
            mapping.decode_text("account_id", request.account_id),
        )
        page_size, page_token = mapping.decode_page(request)
        if request.count_only:
            counted = await search.count_integrations(*conditions, page_token, current_allowed_types())
            counts = [mapping.encode(pb.IntegrationCount, count) for count in counted.items]
            return pb.FindIntegrationsResponse(counts=counts, next_page_token=counted.next_page_token)
        page = await search.find_integrations(*conditions, page_size, page_token, current_allowed_types())
        integrations = await encode_integrations(page.items, self._clock())
        return pb.FindIntegrationsResponse(integrations=integrations, next_page_token=page.next_page_token)

    async def ListDueWork(self, request: pb.ListDueWorkRequest, context: Context) -> pb.ListDueWorkResponse:
        """List the background work that is due."""
        integration_type = mapping.decode_text("integration_type", request.integration_type)
        page = await self._use_cases.due_work_list.list_due_work(
            mapping.decode_enum(JobKind, request, "job"),
            self._use_cases.integration_manager.canonical_type(integration_type),
            *mapping.decode_page(request),
            current_allowed_types(),
            oldest_only=request.oldest_only,
        )
        due_work = [_encode_due_item(item) for item in page.items]
        return pb.ListDueWorkResponse(due_work=due_work, next_page_token=page.next_page_token)

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        """List entries of the audit log."""
        page = await self._use_cases.audit_log_reader.list_audit_entries(
            AuditFilter(
                user_id=UserId(mapping.decode_text("user_id", request.user_id, mapping.MAX_USER_ID_LENGTH)),
                integration_id=mapping.decode_optional_integration_id(request.integration_id),
                caller=mapping.decode_text("caller", request.caller),
                action=mapping.decode_text("action", request.action, mapping.MAX_ACTION_LENGTH),
                start_time=mapping.decode_time(request, "start_time"),
                end_time=mapping.decode_time(request, "end_time"),
            ),
            *mapping.decode_page(request),
        )
        entries = [encode_audit_entry(listed) for listed in page.items]
        return pb.ListAuditEntriesResponse(audit_entries=entries, next_page_token=page.next_page_token)

    async def ListUnroutedWebhooks(
        self, request: pb.ListUnroutedWebhooksRequest, context: Context
    ) -> pb.ListUnroutedWebhooksResponse:
        """List webhook events that belong to no integration."""
        integration_type = mapping.decode_text("integration_type", request.integration_type)
        page = await self._use_cases.unrouted_webhooks.list_unrouted_webhooks(
            self._use_cases.integration_manager.canonical_type(integration_type),
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
        integration_type = mapping.decode_text("integration_type", request.integration_type)
        page = await self._use_cases.oauth_clients.list_oauth_clients(
            self._use_cases.integration_manager.canonical_type(integration_type),
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


def _encode_due_item(item: DueItem) -> pb.DueWork:
    return mapping.encode(pb.DueWork, item, job=item.job_kind)


def encode_audit_entry(listed: ListedEntry) -> pb.AuditEntry:
    """Convert an entry of the audit log. Its texts are escaped already."""
    if listed.entry is None:
        return pb.AuditEntry(unreadable=True)
    return mapping.encode(pb.AuditEntry, listed.entry, erased=listed.is_erased, unreadable=False)
