import asyncio
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as pb_grpc

from integration_server.rpc.health import LIVENESS, ServerHealthServicer
from tests.fakes.inmemory_grpc import InMemoryGrpc, RpcError
from tests.fakes.provider import wait_until

SERVICE = "integrations.v1.IntegrationService"
READINESS = ["", SERVICE]
SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def health() -> ServerHealthServicer:
    return ServerHealthServicer([SERVICE])


@pytest.fixture
def client(health: ServerHealthServicer) -> InMemoryGrpc:
    return InMemoryGrpc("grpc.health.v1.Health", partial(pb_grpc.add_HealthServicer_to_server, health))


async def check(client: InMemoryGrpc, service: str) -> Any:
    return (await client.call("Check", pb.HealthCheckRequest(service=service))).status


class Watcher:
    """A watcher and the `statuses` that it has received."""

    def __init__(self, client: InMemoryGrpc, service: str) -> None:
        self.statuses: list[Any] = []
        self.task = asyncio.create_task(self._watch(client, service))

    async def _watch(self, client: InMemoryGrpc, service: str) -> None:
        async for response in await client.stream("Watch", pb.HealthCheckRequest(service=service)):
            self.statuses.append(response.status)


@pytest.mark.parametrize("service", READINESS)
async def test_readiness_starts_as_not_serving_and_follows_set_ready(
    health: ServerHealthServicer, client: InMemoryGrpc, service: str
) -> None:
    assert await check(client, service) == NOT_SERVING
    health.set_ready(True)
    assert await check(client, service) == SERVING
    health.set_ready(False)
    assert await check(client, service) == NOT_SERVING


async def test_liveness_does_not_depend_on_readiness(health: ServerHealthServicer, client: InMemoryGrpc) -> None:
    assert await check(client, LIVENESS) == SERVING
    health.drain()
    assert await check(client, LIVENESS) == SERVING


async def test_an_unknown_service_is_not_found(client: InMemoryGrpc) -> None:
    with pytest.raises(RpcError) as refused:
        await check(client, "unheard.of")
    assert refused.value.code is grpc.StatusCode.NOT_FOUND


async def test_lists_all(health: ServerHealthServicer, client: InMemoryGrpc) -> None:
    health.set_ready(True)
    listed = (await client.call("List", pb.HealthListRequest())).statuses
    assert {service: response.status for service, response in listed.items()} == {
        "": SERVING,
        SERVICE: SERVING,
        LIVENESS: SERVING,
    }


@pytest.mark.parametrize("service", READINESS)
async def test_a_watcher_gets_each_change_once_and_ends_with_the_server(
    health: ServerHealthServicer, client: InMemoryGrpc, service: str
) -> None:
    watcher = Watcher(client, service)
    await wait_until(lambda: watcher.statuses == [NOT_SERVING])
    for ready, statuses in ((True, 2), (True, 2), (False, 3), (True, 4)):
        health.set_ready(ready)
        await wait_until(partial(lambda statuses: len(watcher.statuses) == statuses, statuses))
    health.stop()
    await watcher.task
    assert watcher.statuses == [NOT_SERVING, SERVING, NOT_SERVING, SERVING, NOT_SERVING]


async def test_a_slow_watcher_does_not_delay_others(health: ServerHealthServicer, client: InMemoryGrpc) -> None:
    slow = await client.stream("Watch", pb.HealthCheckRequest())
    assert (await anext(slow)).status == NOT_SERVING  # and reads no further
    watchers = [Watcher(client, "") for _ in range(10)]
    await wait_until(lambda: all(watcher.statuses for watcher in watchers))
    health.set_ready(True)
    await wait_until(lambda: all(watcher.statuses[-1] == SERVING for watcher in watchers))
    health.stop()
    await asyncio.gather(*(watcher.task for watcher in watchers))


async def test_a_slow_watcher_gets_the_current_status(health: ServerHealthServicer, client: InMemoryGrpc) -> None:
    slow = await client.stream("Watch", pb.HealthCheckRequest())
    assert (await anext(slow)).status == NOT_SERVING
    health.set_ready(True)
    health.set_ready(False)
    health.set_ready(True)
    assert (await anext(slow)).status == SERVING
    health.stop()
    assert [response.status async for response in slow] == [NOT_SERVING]


async def test_watching_an_unknown_service_waits_for_it(health: ServerHealthServicer, client: InMemoryGrpc) -> None:
    watcher = Watcher(client, "unheard.of")
    await wait_until(lambda: watcher.statuses == [SERVICE_UNKNOWN])
    health.set_ready(True)
    health.stop()
    await watcher.task
    assert watcher.statuses == [SERVICE_UNKNOWN]


async def test_liveness_can_be_watched_and_ends_with_the_server(
    health: ServerHealthServicer, client: InMemoryGrpc
) -> None:
    watcher = Watcher(client, LIVENESS)
    await wait_until(lambda: watcher.statuses == [SERVING])
    health.stop()
    await watcher.task
    assert watcher.statuses == [SERVING]


async def test_watches_stay_during_the_drain(health: ServerHealthServicer, client: InMemoryGrpc) -> None:
    """A gRPC client starts a watch that ended again at once, which would keep it busy until the server stops."""
    health.set_ready(True)
    early = Watcher(client, "")
    await wait_until(lambda: early.statuses == [SERVING])
    health.drain()
    late = Watcher(client, "")
    await wait_until(lambda: early.statuses == [SERVING, NOT_SERVING] and late.statuses == [NOT_SERVING])
    assert not early.task.done()
    assert not late.task.done()
    health.stop()
    await asyncio.gather(early.task, late.task)


async def test_the_drain_is_final(health: ServerHealthServicer, client: InMemoryGrpc) -> None:
    health.set_ready(True)
    health.drain()
    health.set_ready(True)
    assert await check(client, "") == NOT_SERVING
    watcher = Watcher(client, "")
    health.stop()
    await watcher.task
    assert watcher.statuses == [NOT_SERVING]
