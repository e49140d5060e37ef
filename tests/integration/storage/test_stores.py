"""The SQL stores pass the contract, on both databases."""

import pytest

from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.revocations import SqlRevocations
from tests.contracts.store_contract import AttemptStoreContract, IntegrationStoreContract, RevocationsContract


class _OnSql:
    @pytest.fixture
    def integrations(self, database: Database) -> SqlIntegrations:
        return SqlIntegrations(database)

    @pytest.fixture
    def attempts(self, database: Database) -> SqlAttempts:
        return SqlAttempts(database)

    @pytest.fixture
    def revocations(self, database: Database) -> SqlRevocations:
        return SqlRevocations(database)


class TestSqlIntegrations(_OnSql, IntegrationStoreContract):
    pass


class TestSqlAttempts(_OnSql, AttemptStoreContract):
    pass


class TestSqlRevocations(_OnSql, RevocationsContract):
    pass
