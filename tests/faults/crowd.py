"""Many integrations, each of a user of its own, and what a fault left of their refreshes."""

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
from tests.end_to_end.refusals import read_refusal
from tests.end_to_end.replicas import Replicas, forced, status_of
from tests.end_to_end.system import Clients

LEASE = 2  # seconds: more than a refresh takes on a busy machine; short enough that naps end before statements time out
PATIENCE = 60.0  # seconds until what becomes of a refresh is known: many times what it takes


class Window(StrEnum):
    """Where in a refresh the process was, as far as the database tells."""

    NOT_BEGUN = "before the claim"
    CLAIMED = "claimed, not committed"
    COMMITTED = "committed"


def told(windows: Counter[Window]) -> str:
    """How many of each, for people."""
    return ", ".join(f"{windows[window]} {window}" for window in Window)


@dataclass(frozen=True, slots=True)
class Member:
    """An integration and its user."""

    integration_id: int
    user_id: str


async def connected(clients: Clients, size: int) -> list[Member]:
    """So many, connected."""
    users = [f"user-{number}" for number in range(size)]
    return [Member(await clients.connect(user), user) for user in users]


async def versions(database_url: str) -> dict[int, int]:
    """Every integration's version."""
    rows = await fetch(database_url, select(integrations.c.integration_id, integrations.c.version))
    return {row.integration_id: row.version for row in rows}


async def windows(database_url: str, before: dict[int, int]) -> dict[int, Window]:
    """How far each refresh has come since `before`."""
    query = select(integrations.c.integration_id, integrations.c.version, refresh_leases.c.owner).outerjoin(
        refresh_leases,
        (refresh_leases.c.integration_id == integrations.c.integration_id)
        & (refresh_leases.c.version == integrations.c.version),
    )
    found = {}
    for row in await fetch(database_url, query):
        if row.version > before[row.integration_id]:
            window = Window.COMMITTED
        else:
            window = Window.NOT_BEGUN if row.owner is None else Window.CLAIMED
        found[row.integration_id] = window
    return found


async def usual_time(clients: Clients, members: Sequence[Member]) -> float:
    """How many seconds it takes to refresh them all at once, when all is well."""
    begin = time.monotonic()
    await asyncio.gather(*(survives(clients, member) for member in members))
    return time.monotonic() - begin


async def survives(clients: Clients, member: Member) -> bool:
    """Whether it can be refreshed, once that is known; otherwise it needs reauthorization."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await forced(clients, member.integration_id, member.user_id)
            except grpc.aio.AioRpcError as error:
                if read_refusal(error).reason == "REAUTHORIZATION_REQUIRED":
                    return False
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)
            else:
                return True


async def lost_of(replicas: Replicas, members: Sequence[Member]) -> list[Member]:
    """Who needs reauthorization. Each of the others is active and has tokens that the provider takes."""
    clients = replicas.clients[0]
    alive = await asyncio.gather(*(survives(clients, member) for member in members))
    for member, survived in zip(members, alive, strict=True):
        status = await status_of(clients, member.integration_id, member.user_id)
        if survived:
            assert status == integration_pb2.STATUS_ACTIVE
            token = await clients.bearer_token(member.integration_id, member.user_id)
            assert replicas.sandbox.find_account(token) is not None, "shown as active, with a dead token"
        else:
            assert status == integration_pb2.STATUS_EXPIRED
    return [member for member, survived in zip(members, alive, strict=True) if not survived]


async def require_newest(replicas: Replicas, members: Sequence[Member]) -> None:
    """Each can be refreshed even where only the newest refresh token is taken."""
    grace = replicas.sandbox.behaviour.refresh_grace
    replicas.behave(refresh_grace=0)
    assert not await lost_of(replicas, members), "the row did not have the newest refresh token"
    replicas.behave(refresh_grace=grace)
