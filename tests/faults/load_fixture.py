"""Many integrations, each with its own user, and the state of their refreshes after a fault."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import grpc.aio
from sqlalchemy import select

from integration_server.storage.tables import integrations, refresh_leases
from integrations.v1 import integration_pb2
from tests.end_to_end.databases import fetch
from tests.end_to_end.replicas import Replicas, force_refresh, status_of
from tests.end_to_end.rpc_errors import parse_rpc_error
from tests.end_to_end.system import Clients

LEASE = 2  # seconds: more than a refresh takes on a busy machine, and less than the timeout of statements
TIMEOUT = 60.0  # seconds until the outcome of a refresh is known: many times what it takes


class RefreshProgress(StrEnum):
    """The step of a refresh that the process had reached, according to the database."""

    NOT_BEGUN = "before the claim"
    CLAIMED = "claimed, not committed"
    COMMITTED = "committed"


def describe_progress(refresh_progress: Counter[RefreshProgress]) -> str:
    """The number of refreshes at each step, as text."""
    return ", ".join(f"{refresh_progress[progress]} {progress}" for progress in RefreshProgress)


@dataclass(frozen=True, slots=True)
class LoadedIntegration:
    """An integration and its user."""

    integration_id: int
    user_id: str


async def connect_members(clients: Clients, size: int) -> list[LoadedIntegration]:
    """Connect this many integrations."""
    users = [f"user-{number}" for number in range(size)]
    return [LoadedIntegration(await clients.connect(user), user) for user in users]


async def versions(database_url: str) -> dict[int, int]:
    """Every integration's version."""
    rows = await fetch(database_url, select(integrations.c.integration_id, integrations.c.version))
    return {row.integration_id: row.version for row in rows}


async def refresh_progress(database_url: str, before: dict[int, int]) -> dict[int, RefreshProgress]:
    """The step that each refresh has reached since `before`."""
    query = select(integrations.c.integration_id, integrations.c.version, refresh_leases.c.owner).outerjoin(
        refresh_leases,
        (refresh_leases.c.integration_id == integrations.c.integration_id)
        & (refresh_leases.c.version == integrations.c.version),
    )
    found = {}
    for row in await fetch(database_url, query):
        if row.version > before[row.integration_id]:
            progress = RefreshProgress.COMMITTED
        else:
            progress = RefreshProgress.NOT_BEGUN if row.owner is None else RefreshProgress.CLAIMED
        found[row.integration_id] = progress
    return found


async def measure_refresh_time(clients: Clients, members: Sequence[LoadedIntegration]) -> float:
    """The seconds that a concurrent refresh of all takes without faults."""
    begin = time.monotonic()
    await asyncio.gather(*(is_refreshable(clients, member) for member in members))
    return time.monotonic() - begin


async def is_refreshable(clients: Clients, member: LoadedIntegration) -> bool:
    """Whether the integration can be refreshed, once that is known; otherwise it requires reauthorization."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                await force_refresh(clients, member.integration_id, member.user_id)
            except grpc.aio.AioRpcError as error:
                if parse_rpc_error(error).reason == "REAUTHORIZATION_REQUIRED":
                    return False
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)
            else:
                return True


async def find_lost(replicas: Replicas, members: Sequence[LoadedIntegration]) -> list[LoadedIntegration]:
    """The integrations that require reauthorization. Asserts that the others are active with valid tokens."""
    clients = replicas.clients[0]
    refreshable = await asyncio.gather(*(is_refreshable(clients, member) for member in members))
    for member, is_refreshable_now in zip(members, refreshable, strict=True):
        status = await status_of(clients, member.integration_id, member.user_id)
        if is_refreshable_now:
            assert status == integration_pb2.STATUS_ACTIVE
            token = await clients.bearer_token(member.integration_id, member.user_id)
            assert replicas.sandbox.find_account(token) is not None, "shown as active, with a dead token"
        else:
            assert status == integration_pb2.STATUS_EXPIRED
    return [member for member, is_refreshable_now in zip(members, refreshable, strict=True) if not is_refreshable_now]


async def assert_newest_token(replicas: Replicas, members: Sequence[LoadedIntegration]) -> None:
    """Assert that each can be refreshed by a provider that accepts only the newest refresh token."""
    grace = replicas.sandbox.behaviour.refresh_grace
    replicas.change_behaviour(refresh_grace=0)
    assert not await find_lost(replicas, members), "the row did not have the newest refresh token"
    replicas.change_behaviour(refresh_grace=grace)
