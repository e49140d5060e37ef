"""The store in memory is a store like the others, or tests over it would prove nothing."""

import pytest

from tests.contracts.store_contract import AttemptStoreContract, IntegrationStoreContract
from tests.fakes.store import MemoryAttempts, MemoryIntegrations, Rows


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def integrations(rows: Rows) -> MemoryIntegrations:
    return MemoryIntegrations(rows)


@pytest.fixture
def attempts(rows: Rows) -> MemoryAttempts:
    return MemoryAttempts(rows)


class TestMemoryIntegrations(IntegrationStoreContract):
    pass


class TestMemoryAttempts(AttemptStoreContract):
    pass
