"""A shutdown: NOT_SERVING first, calls in flight complete, then exit code 0; soon if the server is idle."""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.faults import HeldResponse
from tests.end_to_end.processes import new_key, run_server_process

pytestmark = pytest.mark.slow

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
KEY = new_key()
SOON = 18.0  # seconds: less than the 20 that a server waits for calls in flight, of which a health watch is none


async def test_calls_in_flight_complete_after_health_reports_not_serving(sqlite_url: str, tmp_path: Path) -> None:
    async with run_server_process(tmp_path, sqlite_url) as system:
        adas_id, eves_id = await system.connect("ada"), await system.connect("eve")
        watch = system.health.Watch(HealthCheckRequest())
        assert (await watch.read()).status == SERVING

        held = HeldResponse()
        system.sandbox.behaviour = replace(system.sandbox.behaviour, faults={"token": held})
        waiting_call = asyncio.ensure_future(system.service.RefreshToken(refresh_of(adas_id, "ada")))
        cancelled_call = asyncio.ensure_future(system.service.RefreshToken(refresh_of(eves_id, "eve")))
        await held.wait_for_requests(2)
        cancelled_call.cancel()
        await asyncio.gather(cancelled_call, return_exceptions=True)

        system.command.send(signal.SIGTERM)
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() == grpc.aio.EOF
        assert not waiting_call.done()
        assert system.command.process.poll() is None

        held.released.set()
        assert (await waiting_call).refreshed
        finished = await system.command.finished()
        assert finished.code == 0
        # Rotated tokens are stored, also if no caller waits for them.
        assert finished.err.count('"event": "refresh_completed"') == 2


def refresh_of(integration_id: int, user_id: str) -> pb.RefreshTokenRequest:
    """The request to refresh now."""
    return pb.RefreshTokenRequest(integration_id=integration_id, user_id=user_id, force=True)


@pytest.mark.slow  # two servers that are not forked
async def test_an_idle_server_stops_soon_while_health_is_watched(sqlite_url: str, tmp_path: Path) -> None:
    async def stop(number: signal.Signals) -> None:
        directory = tmp_path / number.name
        directory.mkdir()
        async with run_server_process(directory, sqlite_url, forked=False, ENCRYPTION_KEY=KEY) as system:
            watches = [system.health.Watch(HealthCheckRequest(service=name)) for name in ("", "liveness", "unknown")]
            for watch in watches:
                await watch.read()
            system.command.send(number)
            finished = await system.command.finished(within=SOON)
            assert finished.code == 0
            assert "Traceback" not in finished.err
            assert '"event": "stopped"' in finished.err.strip().splitlines()[-1]

    await asyncio.gather(stop(signal.SIGTERM), stop(signal.SIGINT))
