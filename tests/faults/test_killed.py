"""A server is killed (SIGKILL) during its refreshes: a lost token is never unnoticed.

With a grace period no token is lost. With strict rotation a refresh that was sent and not committed may have used its
token: that integration, and no other, keeps its access token; its refresh token is not sent again before that expires.
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

from integration_server.sandbox.behaviour import Fault
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.replicas import Replica, Replicas, force_refresh, run_replicas
from tests.faults.conftest import FaultTrial
from tests.faults.load_fixture import (
    LEASE,
    LoadedIntegration,
    RefreshProgress,
    assert_newest_token,
    connect_members,
    describe_progress,
    find_lost,
    measure_refresh_time,
    refresh_progress,
    versions,
)

KILLS = 200
AT_ONCE = 10  # servers that are started together, and killed one after another
EACH = 5  # integrations that a server is refreshing when it is killed
ENOUGH = 100  # kills after which every step should have been hit
SLOW = Fault(delay=0.02, handle_first=True)
GRACE = 600


async def kill(victim: Replica, members: Sequence[LoadedIntegration], after: float) -> None:
    """Refresh all integrations at the victim, and kill it after this many seconds."""
    refreshing = [asyncio.create_task(force_refresh(victim.clients, m.integration_id, m.user_id)) for m in members]
    await asyncio.sleep(after)
    victim.command.send(signal.SIGKILL)
    await asyncio.gather(*refreshing, return_exceptions=True)


async def kill_some(
    replicas: Replicas,
    prefork: PreforkServer,
    groups: Sequence[Sequence[LoadedIntegration]],
    chances: Sequence[Random],
    span: float,
) -> None:
    """Kill a server per random number generator, while it refreshes its own group."""
    async with AsyncExitStack() as stack:
        victims = await asyncio.gather(
            *(stack.enter_async_context(replicas.start_replica(prefork.serving)) for _ in chances)
        )
        for victim, members, rng in zip(victims, groups, chances, strict=False):
            await victim.clients.bearer_token(members[0].integration_id, members[0].user_id)  # opens its connections
            await kill(victim, members, rng.uniform(0, span))
    await asyncio.sleep(0.3)  # messages in flight to database and provider arrive


async def require_no_loop(replicas: Replicas, waiting: Sequence[LoadedIntegration]) -> None:
    """Assert that repeated calls send no request to the provider."""
    calls = replicas.sandbox.calls["token"]
    for member in waiting:
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await force_refresh(replicas.clients[0], member.integration_id, member.user_id)
    assert replicas.sandbox.calls["token"] == calls


@pytest.mark.parametrize("grace", [0, GRACE], ids=["strict", "grace"])
async def test_no_token_is_lost_unnoticed_when_a_server_is_killed(
    trial: FaultTrial, prefork: PreforkServer, tmp_path: Path, database_url: str, grace: int
) -> None:
    seen: Counter[RefreshProgress] = Counter()
    lost_calls = 0
    async with run_replicas(tmp_path, database_url, 1, lease=LEASE, grace=grace, start=prefork.serving) as replicas:
        remaining_client = replicas.clients[0]
        members = await connect_members(remaining_client, AT_ONCE * EACH)
        groups = [members[start : start + EACH] for start in range(0, len(members), EACH)]
        replicas.change_behaviour(faults={"token": SLOW})
        async with replicas.start_replica(prefork.serving) as newcomer:  # new, as the victims are
            await newcomer.clients.bearer_token(members[0].integration_id, members[0].user_id)
            span = 1.5 * await measure_refresh_time(newcomer.clients, groups[0])
        trial.report(f"kills within {1000 * span:.0f} ms of the beginning")
        numbers = trial.rounds(KILLS)
        for start in range(0, len(numbers), AT_ONCE):
            chances = [trial.rng(number) for number in numbers[start : start + AT_ONCE]]
            before, calls = await versions(database_url), len(replicas.refreshes())
            await kill_some(replicas, prefork, groups, chances, span)
            found = await refresh_progress(database_url, before)
            involved = [member for group in groups[: len(chances)] for member in group]
            seen.update(found[member.integration_id] for member in involved)

            is_claimed = {m: found[m.integration_id] is RefreshProgress.CLAIMED for m in involved}
            waiting = [] if grace else [member for member in involved if is_claimed[member]]
            assert not await find_lost(replicas, [member for member in involved if member not in waiting])
            assert len(replicas.refreshes()) - calls <= 2 * len(involved)
            await require_no_loop(replicas, waiting)
            if not grace:
                assert set(replicas.refreshes()) == {"ok"}, "a refresh token was sent twice"
            lost_calls += len(waiting)
            for member in waiting:
                token = await remaining_client.bearer_token(member.integration_id, member.user_id)
                assert replicas.sandbox.find_account(token) is not None, "the access token does not work"
                await remaining_client.connect(member.user_id, integration_id=member.integration_id)
            trial.report(f"{start + len(chances)} kills: {describe_progress(seen)}; {lost_calls} lost calls")
        await assert_newest_token(replicas, members)
    if len(numbers) >= ENOUGH:
        assert all(seen[progress] for progress in RefreshProgress), "no kill hit one of the windows"
