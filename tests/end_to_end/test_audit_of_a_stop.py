"""SIGTERM while callers go on reading: each read whose response a caller has is in the audit log."""

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path

import grpc
import pytest

from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.commands import DEADLINE
from tests.end_to_end.processes import new_key, run, run_server_process, server_environment
from tests.end_to_end.test_workers import connections

CALLERS = 8
READS_BEFORE = 400  # in all, before the signal: more than one batch of the writer would take at once

pytestmark = pytest.mark.slow


@pytest.fixture(params=["1", pytest.param("2", marks=pytest.mark.postgres)])
def workers_and_database(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A number of workers, and a database that takes so many."""
    return request.param, request.getfixturevalue("sqlite_url" if request.param == "1" else "postgres_url")


async def test_no_read_of_a_server_that_stops_under_load_is_missing(
    workers_and_database: tuple[str, str], tmp_path: Path
) -> None:
    workers, database_url = workers_and_database
    key = new_key()
    answered: Counter[str] = Counter()
    begun: Counter[str] = Counter()

    async def read_until_the_end(channel: grpc.aio.Channel, purpose: str, integration_id: int) -> None:
        service = IntegrationServiceStub(channel)
        single = pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada")
        batch = pb.BatchGetCredentialsRequest(requests=[single, single, single])
        metadata = (("x-purpose", purpose),)
        while True:
            begun[purpose] += 4
            try:
                await service.GetCredentials(single, metadata=metadata, timeout=DEADLINE)
                answered[purpose] += 1
                response = await service.BatchGetCredentials(batch, metadata=metadata, timeout=DEADLINE)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                return
            answered[purpose] += sum(result.HasField("credentials") for result in response.results)

    async with run_server_process(tmp_path, database_url, WORKERS=workers, ENCRYPTION_KEY=key) as system:
        ada = await system.connect("ada")
        async with connections(system.grpc_address, CALLERS) as channels:
            callers = [
                asyncio.ensure_future(read_until_the_end(channel, f"caller {number}", ada))
                for number, channel in enumerate(channels)
            ]
            async with asyncio.timeout(DEADLINE):
                while answered.total() < READS_BEFORE:  # noqa: ASYNC110  # bounded
                    await asyncio.sleep(0.01)
            system.command.send(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*callers), DEADLINE)
        finished = await system.command.finished()
        assert (finished.code, "audit_entries_lost" in finished.err) == (0, False)

    environment = server_environment(database_url, ENCRYPTION_KEY=key)
    listed = await run(
        tmp_path, environment, "audit", "list", "--json", "--action", "read_credentials", "--limit", "100000"
    )
    entries = [json.loads(line) for line in listed.out.splitlines()]
    recorded: Counter[str] = Counter()
    for entry in entries:
        if entry["outcome"] == "OK":
            recorded[entry["purpose"]] += int(entry["call_count"])
    assert len(entries) < answered.total()  # equal reads have shared entries
    for purpose in begun:
        # One call of each caller has ended without a response, and may have been completed.
        assert answered[purpose] <= recorded[purpose] <= begun[purpose], purpose
