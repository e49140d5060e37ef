"""`serve` with several worker processes: they share the port, the quotas and the end."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from integration_server.bootstrap import running_grpc_server
from integration_server.domain.call_quota import LocalCounts
from integration_server.shared_memory import SharedMemory
from integration_server.wiring.sidecar import new_sidecar_link
from integration_server.wiring.workers import Worker, claimed_port
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.commands import DEADLINE
from tests.end_to_end.faults import HeldResponse
from tests.end_to_end.processes import new_key, run, run_server_process, server_environment
from tests.end_to_end.system import settings_for
from tests.end_to_end.test_processes import replaced_events

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")

CONNECTIONS = 24  # all of them at one of two workers: a probability of 10⁻⁷


@asynccontextmanager
async def connections(address: str, count: int = CONNECTIONS) -> AsyncIterator[Sequence[grpc.aio.Channel]]:
    """Channels with a connection each; gRPC would use one for all."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options)) for _ in range(count)
        ]


async def watch(channel: grpc.aio.Channel) -> Any:  # the stub has no types
    """A stream of the health service, which has sent its first response."""
    call: Any = HealthStub(channel).Watch(HealthCheckRequest())
    assert (await asyncio.wait_for(call.read(), DEADLINE)).status == HealthCheckResponse.SERVING
    return call


@pytest.mark.slow
@pytest.mark.postgres
async def test_two_workers_serve_one_is_replaced_and_both_stop_together(postgres_url: str, tmp_path: Path) -> None:
    key = new_key()
    system_of = partial(run_server_process, WORKERS="2", SHUTDOWN_GRACE_SECONDS="60", ENCRYPTION_KEY=key)
    async with system_of(tmp_path, postgres_url) as system:
        command = system.command
        assert set(command.serving["pids"]) == {"server-1", "server-2", "sidecar"}
        ada = await system.connect("ada")  # over the sidecar, which calls either of them
        async with connections(system.grpc_address) as channels:
            watches = [await watch(channel) for channel in channels]

            os.kill(command.pid("server-1"), signal.SIGKILL)
            await command.wait_for_output('{"name": "server-1", "pids"')
            survivors = [number for number, call in enumerate(watches) if not call.done()]
            assert 0 < len(survivors) < CONNECTIONS  # each worker had some of the connections
            read = pb.GetCredentialsRequest(integration_id=ada, user_id="ada")
            for number, channel in enumerate(channels):
                service = IntegrationServiceStub(channel)
                # Those of the other worker have noticed nothing; those of the dead one connect again.
                await service.GetCredentials(read, timeout=DEADLINE, wait_for_ready=number not in survivors)
            assert [number for number in survivors if watches[number].done()] == []
            (restarted,) = replaced_events(command, "process_restarted")
            assert restarted["pids"]["server-2"] == command.pid("server-2")
            assert restarted["grpc"] == system.grpc_address

            # Both finish what is under way: the callback of a browser that waits for the provider.
            location = await system.decide(await system.begin("bob"), account="grace")
            held = HeldResponse()
            system.sandbox.behaviour = replace(system.sandbox.behaviour, faults={"token": held})
            callback = asyncio.ensure_future(system.follow(location))
            await held.wait_for_requests(1)
            command.send(signal.SIGTERM)
            for number in survivors:
                assert (await watches[number].read()).status == HealthCheckResponse.NOT_SERVING
                watches[number].cancel()
            held.released.set()
            assert (await callback).status_code == 200
        finished = await command.finished()
        assert (finished.code, "process_killed" in finished.err) == (0, False)
        # Each process that has written has a chain of its own.
        verified = await run(tmp_path, server_environment(postgres_url, ENCRYPTION_KEY=key), "audit", "verify")
        assert verified.code == 0, verified
        assert int(verified.out.partition(": ")[2].partition(" chains")[0]) >= 2


async def test_a_port_in_use_and_an_invalid_number_of_workers_are_reported_once(
    sqlite_url: str, tmp_path: Path
) -> None:
    environment = server_environment(sqlite_url, WORKERS="2")
    with claimed_port(settings_for(sqlite_url).grpc_address, 1) as claim:
        taken = str(claim.address)
        async with grpc_listener(taken):
            for changes, named in (
                ({"GRPC_ADDRESS": taken}, f"GRPC_ADDRESS: cannot listen on {taken}: address already in use; stop"),
                ({"WORKERS": "0"}, "WORKERS: "),
                ({"WORKERS": "abc"}, "WORKERS: "),
                ({"DATABASE_URL": f"sqlite:///{tmp_path / 'none' / 'x.db'}", "DEV_MODE": "false"}, "migrate"),
            ):
                finished = await run(tmp_path, {**environment, **changes}, "serve")
                lines = [line for line in finished.err.splitlines() if named in line]
                assert (finished.code, len(lines)) == (1, 1), finished
                assert "Traceback" not in finished.err


@asynccontextmanager
async def grpc_listener(address: str) -> AsyncIterator[None]:
    """An unrelated gRPC server, which shares its port with whoever wants to."""
    server = grpc.aio.server()
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


# --- quotas ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def two_workers(database_url: str, *, shares_counts: bool, **settings: str) -> AsyncIterator[str]:
    """Two workers in this process; their address. Without `shares_counts`, a negative control, each counts alone."""
    memory = SharedMemory(2)
    async with AsyncExitStack() as stack:
        chosen = settings_for(database_url, **settings)
        claim = stack.enter_context(claimed_port(chosen.grpc_address, 2))
        chosen = chosen.model_copy(update={"grpc_address": claim.address})
        link = stack.enter_context(new_sidecar_link(2))
        for number in range(2):
            worker = Worker.of(memory, number)
            if not shares_counts:
                worker = replace(worker, counts=LocalCounts())
            server = running_grpc_server(chosen, {}, link.of_worker(number), worker=worker)
            await stack.enter_async_context(server)
        yield str(claim.address)


async def admitted_streams(address: str, user_id: str = "") -> int:
    """The streams that the server leaves open, of one over each of many connections."""
    admitted = 0
    async with connections(address, 40) as channels:
        for channel in channels:
            call = IntegrationServiceStub(channel).WatchIntegrations(pb.WatchIntegrationsRequest(user_id=user_id))
            try:
                await asyncio.wait_for(call.read(), DEADLINE)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017
                continue
            admitted += 1
    return admitted


LIMITS = [
    ({"CALLER_MAX_CONCURRENCY": "5"}, "", 5),
    ({"CALLER_MAX_STREAMS": "4"}, "", 4),
    ({"CALLER_MAX_STREAMS_PER_USER": "3"}, "ada", 3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "user_id", "limit"), LIMITS)
async def test_a_quota_of_what_is_under_way_holds_over_both_workers(
    settings: dict[str, str], user_id: str, limit: int, sqlite_url: str
) -> None:
    async with two_workers(sqlite_url, shares_counts=True, **settings) as address:
        assert await admitted_streams(address, user_id) == limit


@pytest.mark.slow
async def test_negative_control_workers_that_count_alone_admit_twice_as_many(sqlite_url: str) -> None:
    settings, user_id, limit = LIMITS[0]
    async with two_workers(sqlite_url, shares_counts=False, **settings) as address:
        assert await admitted_streams(address, user_id) == 2 * limit
