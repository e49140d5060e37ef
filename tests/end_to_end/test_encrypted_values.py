"""Encrypted credentials in the database: altered or moved ones cannot be decrypted, and other rows are still served."""

import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from sqlalchemy import select, update

from integration_server.storage.tables import authorization_attempts, data_keys, integrations
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.databases import execute, fetch
from tests.end_to_end.rpc_errors import RpcError, expect_rpc_error
from tests.end_to_end.system import KEY, System, run_system

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.quick_on("sqlite")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_system(shared_database_url: str) -> AsyncIterator[System]:
    """A system without a cache, because these tests change rows directly."""
    async with run_system(shared_database_url, CREDENTIALS_CACHE_SIZE="0") as running:
        yield running


UNREADABLE = RpcError(grpc.StatusCode.DATA_LOSS, "CREDENTIALS_UNREADABLE")


def update_row(integration_id: int, **values: Any) -> Any:
    """The statement that changes a row."""
    return update(integrations).where(integrations.c.integration_id == integration_id).values(**values)


async def encrypted(database_url: str, integration_id: int) -> bytes:
    """A row's encrypted credentials."""
    column = integrations.c.encrypted_credentials
    ((value,),) = await fetch(database_url, select(column).where(integrations.c.integration_id == integration_id))
    return bytes(value)


@pytest.mark.slow
async def test_credentials_with_a_flipped_byte_cannot_be_decrypted(system: System, shared_database_url: str) -> None:
    victim, bystander = await system.connect(account="ada"), await system.connect(account="grace")
    original = await encrypted(shared_database_url, victim)
    token = await system.bearer_token(victim)
    # Each byte of the header with key id and nonce, samples of the ciphertext, and the last byte of the tag.
    positions = [*range(21), *range(21, len(original), 16), len(original) - 1]
    for position in positions:
        flipped = bytearray(original)
        flipped[position] ^= 1 << position % 8
        await execute(shared_database_url, update_row(victim, encrypted_credentials=bytes(flipped)))
        assert await expect_rpc_error(system.bearer_token(victim)) == UNREADABLE, position
    assert await system.bearer_token(bystander)
    # Negative control: the restored value is decrypted.
    await execute(shared_database_url, update_row(victim, encrypted_credentials=original))
    assert await system.bearer_token(victim) == token


async def test_truncated_empty_or_plaintext_credentials_cannot_be_decrypted(
    system: System, shared_database_url: str
) -> None:
    victim = await system.connect()
    original = await encrypted(shared_database_url, victim)
    plaintext = b'{"access_token": "planted"}'
    for value in (original[:-1], original[:8], original + b"\0", b"", b"\1", plaintext, os.urandom(len(original))):
        await execute(shared_database_url, update_row(victim, encrypted_credentials=value))
        assert await expect_rpc_error(system.bearer_token(victim)) == UNREADABLE, value[:12]


async def test_credentials_moved_to_another_row_cannot_be_decrypted(system: System, shared_database_url: str) -> None:
    mine, other_account = await system.connect("ada", account="ada"), await system.connect("ada", account="grace")
    theirs, bystander = await system.connect("eve", account="ada"), await system.connect("eve", account="grace")
    values = {row: await encrypted(shared_database_url, row) for row in (mine, other_account, theirs)}
    await execute(
        shared_database_url,
        update_row(mine, encrypted_credentials=values[other_account]),
        update_row(other_account, encrypted_credentials=values[mine]),
        update_row(theirs, encrypted_credentials=values[mine]),
    )
    for row, user_id in ((mine, "ada"), (other_account, "ada"), (theirs, "eve")):
        assert await expect_rpc_error(system.bearer_token(row, user_id)) == UNREADABLE
    assert await system.bearer_token(bystander, "eve")


async def test_credentials_of_a_row_with_another_user_or_type_cannot_be_decrypted(
    system: System, shared_database_url: str
) -> None:
    row = await system.connect("ada", account="ada")
    await execute(shared_database_url, update_row(row, user_id="eve"))
    assert await expect_rpc_error(system.bearer_token(row, "eve")) == UNREADABLE
    await execute(shared_database_url, update_row(row, user_id="ada", integration_type="sandbox_api_key"))
    assert await expect_rpc_error(system.bearer_token(row)) == UNREADABLE
    await execute(shared_database_url, update_row(row, integration_type="sandbox", uid="another"))
    assert await expect_rpc_error(system.bearer_token(row)) == UNREADABLE


async def test_a_value_of_another_column_cannot_be_decrypted(system: System, shared_database_url: str) -> None:
    row = await system.connect(account="ada")
    connect_response = await system.begin()
    ((verifier,),) = await fetch(
        shared_database_url,
        select(authorization_attempts.c.encrypted_details).where(
            authorization_attempts.c.integration_id == connect_response.integration_id
        ),
    )
    await execute(shared_database_url, update_row(row, encrypted_credentials=bytes(verifier)))
    assert await expect_rpc_error(system.bearer_token(row)) == UNREADABLE

    # The reverse: an attempt with credentials in place of its verifier is not completed.
    good = await system.connect(account="grace")
    location = await system.decide(connect_response, account="linus")
    value = await encrypted(shared_database_url, good)
    await execute(shared_database_url, update(authorization_attempts).values(encrypted_details=value))
    response = await system.follow(location)
    assert response.json()["reason"] == "CREDENTIALS_UNREADABLE"
    assert not [call for call in system.sandbox.token_calls[2:] if call.outcome == "ok"]


async def test_unreadable_credentials_can_be_replaced_or_removed(system: System, shared_database_url: str) -> None:
    victim = await system.connect(account="ada")
    await execute(shared_database_url, update_row(victim, encrypted_credentials=b"gone"))
    check = (await system.service.CheckHealth(pb.CheckHealthRequest(integration_id=victim, user_id="ada"))).health_check
    assert (check.healthy, check.error_class) == (False, "CREDENTIALS_UNREADABLE")
    connect_response = await system.begin(integration_id=victim)
    assert (await system.follow(await system.decide(connect_response, account="ada"))).json()["success"] is True
    assert await system.bearer_token(victim)

    await execute(shared_database_url, update_row(victim, encrypted_credentials=b"gone"))
    gone = await system.service.DisconnectIntegration(
        pb.DisconnectIntegrationRequest(integration_id=victim, user_id="ada")
    )
    assert (gone.success, gone.provider_revoked) == (True, False)


async def test_the_data_key_is_stored_encrypted(system: System, shared_database_url: str) -> None:
    await system.connect()
    ((wrapped,),) = await fetch(shared_database_url, select(data_keys.c.wrapped_key))
    assert len(wrapped) == 12 + 32 + 16  # nonce, key and tag (NIST SP 800-38D)
    assert KEY not in bytes(wrapped)
