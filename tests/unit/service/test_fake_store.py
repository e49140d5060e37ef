"""The store in memory is a store like the others, or tests over it would prove nothing."""

import pytest

from tests.contracts.store_contract import AttemptStoreContract, IntegrationStoreContract, RevocationsContract
from tests.fakes.clock import SettableClock
from tests.fakes.store import MemoryAttempts, MemoryIntegrations, MemoryRevocations, Rows


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
def revocations(rows: Rows) -> MemoryRevocations:
    return MemoryRevocations(rows)


class TestMemoryIntegrations(IntegrationStoreContract):
    pass


class TestMemoryAttempts(AttemptStoreContract):
    pass


class TestMemoryRevocations(RevocationsContract):
    pass
