"""The `keys` commands beside running servers: a killed rotation, a rotation by age, and a new wrapping key."""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from moto.server import ThreadedMotoServer
from sqlalchemy import select, update

from integration_server.storage.data_keys import describe_data_keys
from integration_server.storage.engine import DatabaseTime, open_database
from integration_server.storage.key_encryption import KeyEncryptionKeys, LocalKey, parse_key
from integration_server.storage.keyring import open_keyring
from integration_server.storage.tables import audit_entries, data_keys, integrations
from tests.end_to_end.commands import CompletedCommand
from tests.end_to_end.databases import execute, fetch
from tests.end_to_end.key_rotation import fill, find_read_failures, kill_rotation, run_readers, run_rotation
from tests.end_to_end.processes import new_key, server_environment, serving, started
from tests.end_to_end.sandbox_declaration import declare_sandbox
from tests.end_to_end.system import Clients, clients_of
from tests.openbao import RunningOpenBao

pytestmark = pytest.mark.slow

ROWS = 300
KILLS = 1  # `make test-rotation` has 20
DEADLINE = 120.0  # seconds for a rotation: many times what it takes


def environment_for(directory: Path, database_url: str, **settings: str) -> dict[str, str]:
    """Settings for servers and commands that share a database and do not rotate by age."""
    providers = directory / "providers"
    providers.mkdir(exist_ok=True)
    declare_sandbox(providers, "http://127.0.0.1:1")  # no provider is called
    return server_environment(
        database_url,
        **{
            "PROVIDERS_DIR": str(providers),
            "REFRESH_JOURNAL_DIR": str(directory / "refresh-journal"),
            "DATA_KEY_ACTIVATION_SECONDS": "2",
            "DATA_KEY_MAX_AGE_DAYS": "0",
            "COLUMNS": "200",
            **settings,
        },
    )


@asynccontextmanager
async def run_servers(directory: Path, environment: dict[str, str], count: int) -> AsyncIterator[list[Clients]]:
    """Clients of this many servers."""
    async with AsyncExitStack() as stack:
        commands = [await stack.enter_async_context(serving(directory, environment)) for _ in range(count)]
        yield [
            await stack.enter_async_context(clients_of(command.serving["grpc"], command.serving["sidecar"]))
            for command in commands
        ]


async def run_command(directory: Path, environment: dict[str, str], *arguments: str) -> CompletedCommand:
    """Run a command to its end, with a deadline for a busy machine."""
    async with started(directory, environment, *arguments) as command:
        return await command.finished(DEADLINE)


async def data_key_ids(database_url: str) -> list[str]:
    async with open_database(database_url) as database:
        return [key.key_id for key in await describe_data_keys(database)]


async def reported_changes(database_url: str) -> set[tuple[str, str]]:
    """Caller and purpose of each key change in the audit log."""
    reported = select(audit_entries.c.caller, audit_entries.c.purpose).where(audit_entries.c.action == "change_keys")
    return {(row.caller, row.purpose) for row in await fetch(database_url, reported)}


