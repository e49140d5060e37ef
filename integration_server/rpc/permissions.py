"""Which right each RPC takes: the one table of them. An RPC that is not in it is denied to every caller."""

from collections.abc import Mapping
from enum import StrEnum

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from integrations.v1 import google_calendar_pb2, integration_service_pb2


class Permission(StrEnum):
    """What a policy grants: RPCs that are of a kind."""

    READ = "read"
    CONNECT = "connect"
    MANAGE = "manage"
    CHECK = "check"
    CREDENTIALS = "credentials"
    CALLS = "calls"
    CALLBACKS = "callbacks"
    WATCH = "watch"
    WEBHOOKS = "webhooks"
    WEBHOOK_DELIVERY = "webhook_delivery"
    HEALTH = "health"
    REFLECTION = "reflection"


USER_PERMISSIONS = frozenset(
    {Permission.READ, Permission.CONNECT, Permission.MANAGE, Permission.CHECK, Permission.CALLBACKS, Permission.WATCH}
)
"""What a policy may grant to users. Never credentials, nor calls with them: they are for services, whatever the policy
says. Nor webhooks: what they bring is for a backend, whose place a user could move."""

SIDECAR_PERMISSIONS = frozenset({Permission.CALLBACKS, Permission.WEBHOOK_DELIVERY, Permission.HEALTH})
"""All that the sidecar does, and may."""

SIDECAR_ONLY_PERMISSIONS = frozenset({Permission.WEBHOOK_DELIVERY})
"""What a policy may grant to nobody else."""

TYPELESS_PERMISSIONS = frozenset({Permission.HEALTH, Permission.REFLECTION})
"""Groups for which a caller needs no integration types."""

_INTEGRATIONS = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"].full_name
_CALENDARS = google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name

METHOD_PERMISSIONS: Mapping[str, Permission] = {
    f"/{_INTEGRATIONS}/Connect": Permission.CONNECT,
    f"/{_INTEGRATIONS}/HandleCallback": Permission.CALLBACKS,
    f"/{_INTEGRATIONS}/ConfirmConnection": Permission.CONNECT,
    f"/{_INTEGRATIONS}/ConnectWithApiKey": Permission.CONNECT,
    f"/{_INTEGRATIONS}/ListIntegrations": Permission.READ,
    f"/{_INTEGRATIONS}/GetIntegration": Permission.READ,
    f"/{_INTEGRATIONS}/UpdateIntegration": Permission.MANAGE,
    f"/{_INTEGRATIONS}/DisconnectIntegration": Permission.MANAGE,
    f"/{_INTEGRATIONS}/CheckAllHealth": Permission.CHECK,
    f"/{_INTEGRATIONS}/CheckHealth": Permission.CHECK,
    f"/{_INTEGRATIONS}/ListHealthChecks": Permission.READ,
    f"/{_INTEGRATIONS}/RefreshToken": Permission.MANAGE,
    f"/{_INTEGRATIONS}/ListIntegrationTypes": Permission.READ,
    f"/{_INTEGRATIONS}/GetCredentials": Permission.CREDENTIALS,
    f"/{_INTEGRATIONS}/ReceiveWebhook": Permission.WEBHOOK_DELIVERY,
    f"/{_INTEGRATIONS}/ListWebhookEvents": Permission.WEBHOOKS,
    f"/{_INTEGRATIONS}/AckWebhookEvents": Permission.WEBHOOKS,
    f"/{_INTEGRATIONS}/GetWebhookEndpoint": Permission.WEBHOOKS,
    f"/{_INTEGRATIONS}/SetWebhookSecret": Permission.WEBHOOKS,
    f"/{_INTEGRATIONS}/WatchIntegrations": Permission.WATCH,
    f"/{_INTEGRATIONS}/CallProvider": Permission.CALLS,
    f"/{_CALENDARS}/ListCalendars": Permission.CALLS,
    f"/{_CALENDARS}/ListEvents": Permission.CALLS,
    f"/{_CALENDARS}/CreateEvent": Permission.CALLS,
    f"/{_CALENDARS}/UpdateEvent": Permission.CALLS,
    f"/{_CALENDARS}/DeleteEvent": Permission.CALLS,
    f"/{_HEALTH}/Check": Permission.HEALTH,
    f"/{_HEALTH}/List": Permission.HEALTH,
    f"/{_HEALTH}/Watch": Permission.HEALTH,
    f"/{_REFLECTION}/ServerReflectionInfo": Permission.REFLECTION,
}

USERLESS_METHODS = frozenset({f"/{_INTEGRATIONS}/ListIntegrationTypes"})
"""RPCs for users whose requests name none. Any other without a `user_id` is denied to users: it would not be theirs."""
