"""The store in memory is a store like the others, or tests over it would prove nothing."""

import pytest

from tests.contracts.due_work_contract import DueWorkContract, RefreshDueTimeContract
from tests.contracts.event_contract import EventLogContract, Stores
from tests.contracts.health_history_contract import HealthHistoryContract
from tests.contracts.store_contract import AttemptStoreContract, IntegrationStoreContract, RevocationOutboxContract
from tests.contracts.webhook_contract import WebhookEndpointsContract, WebhookInboxContract
from tests.fakes.clock import SettableClock
from tests.fakes.store import (
    MemoryAttempts,
    MemoryDueWork,
    MemoryHealthHistory,
    MemoryIntegrations,
    MemoryRevocationOutbox,
    Rows,
)
from tests.fakes.webhooks import MemoryEventLog, MemoryWebhookEndpoints, MemoryWebhookInbox


@pytest.fixture
def rows() -> Rows:
    return Rows(SettableClock())


@pytest.fixture
def integrations(rows: Rows) -> MemoryIntegrations:
    return MemoryIntegrations(rows)


@pytest.fixture
def attempts(rows: Rows) -> MemoryAttempts:
    return MemoryAttempts(rows)


@pytest.fixture
def history(rows: Rows) -> MemoryHealthHistory:
    return MemoryHealthHistory(rows)


@pytest.fixture
def revocations(rows: Rows) -> MemoryRevocationOutbox:
    return MemoryRevocationOutbox(rows)


@pytest.fixture
def due_work(rows: Rows) -> MemoryDueWork:
    return MemoryDueWork(rows)


@pytest.fixture
def inbox(rows: Rows) -> MemoryWebhookInbox:
    return MemoryWebhookInbox(rows)


@pytest.fixture
def endpoints(rows: Rows) -> MemoryWebhookEndpoints:
    return MemoryWebhookEndpoints(rows)


@pytest.fixture
def stores(rows: Rows) -> Stores:
    return Stores(
        MemoryIntegrations(rows),
        MemoryAttempts(rows),
        MemoryHealthHistory(rows),
        MemoryDueWork(rows),
        MemoryWebhookInbox(rows),
        MemoryEventLog(rows),
    )


class TestMemoryIntegrations(IntegrationStoreContract, RefreshDueTimeContract):
    pass


class TestMemoryHealthHistory(HealthHistoryContract):
    pass


class TestMemoryDueWork(DueWorkContract):
    pass


class TestMemoryAttempts(AttemptStoreContract):
    pass


class TestMemoryRevocationOutbox(RevocationOutboxContract):
    pass


class TestMemoryWebhookInbox(WebhookInboxContract):
    pass


class TestMemoryWebhookEndpoints(WebhookEndpointsContract):
    pass


class TestMemoryEventLog(EventLogContract):
    pass
