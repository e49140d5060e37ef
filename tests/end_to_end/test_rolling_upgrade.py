"""Replicas of two releases, with two schemas, serve side by side under load behind a real Envoy."""

import os
from pathlib import Path

import pytest
from sqlalchemy import text

from integration_server.storage.schema import SchemaError, migrate
from tests.end_to_end.commands import ROOT
from tests.end_to_end.databases import fetch
from tests.end_to_end.fleet import Fleet, Load, run_fleet
from tests.end_to_end.processes import run
from tests.envoy import SKIP_REASON, find_envoy
from tests.releases import CONTRACT, WRITTEN, newer_versions, next_release

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_envoy() is None, reason=SKIP_REASON)]


async def calls_of(fleet: Fleet) -> list[int]:
    """The calls that Envoy has sent to each replica."""
    counts = await fleet.envoy.request_counts()
    return [sum(counts[address] for address in replica.addresses) for replica in fleet.replicas]


async def expect_both_to_serve(fleet: Fleet, load: Load) -> None:
    """Wait for further calls of each kind. Both replicas get some of them, and none fails."""
    before = await calls_of(fleet)
    await load.reach(3)
    assert all(now > then for now, then in zip(await calls_of(fleet), before, strict=True))
    assert load.failures == []


async def test_two_releases_serve_side_by_side_and_no_call_fails(database_url: str, tmp_path: Path) -> None:
    release = {"PYTHONPATH": os.pathsep.join([str(next_release(tmp_path / "next")), str(ROOT / "generated")])}
    current = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "generated")])}
    async with run_fleet(tmp_path, database_url) as fleet:
        first, second = fleet.replicas
        load = Load(fleet.clients)
        async with load.running():
            await expect_both_to_serve(fleet, load)
            migrated = await run(tmp_path, {**first.environment, **release}, "migrate")
            assert migrated.code == 0, migrated.err
            await expect_both_to_serve(fleet, load)  # both are of the current release, on the next schema

            await fleet.restart(first, load, **release)
            await expect_both_to_serve(fleet, load)
            assert await written_rows(database_url) > 0

            await fleet.restart(second, load, **release)
            await expect_both_to_serve(fleet, load)
            await fleet.restart(first, load, **current)  # the operator goes back
            await expect_both_to_serve(fleet, load)
        assert load.failures == []


async def written_rows(database_url: str) -> int:
    """The rows that the next release has written."""
    (row,) = await fetch(database_url, text(f"SELECT count(*) FROM integrations WHERE extra = '{WRITTEN}'"))
    return int(row[0])


async def test_negative_control_calls_fail_on_a_contracted_schema(sqlite_url: str, tmp_path: Path) -> None:
    """A migration removes what the current release uses: its replicas have to stop before, and do not start after."""
    versions = newer_versions(tmp_path / "versions", ("contract", CONTRACT))
    async with run_fleet(tmp_path, sqlite_url) as fleet:
        load = Load(fleet.clients)
        async with load.running():
            await load.reach(1)
            assert load.failures == []
            await migrate(sqlite_url, versions=versions)
            await load.reach_failure()
    with pytest.raises(SchemaError, match="newer than this version supports"):
        await migrate(sqlite_url)
