"""Each system of these tests is scanned for secrets when it ends; a leaked secret fails the test."""

import base64
from pathlib import Path

import pytest

from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.processes import new_key, run, run_server_process, server_environment
from tests.end_to_end.secret_scanner import SecretLeaked
from tests.end_to_end.system import KEY, Clients, run_system


async def store_in_plaintext(system: Clients, integration_id: int, secret: str) -> None:
    """Store a secret as the name of an integration."""
    rename = pb.UpdateIntegrationRequest(integration_id=integration_id, user_id="ada", name=f"My {secret}")
    await system.service.UpdateIntegration(rename)


async def log_in_plaintext(system: Clients, secret: str) -> None:
    """Log a secret as a path."""
    await system.browser.get(f"{system.sidecar_url}/{secret}")


async def connect_and_use(system: Clients) -> str:
    """Connect, and return the token that passed through the server."""
    return await system.bearer_token(await system.connect())


@pytest.mark.slow
async def test_a_token_in_a_row_is_found(database_url: str) -> None:
    async def leak() -> None:
        async with run_system(database_url) as system:
            integration_id = await system.connect()
            await store_in_plaintext(system, integration_id, await system.bearer_token(integration_id))

    with pytest.raises(SecretLeaked, match="rows"):
        await leak()


@pytest.mark.slow
async def test_a_token_in_the_log_is_found(sqlite_url: str) -> None:
    async def leak() -> None:
        async with run_system(sqlite_url) as system:
            await log_in_plaintext(system, await connect_and_use(system))

    with pytest.raises(SecretLeaked, match="log"):
        await leak()


@pytest.mark.slow
@pytest.mark.quick_on("sqlite")
async def test_a_token_in_the_log_or_a_row_of_a_process_is_found(database_url: str, tmp_path: Path) -> None:
    tokens = []

    async def leak() -> None:
        async with run_server_process(tmp_path, database_url) as system:
            integration_id = await system.connect()
            tokens.append(await system.bearer_token(integration_id))
            await log_in_plaintext(system, tokens[0])
            await store_in_plaintext(system, integration_id, tokens[0])

    with pytest.raises(SecretLeaked) as leaked:
        await leak()
    assert {"0.err", "rows"} <= {place for _, place, _ in leaked.value.args[0]}
    assert tokens[0] not in str(leaked.value)


async def test_a_secret_setting_in_the_log_of_a_process_is_found(sqlite_url: str, tmp_path: Path) -> None:
    """An invalid address is quoted in the error."""
    key = new_key()
    environment = server_environment(sqlite_url, ENCRYPTION_KEY=key, PUBLIC_URL="http://wrong.example/" + key)
    with pytest.raises(SecretLeaked, match="ENCRYPTION_KEY"):
        await run(tmp_path, environment, "types")


@pytest.mark.slow
@pytest.mark.quick_on("sqlite")
async def test_a_run_without_a_leak_passes(database_url: str, tmp_path: Path) -> None:
    async with run_system(database_url) as system:
        assert await connect_and_use(system) in system.sandbox.secrets
    async with run_server_process(tmp_path, database_url, ENCRYPTION_KEY=base64.b64encode(KEY).decode()) as another:
        assert await connect_and_use(another) in another.sandbox.secrets
