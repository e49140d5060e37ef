"""Hostile clients attack a server process: another caller is served, and memory and log stay within their bounds.

Latencies are not checked, because the machine is busy with tests; `make bench ARGS="hostile-clients"` measures them.
The memory bound is per attack.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import pytest

from benchmarks.attacks import ATTACKS, Target, run_attack
from benchmarks.harness import load
from benchmarks.hostile_clients import MAX_LOG_GROWTH, MAX_MEMORY_GROWTH, AuthenticatedServer, authenticated_server
from benchmarks.system import DatabaseKind
from integrations.v1 import integration_service_pb2 as pb
from tests import http2_frames as http2

pytestmark = pytest.mark.slow

SECONDS = 5.0
RATE = 20.0  # calls of the victim per second
HTTP_ATTACKS = ("one-byte-chunks", "unknown-webhooks", "kept-alive-connections")
METHODS = (
    *(
        f"/integrations.v1.IntegrationService/{method.name}"
        for method in pb.DESCRIPTOR.services_by_name["IntegrationService"].methods
    ),
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/no.such.Service/Method",
)
REQUEST = pb.GetIntegrationRequest(integration_id=1, user_id="ada").SerializeToString()


@pytest.fixture
async def server() -> AsyncIterator[AuthenticatedServer]:
    async with authenticated_server(DatabaseKind.SQLITE, SECONDS, has_quotas=True) as running:
        yield running


def logged(server: AuthenticatedServer) -> Sequence[str]:
    """The lines of the server's log."""
    return server.system.servers[0].log.read_text().splitlines()


@pytest.mark.parametrize(
    "attacks",
    [HTTP_ATTACKS, ["worst-messages"], [name for name in ATTACKS if name not in {*HTTP_ATTACKS, "worst-messages"}]],
    ids=["http", "authenticated", "grpc"],
)
async def test_attacks_at_once_affect_no_other_caller(server: AuthenticatedServer, attacks: Sequence[str]) -> None:
    await load(server.calls, RATE, 1, server.system.cpu_seconds)
    memory, log = server.system.memory_bytes(), server.system.log_bytes()

    sent, victim = await asyncio.gather(
        run_attack(server.target, *attacks),
        load(server.calls, RATE, SECONDS + 2, server.system.cpu_seconds),
    )

    assert sent  # on a busy machine, few
    assert not victim.failures
    assert server.system.memory_bytes() - memory <= MAX_MEMORY_GROWTH * len(attacks)
    assert server.system.log_bytes() - log <= MAX_LOG_GROWTH * SECONDS
    assert not any("Traceback" in line or "unhandled_exception" in line for line in logged(server))


async def test_clients_that_go_at_any_time_during_any_call_are_no_fault(server: AuthenticatedServer) -> None:
    """They reset the stream, disconnect, or let the deadline pass, with and without a token that is valid."""
    randomness = random.Random(20)

    for _ in range(20):
        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(leave_calls(server.target, randomness, with_token=number % 2 == 0))
    victim = await load(server.calls, RATE, 1, server.system.cpu_seconds)

    assert not victim.failures
    events = {json.loads(line)["event"] for line in logged(server)}
    allowed = {"serving", "ready", "rpc", "unauthenticated", "rpc_rejected", "http_request", "calls_not_served"}
    assert events <= allowed


async def leave_calls(target: Target, randomness: random.Random, *, with_token: bool) -> None:
    """Begin calls of every method and shape, and leave each of them."""
    _, writer = await asyncio.open_connection(target.grpc_host, target.grpc_port)
    with suppress(ConnectionError):
        writer.write(http2.opening())
        await asyncio.sleep(0.02)
        for stream in range(1, 100, 2):
            writer.write(call_of(stream, target, randomness, with_token=with_token))
            await asyncio.sleep(randomness.choice([0, 0, 0.001, 0.003, 0.01]))
            if randomness.random() < 0.9:
                writer.write(http2.reset(stream))
    writer.transport.abort()


def call_of(stream: int, target: Target, randomness: random.Random, *, with_token: bool) -> bytes:
    """The frames of a call: without or with a message, and without or with the end of the stream."""
    metadata = [("authorization", f"Bearer {target.token}")] if with_token else []
    if randomness.random() < 0.3:
        metadata.append(("grpc-timeout", f"{randomness.choice([1, 5, 20])}m"))
    block, is_complete = http2.call_headers(randomness.choice(METHODS), metadata), randomness.random() < 0.5
    if randomness.random() < 0.4:
        return http2.headers(stream, block, end_stream=is_complete)
    return http2.headers(stream, block) + http2.message(stream, REQUEST, end_stream=is_complete)
