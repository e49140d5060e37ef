"""A thousand callers at four servers with an expired token: one request to the provider, one new token for all."""

import asyncio
from pathlib import Path

from integrations.v1 import integration_pb2
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.replicas import Replicas, expire_access_token, run_replicas, status_of
from tests.faults.conftest import FaultTrial

SERVERS = 4
CALLERS = 1000
ROUNDS = 200
LEASE = 30  # seconds, the default
REPORT_INTERVAL = 20  # rounds


async def stampede(replicas: Replicas, integration_id: int) -> tuple[set[str], list[str]]:
    """The tokens that the callers received, and the outcomes of the refreshes in the meantime."""
    await expire_access_token(replicas, integration_id)
    before = len(replicas.refreshes())
    tokens = await asyncio.gather(
        *(replicas.clients[number % SERVERS].bearer_token(integration_id) for number in range(CALLERS))
    )
    return set(tokens), replicas.refreshes()[before:]


async def test_a_thousand_callers_share_the_token_of_one_refresh(
    trial: FaultTrial, prefork: PreforkServer, tmp_path: Path, database_url: str
) -> None:
    async with run_replicas(tmp_path, database_url, SERVERS, lease=LEASE, start=prefork.serving) as replicas:
        integration_id = await replicas.clients[0].connect()
        tokens: set[str] = set()
        for number in trial.rounds(ROUNDS):
            got, calls = await stampede(replicas, integration_id)
            assert calls == ["ok"], f"round {number}: the token endpoint was called {calls}"
            assert len(got) == 1, f"round {number}: {len(got)} different tokens"
            assert not got & tokens, f"round {number}: the token of an earlier round"
            tokens |= got
            if number % REPORT_INTERVAL == 0:
                trial.report(f"{number} rounds, {number * CALLERS} callers, {len(tokens)} refreshes, no grant lost")
        assert set(replicas.refreshes()) == {"ok"}
        assert await status_of(replicas.clients[0], integration_id) == integration_pb2.STATUS_ACTIVE
