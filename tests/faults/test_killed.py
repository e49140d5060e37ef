"""A server is killed (SIGKILL) at any moment of its refreshes: what can be kept is kept, and what cannot is told.

A provider with a grace period loses nothing. With strict rotation a refresh that was called and not committed may have
spent its token: that integration, and no other, needs reauthorization, and its token is not sent again.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import grpc.aio
import pytest

from integration_server.sandbox import Fault
from tests.end_to_end.nursery import Nursery
from tests.end_to_end.replicas import Replica, Replicas, forced, running_replicas
from tests.faults.conftest import Trial
from tests.faults.crowd import (
    LEASE,
    Member,
    Window,
    connected,
    lost_of,
    require_newest,
    told,
    usual_time,
    versions,
    windows,
)

KILLS = 200
AT_ONCE = 10  # servers that are started together, and killed one after the other
EACH = 5  # integrations that a server is refreshing when it is killed
ENOUGH = 100  # kills after which every window should have been hit
SLOW = Fault(delay=0.02, work_first=True)
GRACE = 600


async def kill(victim: Replica, members: Sequence[Member], after: float) -> None:
    """Have the victim refresh them all, and kill it after so many seconds."""
    refreshing = [asyncio.create_task(forced(victim.clients, m.integration_id, m.user_id)) for m in members]
    await asyncio.sleep(after)
    victim.command.send(signal.SIGKILL)
    await asyncio.gather(*refreshing, return_exceptions=True)


async def kill_some(
    replicas: Replicas, nursery: Nursery, groups: Sequence[Sequence[Member]], chances: Sequence[Random], span: float
) -> None:
    """Kill a server for each chance, while it refreshes a group of its own."""
    async with AsyncExitStack() as stack:
        victims = await asyncio.gather(*(stack.enter_async_context(replicas.joined(nursery.serving)) for _ in chances))
        for victim, members, chance in zip(victims, groups, chances, strict=False):
            await victim.clients.bearer_token(members[0].integration_id, members[0].user_id)  # connects it
            await kill(victim, members, chance.uniform(0, span))
    await asyncio.sleep(0.3)  # what was on its way to database and provider arrives


async def require_no_loop(replicas: Replicas, lost: Sequence[Member]) -> None:
    """The provider is not asked again, however often callers ask."""
    calls = replicas.sandbox.calls["token"]
    for member in lost:
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await forced(replicas.clients[0], member.integration_id, member.user_id)
    assert replicas.sandbox.calls["token"] == calls


@pytest.mark.parametrize("grace", [0, GRACE], ids=["strict", "grace"])
async def test_nothing_is_lost_unseen_when_a_server_is_killed(
    trial: Trial, nursery: Nursery, tmp_path: Path, database_url: str, grace: int
) -> None:
    seen: Counter[Window] = Counter()
    losses = 0
    async with running_replicas(tmp_path, database_url, 1, lease=LEASE, grace=grace, start=nursery.serving) as replicas:
        survivor = replicas.clients[0]
        members = await connected(survivor, AT_ONCE * EACH)
        groups = [members[start : start + EACH] for start in range(0, len(members), EACH)]
        replicas.behave(faults={"token": SLOW})
        async with replicas.joined(nursery.serving) as newcomer:  # new, as the victims are
            await newcomer.clients.bearer_token(members[0].integration_id, members[0].user_id)
            span = 1.5 * await usual_time(newcomer.clients, groups[0])
        trial.say(f"kills within {1000 * span:.0f} ms of the beginning")
        numbers = trial.rounds(KILLS)
        for start in range(0, len(numbers), AT_ONCE):
            chances = [trial.chance(number) for number in numbers[start : start + AT_ONCE]]
            before, calls = await versions(database_url), len(replicas.refreshes())
            await kill_some(replicas, nursery, groups, chances, span)
            found = await windows(database_url, before)
            involved = [member for group in groups[: len(chances)] for member in group]
            seen.update(found[member.integration_id] for member in involved)

            lost = await lost_of(replicas, involved)
            assert len(replicas.refreshes()) - calls <= 2 * len(involved)
            await require_no_loop(replicas, lost)
            if grace:
                assert not lost
            else:
                assert set(replicas.refreshes()) == {"ok"}, "a refresh token was sent twice"
                assert lost == [m for m in involved if found[m.integration_id] is Window.CLAIMED]
            losses += len(lost)
            for member in lost:
                await survivor.connect(member.user_id, integration_id=member.integration_id)
            trial.say(f"{start + len(chances)} kills: {told(seen)}; {losses} need reauthorization")
        await require_newest(replicas, members)
    if len(numbers) >= ENOUGH:
        assert all(seen[window] for window in Window), "no kill hit one of the windows"
