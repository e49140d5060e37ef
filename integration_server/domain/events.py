"""What happens to integrations, told to those who watch."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from integration_server.domain.integration import IntegrationId, Status, UserId


class EventKind(StrEnum):
    """What happened."""

    CREATED = "created"
    UPDATED = "updated"
    STATUS_CHANGED = "status_changed"
    CREDENTIALS_REFRESHED = "credentials_refreshed"
    DISCONNECTED = "disconnected"
    WEBHOOK_RECEIVED = "webhook_received"


@dataclass(frozen=True, slots=True)
class IntegrationEvent:
    """Something that happened. A status is None where the integration was not there yet, or is not any more."""

    kind: EventKind
    event_time: datetime
    integration_id: IntegrationId
    user_id: UserId
    integration_type: str
    status_before: Status | None = None
    status_after: Status | None = None
    webhook_number: int | None = None
