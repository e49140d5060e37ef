"""What the use cases need of the world, as small protocols; `bootstrap.py` says who fulfils them.

Every method that takes a `user_id` answers as if another user's rows did not exist. Stores raise `StoreUnavailable`
when the database is away.
"""

from integration_server.service.ports.attempts import Attempt, AttemptStore, NewAttempt
from integration_server.service.ports.background import Agenda, HealthHistory, KeptCheck, Work
from integration_server.service.ports.basics import Clock, Jitter, Place, RandomName, Sealer
from integration_server.service.ports.events import AuditLog, EventBatch, EventLog, EventWish, Glance, LoggedEvent
from integration_server.service.ports.integrations import (
    ChangePlace,
    Changes,
    IntegrationLookup,
    IntegrationStore,
    NewAccount,
    NewCredentials,
    NewIntegration,
    News,
    Removed,
    StoredIntegration,
)
from integration_server.service.ports.providers import Provider, Providers
from integration_server.service.ports.refreshing import Lease, RefreshLeases, Spill, SpilledRefresh
from integration_server.service.ports.revocations import OrphanedGrant, Revocation, Revocations
from integration_server.service.ports.webhooks import (
    KeptWebhookEvent,
    NewWebhookEvent,
    StoredWebhookSecrets,
    WebhookEndpoint,
    WebhookEndpoints,
    WebhookInbox,
    WebhookPage,
)

__all__ = [
    "Agenda",
    "Attempt",
    "AttemptStore",
    "AuditLog",
    "ChangePlace",
    "Changes",
    "Clock",
    "EventBatch",
    "EventLog",
    "EventWish",
    "Glance",
    "HealthHistory",
    "IntegrationLookup",
    "IntegrationStore",
    "Jitter",
    "KeptCheck",
    "KeptWebhookEvent",
    "Lease",
    "LoggedEvent",
    "NewAccount",
    "NewAttempt",
    "NewCredentials",
    "NewIntegration",
    "NewWebhookEvent",
    "News",
    "OrphanedGrant",
    "Place",
    "Provider",
    "Providers",
    "RandomName",
    "RefreshLeases",
    "Removed",
    "Revocation",
    "Revocations",
    "Sealer",
    "Spill",
    "SpilledRefresh",
    "StoredIntegration",
    "StoredWebhookSecrets",
    "WebhookEndpoint",
    "WebhookEndpoints",
    "WebhookInbox",
    "WebhookPage",
    "Work",
]
