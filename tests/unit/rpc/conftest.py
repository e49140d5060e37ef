"""A client of the servicer over the use cases over fakes."""

from collections.abc import AsyncIterator, Sequence
from functools import partial

import pytest

from integration_server.rpc.integration_service import IntegrationService
from integration_server.rpc.methods import Interceptor
from integrations.v1 import integration_service_pb2_grpc as pb_grpc
from tests.fakes.inmemory_grpc import InMemoryGrpc
from tests.fakes.system import FakeSystem


def servicer_of(system: FakeSystem) -> IntegrationService:
    return IntegrationService(system.use_cases, system.clock)


def client_of(system: FakeSystem, interceptors: Sequence[Interceptor] = ()) -> InMemoryGrpc:
    return InMemoryGrpc(
        "integrations.v1.IntegrationService",
        partial(pb_grpc.add_IntegrationServiceServicer_to_server, servicer_of(system)),
        interceptors,
    )


@pytest.fixture
async def system() -> AsyncIterator[FakeSystem]:
    system = FakeSystem({"user_max_authorization_attempts": 100})
    async with system.tasks:
        yield system


@pytest.fixture
def client(system: FakeSystem) -> InMemoryGrpc:
    return client_of(system)
