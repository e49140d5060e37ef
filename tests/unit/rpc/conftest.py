"""The servicer over the use cases over fakes, behind the interceptor."""

from collections.abc import AsyncIterator
from functools import partial

import pytest

from integration_server.rpc.integration_service import IntegrationService
from integrations.v1 import integration_service_pb2_grpc as pb_grpc
from tests.fakes.inmemory_grpc import InMemoryGrpc
from tests.fakes.system import FakeSystem


def servicer_of(system: FakeSystem) -> IntegrationService:
    return IntegrationService(system.use_cases, system.clock)


def edge_of(system: FakeSystem) -> InMemoryGrpc:
    return InMemoryGrpc(
        "integrations.v1.IntegrationService",
        partial(pb_grpc.add_IntegrationServiceServicer_to_server, servicer_of(system)),
    )


@pytest.fixture
async def system() -> AsyncIterator[FakeSystem]:
    system = FakeSystem()
    async with system.tasks:
        yield system


@pytest.fixture
def edge(system: FakeSystem) -> InMemoryGrpc:
    return edge_of(system)
