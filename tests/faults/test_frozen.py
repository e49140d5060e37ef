"""A server is frozen (SIGSTOP) at any moment of its refreshes, past its lease, while another goes on; then it wakes.

Nothing is lost, whether the provider gives a grace or rotates strictly, no token is spent twice where it is strict, and
each row ends with the newest.
"""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import grpc.aio
import pytest

from integration_server.sandbox import Fault
from tests.end_to_end.nursery import Nursery
from tests.end_to_end.replicas import forced, running_replicas
from tests.faults.conftest import Trial
from tests.faults.crowd import (
    LEASE,
    PATIENCE,
    Window,
    connected,
    lost_of,
    require_newest,
    told,
    usual_time,
    versions,
    windows,
)

FREEZES = 20
MEMBERS = 8
SLOW = Fault(delay=0.02, work_first=True)
GRACE = 600
NAPS = (1.2 * LEASE, 3.5 * LEASE)  # seconds: past the lease, and past the time in which a lost call is waited for


@pytest.mark.parametrize("grace", [0, GRACE], ids=["strict", "grace"])
async def test_nothing_is_lost_when_a_server_is_frozen(
    trial: Trial, nursery: Nursery, tmp_path: Path, database_url: str, grace: int
) -> None:
    seen: Counter[Window] = Counter()
    overtaken = 0
    async with running_replicas(tmp_path, database_url, 2, lease=LEASE, grace=grace, start=nursery.serving) as pair:
        other, sleeper = pair.clients
        members = await connected(other, MEMBERS)
        pair.behave(faults={"token": SLOW})
        await usual_time(sleeper, members)  # connects it to everything
        span = 1.2 * await usual_time(sleeper, members)
        for number in trial.rounds(FREEZES):
            chance = trial.chance(number)
            before = await versions(database_url)
            asleep = [asyncio.create_task(forced(sleeper, m.integration_id, m.user_id)) for m in members]
            await asyncio.sleep(chance.uniform(0, span))
            pair.commands[1].send(signal.SIGSTOP)
            found = await windows(database_url, before)
            seen.update(found.values())

            nap = asyncio.create_task(asyncio.sleep(chance.choice(NAPS)))
            going_on = chance.sample(members, MEMBERS // 2)  # the others are left to the sleeper
            while not nap.done():
                outcomes = await asyncio.gather(
                    *(forced(other, m.integration_id, m.user_id) for m in going_on), return_exceptions=True
                )
                overtaken += sum(not isinstance(outcome, BaseException) for outcome in outcomes)
                await asyncio.wait([nap], timeout=0.1)
            pair.commands[1].send(signal.SIGCONT)
            woken = await asyncio.gather(*asleep, return_exceptions=True)
            unexpected = [
                outcome
                for outcome in woken
                if isinstance(outcome, BaseException)
                and not (isinstance(outcome, grpc.aio.AioRpcError) and outcome.code() is grpc.StatusCode.UNAVAILABLE)
            ]
            assert not unexpected, f"round {number}"

            await nothing_spilled(tmp_path)
            assert not await lost_of(pair, members), f"round {number}"
            if not grace:
                assert set(pair.refreshes()) == {"ok"}, f"round {number}: a refresh token was sent twice"
            await require_newest(pair, members)
            trial.say(f"{number} freezes: {told(seen)}; {overtaken} refreshes by the other server meanwhile")


def is_spilled(directory: Path) -> bool:
    return any(directory.glob("spill/*.refresh"))


async def nothing_spilled(directory: Path) -> None:
    """Wait for what woke up without a connection, and is kept on disk until it has one."""
    async with asyncio.timeout(PATIENCE):
        while is_spilled(directory):  # noqa: ASYNC110  # another process sets no event of ours
            await asyncio.sleep(0.1)
