"""The servicer over the use cases over fakes, behind the interceptor."""

from collections.abc import AsyncIterator
from functools import partial

import pytest

from integration_server.rpc.integration_service import IntegrationService, UseCases
from integrations.v1 import integration_service_pb2_grpc as pb_grpc
from tests.fakes.edge import Edge
from tests.fakes.system import FakeSystem


def servicer_of(system: FakeSystem) -> IntegrationService:
    use_cases = UseCases(
        connecting=system.connecting,
        connecting_by_key=system.connecting_by_key,
        managing=system.managing,
        revoking=system.revoking,
        credentials=system.credentials,
        monitoring=system.monitoring,
        receiving=system.receiving,
        consuming=system.consuming,
        webhook_secrets=system.webhook_secrets,
        watching=system.watching,
        calling=system.calling,
    )
    return IntegrationService(use_cases, system.clock)


def edge_of(system: FakeSystem) -> Edge:
    return Edge(
        "integrations.v1.IntegrationService",
        partial(pb_grpc.add_IntegrationServiceServicer_to_server, servicer_of(system)),
    )


@pytest.fixture
async def system() -> AsyncIterator[FakeSystem]:
    system = FakeSystem()
    async with system.tasks:
        yield system


@pytest.fixture
def edge(system: FakeSystem) -> Edge:
    return edge_of(system)
