"""A rotation of 100,000 rows under load by a command that is killed 20 times. `make test-rotation` runs it."""

import os
import re
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from integration_server.storage.data_keys import describe_data_keys
from integration_server.storage.engine import open_database
from tests.end_to_end.key_rotation import (
    fill,
    find_read_failures,
    kill_rotation,
    peak_memory,
    run_readers,
    run_rotation,
)
from tests.end_to_end.processes import serving
from tests.end_to_end.system import clients_of
from tests.end_to_end.test_key_rotation import environment_for, run_command
from tests.faults.conftest import FaultTrial

ROWS = int(os.environ.get("ROTATION_ROWS", "100000"))
KILLS = 20
SERVERS = 2
READERS = 8
DEADLINE = 3600.0  # seconds for a rotation: many times what it takes


@pytest.mark.slow
async def test_every_value_is_readable_and_no_call_fails_during_rotations(
    tmp_path: Path, database_url: str, trial: FaultTrial
) -> None:
    rng = trial.rng(0)
    kills_needed = len(trial.rounds(KILLS))
    environment = environment_for(tmp_path, database_url)
    await fill(database_url, environment["ENCRYPTION_KEY"], ROWS)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(database_url))
        commands = [await stack.enter_async_context(serving(tmp_path, environment)) for _ in range(SERVERS)]
        clients = [
            await stack.enter_async_context(clients_of(command.serving["grpc"], command.serving["sidecar"]))
            for command in commands
        ]
        start_time = time.monotonic()
        async with run_readers(clients, ROWS, READERS, rng) as load:
            kills = 0
            while kills < kills_needed:
                kills += await kill_rotation(tmp_path, database, environment, delay=rng.uniform(0, 1))
            finished, *_ = await run_rotation(tmp_path, environment, DEADLINE)
        assert finished.code == 0, finished.err
        assert load.failures == []
        keys = await describe_data_keys(database)
        assert keys[-1].is_rotation_complete
        trial.report(
            f"killed {kills} times over {len(keys) - 1} rotations, finished in {time.monotonic() - start_time:.0f} s; "
            f"meanwhile {load.calls:,} calls, none failed"
        )
        assert await find_read_failures(clients, ROWS) == []
        trial.report(f"all {ROWS:,} rows read")

        start_time = time.monotonic()
        async with run_readers(clients, ROWS, READERS, rng) as load:
            finished, peak, cpu = await run_rotation(tmp_path, environment, DEADLINE)
        assert finished.code == 0, finished.err
        assert reencrypted(finished.out) >= ROWS  # and the keys of audit chains
        assert load.failures == []
        took = time.monotonic() - start_time
        server_peak = max(peak_memory(command.pid("server")) for command in commands)
        trial.report(
            f"once more, undisturbed: {took:.0f} s, {ROWS / took:,.0f} rows/s with start and waits, beside "
            f"{load.calls / took:,.0f} calls/s, none failed; CPU of the command: {cpu:.0f} s, "
            f"{cpu / ROWS * 1e6:.0f} µs a row; peak memory: command {peak} MiB, server {server_peak} MiB"
        )
        trial.report(finished.out.strip().splitlines()[-1])

        newest = (await describe_data_keys(database))[-1].key_id
        for key in await describe_data_keys(database):
            if key.key_id != newest:
                await remove(tmp_path, environment, key.key_id)
        assert [key.key_id for key in await describe_data_keys(database)] == [newest]
        assert await find_read_failures(clients, ROWS) == []
        trial.report("former keys removed; all rows still read")


def reencrypted(said: str) -> int:
    """The number of re-encrypted values that the command reports."""
    found = re.search(r"([\d,]+) values were re-encrypted", said)
    assert found, said
    return int(found[1].replace(",", ""))


async def remove(directory: Path, environment: dict[str, str], key_id: str) -> None:
    finished = await run_command(directory, environment, "keys", "remove", key_id, "--force")
    assert finished.code == 0, finished.err
