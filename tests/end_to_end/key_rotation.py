"""Helpers to rotate data keys with `keys rotate` beside running servers: rows, load, and killed commands."""

import asyncio
import base64
import random
import resource
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from sqlalchemy import insert

from integration_server.domain.credentials import ApiKey, AuthMethod
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.ports import NewIntegration
from integration_server.storage.data_keys import count_encrypted_values, describe_data_keys
from integration_server.storage.engine import Database, open_database
from integration_server.storage.integrations import new_integration_values
from integration_server.storage.key_encryption import KeyEncryptionKeys, LocalKey, parse_key
from integration_server.storage.keyring import open_keyring
from integration_server.storage.tables import integrations
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.commands import Command, CompletedCommand
from tests.end_to_end.processes import started
from tests.end_to_end.system import Clients

USER = UserId("ada")
_BATCH_SIZE = 1_000
_POLL_INTERVAL = 0.02


def api_key_of(integration_id: int) -> str:
    """The API key of the row with this id."""
    return base64.b64encode(f"key of {integration_id} ".encode() * 8).decode()


async def fill(database_url: str, encryption_key: str, rows: int) -> None:
    """Fill an empty database with connected integrations with the ids 1 to `rows`."""
    async with open_database(database_url) as database:
        cipher = CredentialCipher(await open_keyring(database, KeyEncryptionKeys(LocalKey(parse_key(encryption_key)))))
        for ids in _batches(rows):
            values = [await _row(cipher, integration_id) for integration_id in ids]
            async with database.write_transaction() as connection:
                await connection.execute(insert(integrations), values)


def _batches(rows: int, size: int = _BATCH_SIZE) -> Iterator[range]:
    return (range(first, min(first + size, rows + 1)) for first in range(1, rows + 1, size))


async def _row(cipher: CredentialCipher, integration_id: int) -> Mapping[str, Any]:
    new = NewIntegration(
        f"uid-{integration_id}", USER, "sandbox_api_key", AuthMethod.API_KEY, "", {}, IntegrationId(integration_id)
    )
    now = datetime.now(UTC)
    connected = new.as_stored(now).connected_to(None, None, now)
    return {
        **new_integration_values(new, now),
        "encrypted_credentials": await cipher.encrypt(connected, ApiKey(api_key_of(integration_id))),
        "connect_time": now,
    }


@dataclass(slots=True)
class Load:
    """The number of calls and the failures of a load."""

    calls: int = 0
    failures: list[str] = field(default_factory=list)


async def read(clients: Clients, integration_id: int, load: Load) -> None:
    """Read a row's credentials, and record whether they are right."""
    request = pb.GetCredentialsRequest(integration_id=integration_id, user_id=USER)
    load.calls += 1
    try:
        response = await clients.service.GetCredentials(request, timeout=60)
    except grpc.aio.AioRpcError as error:
        load.failures.append(f"{integration_id}: {error.code()} {error.details()}")
    else:
        if response.credentials.api_key.api_key != api_key_of(integration_id):
            load.failures.append(f"{integration_id}: another's key")


async def find_read_failures(clients: Sequence[Clients], rows: int) -> list[str]:
    """Read all rows, spread over the servers; the failures."""
    load = Load()
    for ids in _batches(rows, 200):  # few enough to get a database connection in time on a busy machine
        await asyncio.gather(*(read(clients[number % len(clients)], number, load) for number in ids))
    assert load.calls == rows
    return load.failures


@asynccontextmanager
async def run_readers(clients: Sequence[Clients], rows: int, readers: int, rng: random.Random) -> AsyncIterator[Load]:
    """Run readers of random rows, each with one call at a time, until the block ends."""
    load = Load()
    stop = asyncio.Event()

    async def keep_reading(number: int) -> None:
        while not stop.is_set():
            await read(clients[number % len(clients)], rng.randint(1, rows), load)

    tasks = [asyncio.create_task(keep_reading(number)) for number in range(readers)]
    try:
        yield load
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def peak_memory(process_id: int) -> int:
    """The peak memory of a process so far, in MiB; 0 if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    return 0


async def run_rotation(
    directory: Path, environment: Mapping[str, str], within: float
) -> tuple[CompletedCommand, int, float]:
    """Run `keys rotate` to its end; the result, its peak memory in MiB, and its CPU time in seconds."""
    before = _cpu_of_ended_commands()
    async with started(directory, environment, "keys", "rotate") as command:
        finishing = asyncio.create_task(command.finished(within))
        peak = 0
        while not finishing.done():
            peak = max(peak, peak_memory(command.pid("server")))
            await asyncio.wait([finishing], timeout=0.1)
        return await finishing, peak, _cpu_of_ended_commands() - before


def _cpu_of_ended_commands() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def kill_rotation(directory: Path, database: Database, environment: Mapping[str, str], delay: float) -> bool:
    """Run `keys rotate`, and send SIGKILL `delay` seconds after its first re-encryption. False if it ended before."""
    before = await _encrypted_by_newest(database)
    async with started(directory, environment, "keys", "rotate") as command:
        while await _encrypted_by_newest(database) == before:
            if command.process.poll() is not None:
                return _ended(command)
            await asyncio.sleep(_POLL_INTERVAL)
        with suppress(TimeoutError):
            await command.finished(within=delay)
            return _ended(command)
        command.send(signal.SIGKILL)
        finished = await command.finished()
        assert finished.code == -signal.SIGKILL
        return True


def _ended(command: Command) -> bool:
    assert command.process.returncode == 0, command.output
    return False


async def _encrypted_by_newest(database: Database) -> tuple[str, int]:
    newest = (await describe_data_keys(database))[-1].key_id
    return newest, await count_encrypted_values(database, newest)
