"""The SQL stores pass the contract, on both databases."""

import pytest

from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations
from tests.contracts.store_contract import AttemptStoreContract, IntegrationStoreContract


class _OnSql:
    @pytest.fixture
    def integrations(self, database: Database) -> SqlIntegrations:
        return SqlIntegrations(database)

    @pytest.fixture
    def attempts(self, database: Database) -> SqlAttempts:
        return SqlAttempts(database)


class TestSqlIntegrations(_OnSql, IntegrationStoreContract):
    pass


class TestSqlAttempts(_OnSql, AttemptStoreContract):
    pass
