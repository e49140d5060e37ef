"""Which right each RPC takes: the one table of them. An RPC that is not in it is denied to every caller."""

from collections.abc import Mapping
from enum import StrEnum

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from integrations.v1 import google_calendar_pb2, integration_service_pb2


class Group(StrEnum):
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


FOR_USERS = frozenset({Group.READ, Group.CONNECT, Group.MANAGE, Group.CHECK, Group.CALLBACKS, Group.WATCH})
"""What a policy may grant to users. Never credentials, nor calls with them: they are for services, whatever the policy
says. Nor webhooks: what they bring is for a backend, whose place a user could move."""

FOR_SIDECAR = frozenset({Group.CALLBACKS, Group.WEBHOOK_DELIVERY, Group.HEALTH})
"""All that the sidecar does, and may."""

FOR_SIDECAR_ONLY = frozenset({Group.WEBHOOK_DELIVERY})
"""What a policy may grant to nobody else."""

ABOUT_NOTHING_STORED = frozenset({Group.HEALTH, Group.REFLECTION})
"""Groups for which a caller needs no integration types."""

_INTEGRATIONS = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"].full_name
_CALENDARS = google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name

GROUPS: Mapping[str, Group] = {
    f"/{_INTEGRATIONS}/Connect": Group.CONNECT,
    f"/{_INTEGRATIONS}/HandleCallback": Group.CALLBACKS,
    f"/{_INTEGRATIONS}/ConfirmConnection": Group.CONNECT,
    f"/{_INTEGRATIONS}/ConnectWithApiKey": Group.CONNECT,
    f"/{_INTEGRATIONS}/ListIntegrations": Group.READ,
    f"/{_INTEGRATIONS}/GetIntegration": Group.READ,
    f"/{_INTEGRATIONS}/UpdateIntegration": Group.MANAGE,
    f"/{_INTEGRATIONS}/DisconnectIntegration": Group.MANAGE,
    f"/{_INTEGRATIONS}/CheckAllHealth": Group.CHECK,
    f"/{_INTEGRATIONS}/CheckHealth": Group.CHECK,
    f"/{_INTEGRATIONS}/ListHealthChecks": Group.READ,
    f"/{_INTEGRATIONS}/RefreshToken": Group.MANAGE,
    f"/{_INTEGRATIONS}/ListIntegrationTypes": Group.READ,
    f"/{_INTEGRATIONS}/GetCredentials": Group.CREDENTIALS,
    f"/{_INTEGRATIONS}/ReceiveWebhook": Group.WEBHOOK_DELIVERY,
    f"/{_INTEGRATIONS}/ListWebhookEvents": Group.WEBHOOKS,
    f"/{_INTEGRATIONS}/AckWebhookEvents": Group.WEBHOOKS,
    f"/{_INTEGRATIONS}/GetWebhookEndpoint": Group.WEBHOOKS,
    f"/{_INTEGRATIONS}/SetWebhookSecret": Group.WEBHOOKS,
    f"/{_INTEGRATIONS}/WatchIntegrations": Group.WATCH,
    f"/{_INTEGRATIONS}/CallProvider": Group.CALLS,
    f"/{_CALENDARS}/ListCalendars": Group.CALLS,
    f"/{_CALENDARS}/ListEvents": Group.CALLS,
    f"/{_CALENDARS}/CreateEvent": Group.CALLS,
    f"/{_CALENDARS}/UpdateEvent": Group.CALLS,
    f"/{_CALENDARS}/DeleteEvent": Group.CALLS,
    f"/{_HEALTH}/Check": Group.HEALTH,
    f"/{_HEALTH}/List": Group.HEALTH,
    f"/{_HEALTH}/Watch": Group.HEALTH,
    f"/{_REFLECTION}/ServerReflectionInfo": Group.REFLECTION,
}

ABOUT_NO_USER = frozenset({f"/{_INTEGRATIONS}/ListIntegrationTypes"})
"""RPCs for users whose requests name none. Any other without a `user_id` is denied to users: it would not be theirs."""
