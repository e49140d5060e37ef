"""A server is frozen (SIGSTOP) during its refreshes, past its lease, while another continues; then it resumes.

No token is lost, with a grace period and with strict rotation; with strict rotation no token is used twice; each row
ends with the newest token.
"""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import grpc.aio
import pytest

from integration_server.sandbox.behaviour import Fault
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.replicas import force_refresh, run_replicas
from tests.faults.conftest import FaultTrial
from tests.faults.load_fixture import (
    LEASE,
    TIMEOUT,
    RefreshProgress,
    assert_newest_token,
    connect_members,
    describe_progress,
    find_lost,
    measure_refresh_time,
    refresh_progress,
    versions,
)

FREEZES = 20
MEMBERS = 8
SLOW = Fault(delay=0.02, handle_first=True)
GRACE = 600
FREEZE_SECONDS = (
    1.2 * LEASE,
    3.5 * LEASE,
)  # seconds: past the lease, and past the wait for a lost call


@pytest.mark.parametrize("grace", [0, GRACE], ids=["strict", "grace"])
async def test_no_token_is_lost_when_a_server_is_frozen(
    trial: FaultTrial, prefork: PreforkServer, tmp_path: Path, database_url: str, grace: int
) -> None:
    seen: Counter[RefreshProgress] = Counter()
    overtaken = 0
    async with run_replicas(tmp_path, database_url, 2, lease=LEASE, grace=grace, start=prefork.serving) as pair:
        other, frozen_client = pair.clients
        members = await connect_members(other, MEMBERS)
        pair.change_behaviour(faults={"token": SLOW})
        await measure_refresh_time(frozen_client, members)  # opens its connections
        span = 1.2 * await measure_refresh_time(frozen_client, members)
        for number in trial.rounds(FREEZES):
            rng = trial.rng(number)
            before = await versions(database_url)
            frozen_calls = [
                asyncio.create_task(force_refresh(frozen_client, m.integration_id, m.user_id)) for m in members
            ]
            await asyncio.sleep(rng.uniform(0, span))
            pair.commands[1].send(signal.SIGSTOP)
            found = await refresh_progress(database_url, before)
            seen.update(found.values())

            freeze = asyncio.create_task(asyncio.sleep(rng.choice(FREEZE_SECONDS)))
            other_members = rng.sample(members, MEMBERS // 2)  # the other leases belong to the frozen server
            while not freeze.done():
                outcomes = await asyncio.gather(
                    *(force_refresh(other, m.integration_id, m.user_id) for m in other_members), return_exceptions=True
                )
                overtaken += sum(not isinstance(outcome, BaseException) for outcome in outcomes)
                await asyncio.wait([freeze], timeout=0.1)
            pair.commands[1].send(signal.SIGCONT)
            frozen_outcomes = await asyncio.gather(*frozen_calls, return_exceptions=True)
            unexpected = [
                outcome
                for outcome in frozen_outcomes
                if isinstance(outcome, BaseException)
                and not (isinstance(outcome, grpc.aio.AioRpcError) and outcome.code() is grpc.StatusCode.UNAVAILABLE)
            ]
            assert not unexpected, f"round {number}"

            await wait_for_empty_journals(tmp_path)
            assert not await find_lost(pair, members), f"round {number}"
            if not grace:
                assert set(pair.refreshes()) == {"ok"}, f"round {number}: a refresh token was sent twice"
            await assert_newest_token(pair, members)
            trial.report(
                f"{number} freezes: {describe_progress(seen)}; {overtaken} refreshes by the other server meanwhile"
            )


def is_journaled(directory: Path) -> bool:
    return any(directory.glob("refresh-journal/*.refresh"))


async def wait_for_empty_journals(directory: Path) -> None:
    """Wait until the journals are empty: a server that resumes without a connection journals its refreshes."""
    async with asyncio.timeout(TIMEOUT):
        while is_journaled(directory):  # noqa: ASYNC110  # another process sets no event of ours
            await asyncio.sleep(0.1)
