"""The SQL stores pass the contract, on both databases."""

import pytest

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES
from integration_server.storage.change_feed import SqlChangeFeed
from integration_server.storage.connections import SqlAuthorizationAttempts
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.engine import Database
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.revocations import SqlRevocationOutbox
from integration_server.storage.webhook_endpoints import SqlWebhookEndpoints
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from integration_server.storage.webhook_routing import SqlUnroutedWebhooks, SqlWebhookRoutes, UnroutedLimits
from tests.contracts.change_feed_contract import ChangeFeedContract, Stores
from tests.contracts.connection_contract import AttemptStoreContract, ConnectionStoreContract
from tests.contracts.due_work_contract import DevicePollContract, DueWorkContract, RefreshDueTimeContract
from tests.contracts.health_history_contract import HealthHistoryContract
from tests.contracts.integration_rows import SqlRows
from tests.contracts.integration_store_contract import IntegrationStoreContract
from tests.contracts.revocation_contract import RevocationOutboxContract
from tests.contracts.webhook_contract import (
    UnroutedWebhooksContract,
    WebhookEndpointsContract,
    WebhookInboxContract,
    WebhookRoutesContract,
    new_unrouted,
)


class _SqlStores:
    @pytest.fixture
    def integrations(self, database: Database) -> SqlRows:
        return SqlRows(database)

    @pytest.fixture
    def attempts(self, database: Database) -> SqlAuthorizationAttempts:
        return SqlAuthorizationAttempts(database)

    @pytest.fixture
    def history(self, database: Database) -> SqlHealthHistory:
        return SqlHealthHistory(database)

    @pytest.fixture
    def revocations(self, database: Database) -> SqlRevocationOutbox:
        return SqlRevocationOutbox(database)

    @pytest.fixture
    def due_work(self, database: Database) -> SqlDueWork:
        return SqlDueWork(database)

    @pytest.fixture
    def inbox(self, database: Database) -> SqlWebhookInbox:
        return SqlWebhookInbox(database)

    @pytest.fixture
    def unrouted(self, database: Database) -> SqlUnroutedWebhooks:
        return SqlUnroutedWebhooks(database, UnroutedLimits(max_rows=5, max_bytes=1000))

    @pytest.fixture
    def routes(self, database: Database) -> SqlWebhookRoutes:
        return SqlWebhookRoutes(database)

    @pytest.fixture
    def endpoints(self, database: Database) -> SqlWebhookEndpoints:
        return SqlWebhookEndpoints(database)

    @pytest.fixture
    def stores(self, database: Database) -> Stores:
        return Stores(
            SqlRows(database),
            SqlAuthorizationAttempts(database),
            SqlHealthHistory(database),
            SqlDueWork(database),
            SqlWebhookInbox(database),
            SqlChangeFeed(database),
        )


class TestSqlIntegrations(_SqlStores, IntegrationStoreContract, RefreshDueTimeContract):
    pass


class TestSqlConnections(_SqlStores, ConnectionStoreContract):
    pass


class TestSqlHealthHistory(_SqlStores, HealthHistoryContract):
    pass


class TestSqlDueWork(_SqlStores, DueWorkContract):
    pass


class TestSqlDevicePolls(_SqlStores, DevicePollContract):
    pass


class TestSqlAuthorizationAttempts(_SqlStores, AttemptStoreContract):
    pass


class TestSqlRevocationOutbox(_SqlStores, RevocationOutboxContract):
    pass


class TestSqlWebhookInbox(_SqlStores, WebhookInboxContract):
    pass


class TestSqlUnroutedWebhooks(_SqlStores, UnroutedWebhooksContract):
    async def test_negative_control_without_limits_everything_is_kept(self, database: Database) -> None:
        unrouted = SqlUnroutedWebhooks(database, UnroutedLimits(max_rows=10**6, max_bytes=10**9))
        for start in range(0, 2000, 500):
            await unrouted.add([new_unrouted(f"e-{number}", size=1000) for number in range(start, start + 500)])
        assert len(await unrouted.list("", ALL_INTEGRATION_TYPES, None, 10_000)) == 2000


class TestSqlWebhookRoutes(_SqlStores, WebhookRoutesContract):
    pass


class TestSqlWebhookEndpoints(_SqlStores, WebhookEndpointsContract):
    pass


class TestSqlChangeFeed(_SqlStores, ChangeFeedContract):
    pass
