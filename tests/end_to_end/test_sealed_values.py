"""Sealed credentials in the real database: what was altered or moved does not open, and the other rows still serve."""

import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from sqlalchemy import select, update

from integration_server.storage.tables import connection_attempts, data_keys, integrations
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.databases import execute, fetch
from tests.end_to_end.refusals import Refusal, refusal_of
from tests.end_to_end.system import KEY, System, running_system

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_system(shared_database_url: str) -> AsyncIterator[System]:
    """One that remembers nothing: here rows change behind its back, and it should read each of them at once."""
    async with running_system(shared_database_url, CREDENTIALS_CACHE_SIZE="0") as running:
        yield running


UNREADABLE = Refusal(grpc.StatusCode.DATA_LOSS, "CREDENTIALS_UNREADABLE")


def set_of(integration_id: int, **values: Any) -> Any:
    """The statement that alters a row."""
    return update(integrations).where(integrations.c.integration_id == integration_id).values(**values)


async def sealed(database_url: str, integration_id: int) -> bytes:
    """A row's sealed credentials."""
    column = integrations.c.sealed_credentials
    ((value,),) = await fetch(database_url, select(column).where(integrations.c.integration_id == integration_id))
    return bytes(value)


async def test_credentials_with_any_byte_flipped_do_not_open(system: System, shared_database_url: str) -> None:
    victim, bystander = await system.connect(account="ada"), await system.connect(account="grace")
    original = await sealed(shared_database_url, victim)
    token = await system.bearer_token(victim)
    # The header with key id and nonce byte by byte, then samples of the ciphertext, and the tag's end.
    positions = [*range(21), *range(21, len(original), 16), len(original) - 1]
    for position in positions:
        flipped = bytearray(original)
        flipped[position] ^= 1 << position % 8
        await execute(shared_database_url, set_of(victim, sealed_credentials=bytes(flipped)))
        assert await refusal_of(system.bearer_token(victim)) == UNREADABLE, position
    assert await system.bearer_token(bystander)
    # The twin: put back as it was, it opens.
    await execute(shared_database_url, set_of(victim, sealed_credentials=original))
    assert await system.bearer_token(victim) == token


async def test_credentials_that_were_cut_emptied_or_never_sealed_do_not_open(
    system: System, shared_database_url: str
) -> None:
    victim = await system.connect()
    original = await sealed(shared_database_url, victim)
    plaintext = b'{"access_token": "planted"}'
    for value in (original[:-1], original[:8], original + b"\0", b"", b"\1", plaintext, os.urandom(len(original))):
        await execute(shared_database_url, set_of(victim, sealed_credentials=value))
        assert await refusal_of(system.bearer_token(victim)) == UNREADABLE, value[:12]


async def test_credentials_moved_to_another_row_do_not_open(system: System, shared_database_url: str) -> None:
    mine, other_account = await system.connect("ada", account="ada"), await system.connect("ada", account="grace")
    theirs, bystander = await system.connect("eve", account="ada"), await system.connect("eve", account="grace")
    values = {row: await sealed(shared_database_url, row) for row in (mine, other_account, theirs)}
    await execute(
        shared_database_url,
        set_of(mine, sealed_credentials=values[other_account]),
        set_of(other_account, sealed_credentials=values[mine]),
        set_of(theirs, sealed_credentials=values[mine]),
    )
    for row, user_id in ((mine, "ada"), (other_account, "ada"), (theirs, "eve")):
        assert await refusal_of(system.bearer_token(row, user_id)) == UNREADABLE
    assert await system.bearer_token(bystander, "eve")


async def test_a_row_given_to_another_user_or_type_does_not_open(system: System, shared_database_url: str) -> None:
    row = await system.connect("ada", account="ada")
    await execute(shared_database_url, set_of(row, user_id="eve"))
    assert await refusal_of(system.bearer_token(row, "eve")) == UNREADABLE
    await execute(shared_database_url, set_of(row, user_id="ada", integration_type="sandbox_api_key"))
    assert await refusal_of(system.bearer_token(row)) == UNREADABLE
    await execute(shared_database_url, set_of(row, integration_type="sandbox", uid="another"))
    assert await refusal_of(system.bearer_token(row)) == UNREADABLE


async def test_a_value_of_another_column_does_not_open(system: System, shared_database_url: str) -> None:
    row = await system.connect(account="ada")
    begun = await system.begin()
    ((verifier,),) = await fetch(
        shared_database_url,
        select(connection_attempts.c.sealed_verifier).where(
            connection_attempts.c.integration_id == begun.integration_id
        ),
    )
    await execute(shared_database_url, set_of(row, sealed_credentials=bytes(verifier)))
    assert await refusal_of(system.bearer_token(row)) == UNREADABLE

    # The other way about: an attempt with credentials for its verifier is not finished.
    good = await system.connect(account="grace")
    location = await system.decide(begun, account="linus")
    value = await sealed(shared_database_url, good)
    await execute(shared_database_url, update(connection_attempts).values(sealed_verifier=value))
    answer = await system.follow(location)
    assert answer.json()["reason"] == "CREDENTIALS_UNREADABLE"
    assert not [call for call in system.sandbox.token_calls[2:] if call.outcome == "ok"]


async def test_unreadable_credentials_can_be_replaced_or_removed(system: System, shared_database_url: str) -> None:
    victim = await system.connect(account="ada")
    await execute(shared_database_url, set_of(victim, sealed_credentials=b"gone"))
    check = (await system.service.CheckHealth(pb.CheckHealthRequest(integration_id=victim, user_id="ada"))).health_check
    assert (check.healthy, check.error_class) == (False, "CREDENTIALS_UNREADABLE")
    begun = await system.begin(integration_id=victim)
    assert (await system.follow(await system.decide(begun, account="ada"))).json()["success"] is True
    assert await system.bearer_token(victim)

    await execute(shared_database_url, set_of(victim, sealed_credentials=b"gone"))
    gone = await system.service.DisconnectIntegration(
        pb.DisconnectIntegrationRequest(integration_id=victim, user_id="ada")
    )
    assert (gone.success, gone.provider_revoked) == (True, False)


async def test_the_data_key_is_stored_encrypted(system: System, shared_database_url: str) -> None:
    await system.connect()
    ((wrapped,),) = await fetch(shared_database_url, select(data_keys.c.wrapped_key))
    assert len(wrapped) == 12 + 32 + 16  # nonce, key and tag (NIST SP 800-38D)
    assert KEY not in bytes(wrapped)
