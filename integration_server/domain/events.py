"""Events of integrations, as the event stream reports them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from integration_server.domain.integration import IntegrationId, Status, UserId


class EventKind(StrEnum):
    """The kind of an event."""

    CREATED = "created"
    UPDATED = "updated"
    STATUS_CHANGED = "status_changed"
    CREDENTIALS_REFRESHED = "credentials_refreshed"
    DISCONNECTED = "disconnected"
    WEBHOOK_RECEIVED = "webhook_received"


@dataclass(frozen=True, slots=True)
class IntegrationEvent:
    """An event. `status_before` is None for a new integration, `status_after` for a removed one."""

    kind: EventKind
    event_time: datetime
    integration_id: IntegrationId
    user_id: UserId
    integration_type: str
    status_before: Status | None = None
    status_after: Status | None = None
    webhook_number: int | None = None
