"""The servicer over the use cases over fakes, behind the interceptor."""

from collections.abc import AsyncIterator
from functools import partial

import pytest

from integration_server.rpc.integration_service import IntegrationService, UseCases
from integrations.v1 import integration_service_pb2_grpc as pb_grpc
from tests.fakes.inmemory_grpc import InMemoryGrpc
from tests.fakes.system import FakeSystem


def servicer_of(system: FakeSystem) -> IntegrationService:
    use_cases = UseCases(
        oauth_connection=system.oauth_connection,
        api_key_connection=system.api_key_connection,
        integration_manager=system.integration_manager,
        revocation_service=system.revocation_service,
        credentials=system.credentials,
        health_checker=system.health_checker,
        webhook_ingestion=system.webhook_ingestion,
        webhook_delivery=system.webhook_delivery,
        webhook_secrets=system.webhook_secrets,
        event_stream=system.event_stream,
        api_proxy=system.api_proxy,
    )
    return IntegrationService(use_cases, system.clock)


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