async def test_a_killed_rotation_resumes_while_servers_keep_reading(tmp_path: Path, database_url: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    environment = environment_for(tmp_path, database_url)
    await fill(database_url, environment["ENCRYPTION_KEY"], ROWS)
    (old,) = await data_key_ids(database_url)
    async with run_servers(tmp_path, environment, 2) as clients, open_database(database_url) as database:
        async with run_readers(clients, ROWS, readers=4, rng=rng) as load:
            kills = [await kill_rotation(tmp_path, database, environment, rng.uniform(0, 0.05)) for _ in range(KILLS)]
            finished, *_ = await run_rotation(tmp_path, environment, DEADLINE)
        assert finished.code == 0, finished.err
        assert "encrypts all values now" in finished.out
        assert any(kills)
        assert load.calls
        assert load.failures == []

        refused = await run_command(tmp_path, environment, "keys", "remove", old)
        assert refused.code == 1
        assert "can be removed from" in refused.err
        removed = await run_command(tmp_path, environment, "keys", "remove", old, "--force")
        assert removed.code == 0, removed.err
        assert old not in await data_key_ids(database_url)
        assert await find_read_failures(clients, ROWS) == []
    async with run_servers(tmp_path, environment, 1) as clients:
        assert await find_read_failures(clients, ROWS) == []


@pytest.mark.quick_on("sqlite")
async def test_a_server_rotates_a_data_key_that_is_too_old(tmp_path: Path, database_url: str) -> None:
    environment = environment_for(tmp_path, database_url, DATA_KEY_MAX_AGE_DAYS="30")
    await fill(database_url, environment["ENCRYPTION_KEY"], 50)
    (old,) = await data_key_ids(database_url)
    aged = DatabaseTime(timedelta(days=-31))
    async with open_database(database_url) as database:
        keyring = await open_keyring(database, KeyEncryptionKeys(LocalKey(parse_key(environment["ENCRYPTION_KEY"]))))
        await keyring.change(lambda connection: connection.execute(update(data_keys).values(active_time=aged)))
    async with run_servers(tmp_path, environment, 2) as clients:
        async with asyncio.timeout(DEADLINE):
            while not await is_rotation_complete(database_url, keys=2):  # noqa: ASYNC110  # servers elsewhere set no event of ours
                await asyncio.sleep(0.1)
        assert await find_read_failures(clients, 50) == []
    new = next(key for key in await data_key_ids(database_url) if key != old)
    assert await reported_changes(database_url) == {("server", f"add {new}"), ("server", f"rotate to {new}")}
    shown = await run_command(tmp_path, environment, "keys", "show")
    (line,) = (line for line in shown.out.splitlines() if old in line)
    assert "decrypts; removable from" in line
    assert " 0 " in line


async def test_a_rotation_completes_with_the_added_key_and_reports_undecryptable_values(
    tmp_path: Path, sqlite_url: str
) -> None:
    environment = environment_for(tmp_path, sqlite_url)
    await fill(sqlite_url, environment["ENCRYPTION_KEY"], 20)
    added = await run_command(tmp_path, environment, "keys", "add")
    assert "encrypts new values in 2 seconds" in added.out
    again = await run_command(tmp_path, environment, "keys", "add")
    assert (again.code, again.err) == (
        1,
        "the rotation to the newest data key is not complete: run `keys rotate` first\n",
    )

    old, new = await data_key_ids(sqlite_url)
    assert new in added.out
    assert await reported_changes(sqlite_url) == {("operator", f"add {new}")}
    broken = bytes.fromhex("01" + old) + bytes(40)
    await execute(
        sqlite_url, update(integrations).where(integrations.c.integration_id == 7).values(encrypted_credentials=broken)
    )
    finished = await run_command(tmp_path, environment, "keys", "rotate")
    assert finished.code == 1
    assert f"Data key {new} encrypts all other values now: 20 values were re-encrypted." in finished.out
    assert await reported_changes(sqlite_url) == {("operator", f"add {new}"), ("operator", f"rotate to {new}")}
    assert "Values that cannot be decrypted and stay unchanged: 1" in finished.err
    assert "integrations.encrypted_credentials of 7" in finished.err
    refused = await run_command(tmp_path, environment, "keys", "remove", old, "--force")
    assert "still encrypts 1 of integrations.encrypted_credentials" in refused.err
    assert await data_key_ids(sqlite_url) == [old, new]


async def is_rotation_complete(database_url: str, keys: int) -> bool:
    async with open_database(database_url) as database:
        found = await describe_data_keys(database)
    return len(found) == keys and all(key.is_rotation_complete for key in found)


async def test_the_encryption_key_is_replaced_while_servers_run(tmp_path: Path, sqlite_url: str) -> None:
    environment = environment_for(tmp_path, sqlite_url)
    previous_key, new = environment["ENCRYPTION_KEY"], new_key()
    both = {**environment, "ENCRYPTION_KEY": new, "ENCRYPTION_KEYS_RETIRED": previous_key}
    alone = {**environment, "ENCRYPTION_KEY": new}
    await fill(sqlite_url, previous_key, 20)
    async with run_servers(tmp_path, both, 1) as clients:
        rewrapped = await run_command(tmp_path, both, "keys", "rewrap")
        assert rewrapped.code == 0, rewrapped.err
        assert LocalKey(parse_key(new)).key_id in rewrapped.out
        assert await find_read_failures(clients, 20) == []
    async with run_servers(tmp_path, alone, 1) as clients:
        assert await find_read_failures(clients, 20) == []
    refused = await run_command(tmp_path, environment, "serve")
    assert refused.code == 1
    assert f"wrapped by key {LocalKey(parse_key(new)).key_id}, which is not configured" in refused.err


async def test_the_wrapping_key_moves_from_the_local_key_to_aws_kms(
    tmp_path: Path, sqlite_url: str, aws: dict[str, str]
) -> None:
    local = environment_for(tmp_path, sqlite_url)
    await fill(sqlite_url, local["ENCRYPTION_KEY"], 20)
    both = {**local, **aws}
    alone = {**both, "ENCRYPTION_KEY": ""}
    refused = await run_command(tmp_path, alone, "serve")
    assert refused.code == 1
    assert "which is not configured" in refused.err
    for command in ("rewrap", "rotate"):
        finished = await run_command(tmp_path, both, "keys", command)
        assert finished.code == 0, finished.err
    shown = await run_command(tmp_path, both, "keys", "show")
    assert shown.out.count(aws["KMS_KEY_ID"]) == 3  # two data keys, and the setting
    async with run_servers(tmp_path, alone, 1) as clients:
        assert await find_read_failures(clients, 20) == []
        ready = await clients[0].health.Check(health_pb2.HealthCheckRequest(service=""))
        assert ready.status == health_pb2.HealthCheckResponse.SERVING
    (wrapped, *_) = await fetch(sqlite_url, select(data_keys.c.wrapped_key))
    assert base64.b64decode(local["ENCRYPTION_KEY"]) not in bytes(wrapped[0])


async def test_the_wrapping_key_moves_to_openbao_and_servers_outlive_its_outage(
    tmp_path: Path, sqlite_url: str, bao: RunningOpenBao
) -> None:
    key_id, token_path = bao.new_key("end-to-end", "main"), tmp_path / "openbao-token"
    await asyncio.to_thread(token_path.write_text, bao.new_token("end-to-end-main"))
    in_openbao = {
        "KMS_KEY_ID": key_id,
        "OPENBAO_ADDRESS": bao.address,
        "OPENBAO_CA_FILE": str(bao.ca_path),
        "OPENBAO_TOKEN_FILE": str(token_path),
    }
    local = environment_for(tmp_path, sqlite_url, LOG_LEVEL="DEBUG")
    await fill(sqlite_url, local["ENCRYPTION_KEY"], 20)
    both = {**local, **in_openbao}
    alone = {**both, "ENCRYPTION_KEY": ""}
    for command in ("rewrap", "rotate"):
        finished = await run_command(tmp_path, both, "keys", command)
        assert finished.code == 0, finished.err
    shown = await run_command(tmp_path, both, "keys", "show")
    assert shown.out.count(key_id) == 3  # two data keys, and the setting
    bao.call("POST", "end-to-end/keys/main/rotate")
    rewrapped = await run_command(tmp_path, alone, "keys", "rewrap")
    assert "2 data keys were rewrapped" in rewrapped.out
    async with run_servers(tmp_path, alone, 1) as clients:
        with bao.sealed():
            assert await find_read_failures(clients, 20) == []
            ready = await clients[0].health.Check(health_pb2.HealthCheckRequest(service=""))
            assert ready.status == health_pb2.HealthCheckResponse.SERVING
            refused = await run_command(tmp_path, alone, "serve")
            examined = await run_command(tmp_path, alone, "doctor", "--json")
        sealed = "OPENBAO_ADDRESS: OpenBao is unavailable: it is sealed; unseal it"
        assert (refused.code, refused.err.splitlines()[-1]) == (1, sealed)
        assert (examined.code, sealed in examined.out) == (1, True)
        rotated = await run_command(tmp_path, alone, "keys", "rotate")  # the running server learns the new key
        assert rotated.code == 0, rotated.err
        assert await find_read_failures(clients, 20) == []
    examined = await run_command(tmp_path, alone, "doctor", "--json")
    assert "unwraps all data keys: 3" in examined.out
    token = await asyncio.to_thread(token_path.read_text)
    assert all(token not in output.out + output.err for output in (shown, rewrapped, refused, rotated, examined))
    assert {("operator", f"rewrap with {key_id}")} <= await reported_changes(sqlite_url)


@pytest.fixture
def aws() -> Iterator[dict[str, str]]:
    """AWS's environment variables, and a key in moto's KMS on loopback."""
    import botocore.session

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "eu-central-1",
    }
    client = botocore.session.get_session().create_client(
        "kms",
        region_name=variables["AWS_REGION"],
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    try:
        yield {**variables, "KMS_KEY_ID": client.create_key()["KeyMetadata"]["Arn"]}
    finally:
        client.close()
        server.stop()
