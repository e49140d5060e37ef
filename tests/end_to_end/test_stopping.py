"""Stopping a server: NOT_SERVING first, calls under way finish, then it ends with 0, and soon where nothing is."""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.faults import Held
from tests.end_to_end.processes import running_process

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SOON = 5.0  # seconds; the grace for calls under way is 20, and a watch is none of them


async def test_a_call_under_way_finishes_after_health_says_no_more(sqlite_url: str, tmp_path: Path) -> None:
    async with running_process(tmp_path, sqlite_url) as system:
        integration_id = await system.connect()
        watch = system.health.Watch(HealthCheckRequest())
        assert (await watch.read()).status == SERVING

        held = Held()
        system.sandbox.behaviour = replace(system.sandbox.behaviour, faults={"token": held})
        refresh = pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True)
        under_way = asyncio.ensure_future(system.service.RefreshToken(refresh))
        await held.reached.wait()

        system.command.send(signal.SIGTERM)
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() == grpc.aio.EOF
        assert not under_way.done()
        assert system.command.process.poll() is None

        held.released.set()
        assert (await under_way).refreshed
        assert (await system.command.finished()).code == 0
        assert [call.outcome for call in system.sandbox.token_calls] == ["ok", "ok"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_server_ends_soon_although_health_is_watched(
    number: signal.Signals, sqlite_url: str, tmp_path: Path
) -> None:
    async with running_process(tmp_path, sqlite_url) as system:
        watches = [system.health.Watch(HealthCheckRequest(service=service)) for service in ("", "liveness", "unknown")]
        for watch in watches:
            await watch.read()
        system.command.send(number)
        finished = await system.command.finished(within=SOON)
        assert finished.code == 0
        assert "Traceback" not in finished.err
        assert finished.err.strip().splitlines()[-1].count('"event": "stopped"') == 1


async def test_what_began_before_the_stop_is_kept(sqlite_url: str, tmp_path: Path) -> None:
    """A caller that gives up does not take the refresh with it, nor does the stop: the rotated token is stored."""
    async with running_process(tmp_path, sqlite_url) as system:
        integration_id = await system.connect()
        held = Held()
        system.sandbox.behaviour = replace(system.sandbox.behaviour, faults={"token": held})
        refresh = pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True)
        under_way = asyncio.ensure_future(system.service.RefreshToken(refresh))
        await held.reached.wait()
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)
        system.command.send(signal.SIGINT)
        held.released.set()
        assert (await system.command.finished()).code == 0
        assert '"event": "refreshed"' in system.command.output
