"""The SQL stores pass the contract, on both databases."""

import pytest

from integration_server.storage.agenda import SqlAgenda
from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.engine import Database
from integration_server.storage.events import SqlEventLog
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.revocations import SqlRevocations
from integration_server.storage.webhook_endpoints import SqlWebhookEndpoints
from integration_server.storage.webhook_inbox import SqlWebhookInbox
from tests.contracts.agenda_contract import AgendaContract, RefreshDueTimeContract
from tests.contracts.event_contract import EventLogContract, Stores
from tests.contracts.health_history_contract import HealthHistoryContract
from tests.contracts.store_contract import AttemptStoreContract, IntegrationStoreContract, RevocationsContract
from tests.contracts.webhook_contract import WebhookEndpointsContract, WebhookInboxContract


class _OnSql:
    @pytest.fixture
    def integrations(self, database: Database) -> SqlIntegrations:
        return SqlIntegrations(database)

    @pytest.fixture
    def attempts(self, database: Database) -> SqlAttempts:
        return SqlAttempts(database)

    @pytest.fixture
    def history(self, database: Database) -> SqlHealthHistory:
        return SqlHealthHistory(database)

    @pytest.fixture
    def revocations(self, database: Database) -> SqlRevocations:
        return SqlRevocations(database)

    @pytest.fixture
    def agenda(self, database: Database) -> SqlAgenda:
        return SqlAgenda(database)

    @pytest.fixture
    def inbox(self, database: Database) -> SqlWebhookInbox:
        return SqlWebhookInbox(database)

    @pytest.fixture
    def endpoints(self, database: Database) -> SqlWebhookEndpoints:
        return SqlWebhookEndpoints(database)

    @pytest.fixture
    def stores(self, database: Database) -> Stores:
        return Stores(
            SqlIntegrations(database),
            SqlAttempts(database),
            SqlHealthHistory(database),
            SqlAgenda(database),
            SqlWebhookInbox(database),
            SqlEventLog(database),
        )


class TestSqlIntegrations(_OnSql, IntegrationStoreContract, RefreshDueTimeContract):
    pass


class TestSqlHealthHistory(_OnSql, HealthHistoryContract):
    pass


class TestSqlAgenda(_OnSql, AgendaContract):
    pass


class TestSqlAttempts(_OnSql, AttemptStoreContract):
    pass


class TestSqlRevocations(_OnSql, RevocationsContract):
    pass


class TestSqlWebhookInbox(_OnSql, WebhookInboxContract):
    pass


class TestSqlWebhookEndpoints(_OnSql, WebhookEndpointsContract):
    pass


class TestSqlEventLog(_OnSql, EventLogContract):
    pass
