"""Servers behind a real Envoy are restarted under load, and lose their database: no call fails that need not."""

import asyncio
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import httpx
import pytest

from integration_server.storage.schema import migrate
from tests.end_to_end.fleet import ACCOUNTS, Fleet, Load, Replica, run_fleet
from tests.end_to_end.replicas import wait_until
from tests.envoy import SKIP_REASON, are_healthy, find_envoy, is_ejected
from tests.postgres import PostgresServer, run_postgres

pytestmark = [
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.skipif(find_envoy() is None, reason=SKIP_REASON),
]

ROUNDS = 3
DEFAULT_DRAIN = "5"  # `DRAIN_SECONDS` outside dev mode
RESTARTS, MAX_RESTARTS = 4, 12


async def restart_all(fleet: Fleet, load: Load) -> None:
    """Restart the replicas one after the other."""
    for replica in fleet.replicas:
        await fleet.restart(replica, load)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("part", [1, 2])
async def test_six_restarts_under_load_fail_no_call(part: int, workers: str, postgres_url: str, tmp_path: Path) -> None:
    """More than twenty in all parts. Envoy repeats no call."""
    async with run_fleet(tmp_path, postgres_url, WORKERS=workers) as fleet:
        load = Load(fleet.clients)
        async with load.running():
            for _ in range(ROUNDS):
                await restart_all(fleet, load)
                assert load.failures == []
        assert load.failures == []
        assert load.stops >= ROUNDS  # each stream was at one of the replicas


async def restart_with_its_own_drain(fleet: Fleet, replica: Replica, load: Load) -> bool:
    """Restart a replica that ends its drain by itself; whether Envoy had noticed the drain well before its end.

    On a machine that is too busy to run Envoy's health checks within the drain, no server could help.
    """
    begin = time.monotonic()
    restarting = asyncio.create_task(fleet.restart(replica, load))
    await fleet.envoy.wait_until(lambda healths: all(is_ejected(healths[address]) for address in replica.addresses))
    was_noticed = time.monotonic() - begin < float(replica.environment["DRAIN_SECONDS"]) - 1
    await restarting
    return was_noticed


async def test_restarts_that_wait_the_default_drain_fail_no_call(postgres_url: str, tmp_path: Path) -> None:
    """Nothing but the setting ends the drain. Envoy repeats no call."""
    async with run_fleet(tmp_path, postgres_url, DRAIN_SECONDS=DEFAULT_DRAIN) as fleet:
        load, counted = Load(fleet.clients), 0
        async with load.running():
            for replica in islice(cycle(fleet.replicas), MAX_RESTARTS):
                if await restart_with_its_own_drain(fleet, replica, load):
                    assert load.failures == []
                    counted += 1
                elif load.failures:
                    pytest.skip("the machine is too busy for Envoy's health checks")
                if counted == RESTARTS:
                    break
        assert load.failures == []
        if counted < RESTARTS:
            pytest.skip("the machine is too busy for Envoy's health checks")
        assert load.stops >= 1  # streams ended with a cursor, and were resumed


async def test_negative_control_without_the_drain_calls_fail(postgres_url: str, tmp_path: Path) -> None:
    async with run_fleet(tmp_path, postgres_url, DRAIN_SECONDS="0") as fleet:
        load = Load(fleet.clients)
        async with load.running():
            for _ in range(ROUNDS):
                await restart_all(fleet, load)
                if load.failures:
                    break
        assert load.failures


@pytest.fixture
def own_database() -> Iterator[tuple[PostgresServer, str]]:
    """A PostgreSQL server for one test, and a migrated database."""
    with run_postgres() as server, server.new_database() as url:
        asyncio.run(migrate(url))
        yield server, url


async def test_envoy_ejects_a_server_without_its_database_and_readmits_it(
    own_database: tuple[PostgresServer, str], tmp_path: Path
) -> None:
    database, url = own_database
    async with run_fleet(tmp_path, url, replicas=1, retries=True) as fleet:
        number = await fleet.clients.connect(account=ACCOUNTS[0])
        path = f"{fleet.envoy.url}/api/v1/integrations/{number}"

        async def is_served() -> bool:
            response = await fleet.clients.browser.get(path, params={"user_id": "ada"})
            return response.status_code == httpx.codes.OK

        assert await is_served()
        await asyncio.to_thread(database.stop)
        await fleet.envoy.wait_until(lambda healths: all(map(is_ejected, healths.values())))
        refused = await fleet.clients.browser.get(path, params={"user_id": "ada"})
        assert (refused.status_code, refused.json()["code"]) == (503, 14)
        assert "upstream" in refused.json()["message"]  # Envoy's own: no server was asked

        await asyncio.to_thread(database.start)
        await fleet.envoy.wait_until(are_healthy)
        await wait_until(is_served)
        assert await fleet.clients.bearer_token(number)
