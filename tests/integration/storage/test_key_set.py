"""Attacks on the key set by somebody who can write to the database but has no key-encryption key."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Column, Row, Table, insert, select, update
from structlog.testing import capture_logs

from integration_server.domain.associated_data import AssociatedData
from integration_server.storage.audit_head_file import RecordedHeads
from integration_server.storage.audit_verification import AuditVerification
from integration_server.storage.data_keys import (
    describe_data_keys,
    describe_removed_keys,
    remove_data_key,
    rewrap,
)
from integration_server.storage.engine import Database, DatabaseTime, open_database
from integration_server.storage.key_encryption import KeyringError
from integration_server.storage.keyring import Keyring
from integration_server.storage.tables import data_keys, key_sets
from tests.keyrings import KEY, OTHER_KEY, complete_rotations, local_keys, open_test_keyring

ASSOCIATED_DATA = AssociatedData("integrations", "encrypted_credentials", "uid", "ann", "acme")
TABLES = (data_keys, key_sets)

Snapshot = Mapping[Table, Sequence[Row[Any]]]


async def snapshot(database: Database) -> Snapshot:
    """All rows of both tables."""
    return {table: await database.fetch(select(table)) for table in TABLES}


async def restore(database: Database, rows: Snapshot) -> None:
    """Put back all rows of the tables in a snapshot."""
    async with database.write_transaction() as connection:
        for table, table_rows in rows.items():
            await connection.execute(table.delete())
            await connection.execute(insert(table), [dict(row._mapping) for row in table_rows])


async def rotated(database: Database) -> tuple[Keyring, str]:
    """A keyring after a rotation, and the id of the key that was removed."""
    keyring = await open_test_keyring(database)
    old = keyring.active_key_id
    await keyring.add_data_key()
    await complete_rotations(database)
    await remove_data_key(keyring, old, force=True)
    await keyring.reload()
    return keyring, old


async def put_back(database: Database, row: Row[Any]) -> None:
    """Put a removed key's row back, active since now."""
    values = {**row._mapping, "active_time": DatabaseTime()}
    async with database.write_transaction() as connection:
        await connection.execute(data_keys.delete().where(data_keys.c.key_id == row.key_id))
        await connection.execute(insert(data_keys).values(values))


def mutated(column: Column[Any], value: object) -> object:
    """Another value of the column's type."""
    if isinstance(value, datetime):
        return value - timedelta(days=1)
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:]
    if isinstance(value, int):
        return value + 1
    if value is None:
        return DatabaseTime()
    first, rest = str(value)[0], str(value)[1:]
    return "complete" if value == "rotating" else f"{'e' if first == 'f' else 'f'}{rest}"


async def test_a_removed_key_that_is_put_back_is_not_used(database: Database) -> None:
    before = await open_test_keyring(database)
    (row,) = await database.fetch(select(data_keys))
    keyring, old = await rotated(database)
    await put_back(database, row)
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(KeyringError, match=f"altered in the database: keys that differ: {old}"):
                await keyring.reload()
    (alarm,) = (log for log in logs if log["event"] == "key_set_altered")
    assert alarm["log_level"] == "error"
    assert old in alarm["problem"]
    encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
    assert encrypted[1:9].hex() != old
    assert await keyring.decrypt(encrypted, ASSOCIATED_DATA) == b"secret"
    with pytest.raises(KeyringError, match="was altered in the database"):
        await open_test_keyring(database)
    assert before.active_key_id == old


async def test_negative_control_without_the_mac_a_removed_key_that_is_put_back_encrypts(database: Database) -> None:
    """Negative control: the key set is not verified."""
    await open_test_keyring(database)
    (row,) = await database.fetch(select(data_keys))
    _, old = await rotated(database)
    await put_back(database, row)
    unverified = await open_test_keyring(database, verifies_key_set=False)
    assert (await unverified.encrypt(b"secret", ASSOCIATED_DATA))[1:9].hex() == old


@pytest.mark.parametrize("column", [column for table in TABLES for column in table.columns], ids=str)
async def test_every_altered_column_is_detected(database: Database, column: Column[Any]) -> None:
    keyring, _ = await rotated(database)
    encrypted = await keyring.encrypt(b"secret", ASSOCIATED_DATA)
    active = keyring.active_key_id
    await keyring.add_data_key(timedelta(hours=1))
    is_row = data_keys.c.key_id == active if column.table is data_keys else key_sets.c.version > 0
    (value,) = (await database.fetch(select(column).where(is_row)))[0]
    async with database.write_transaction() as connection:
        await connection.execute(update(column.table).where(is_row).values({column: mutated(column, value)}))
    if column is key_sets.c.key_set_id:  # names the only row, and means nothing
        await keyring.reload()
        return
    with pytest.raises(KeyringError, match="in the database"):
        await keyring.reload()
    with pytest.raises(KeyringError):
        await open_test_keyring(database)
    with pytest.raises(KeyringError, match="in the database"):
        await remove_data_key(keyring, active, force=True)
    assert keyring.active_key_id == active
    assert await keyring.decrypt(encrypted, ASSOCIATED_DATA) == b"secret"


async def test_added_and_deleted_rows_are_detected(database: Database) -> None:
    keyring, removed = await rotated(database)
    rows = await snapshot(database)
    forged = {**rows[data_keys][1]._mapping, "key_id": "f" * 16}
    for statement in (
        insert(data_keys).values(forged),
        data_keys.delete().where(data_keys.c.key_id == removed),
        data_keys.delete().where(data_keys.c.key_id != removed),
        data_keys.delete(),
        key_sets.delete(),
    ):
        async with database.write_transaction() as connection:
            await connection.execute(statement)
        with pytest.raises(KeyringError):
            await keyring.reload()
        with pytest.raises(KeyringError):
            await open_test_keyring(database)
        await restore(database, rows)
        await keyring.reload()  # the restored set is the one that it trusts


async def test_a_running_server_detects_an_older_set_that_is_put_back(database: Database) -> None:
    await open_test_keyring(database)
    older = await snapshot(database)
    keyring, old = await rotated(database)
    await restore(database, older)
    with pytest.raises(KeyringError, match=f"older set of data keys was put back .*: version 1 after .*{old}"):
        await keyring.reload()
    assert (await keyring.encrypt(b"secret", ASSOCIATED_DATA))[1:9].hex() == keyring.active_key_id != old
    with pytest.raises(KeyringError, match="older set"):
        await keyring.add_data_key()


async def test_after_a_restart_only_the_head_outside_the_database_shows_a_rollback(database: Database) -> None:
    await open_test_keyring(database)
    older = await snapshot(database)
    keyring, _ = await rotated(database)
    head = keyring.head
    await restore(database, older)
    restarted = await open_test_keyring(database)
    assert restarted.head.version < head.version
    recorded = RecordedHeads({(head.kind, head.name): frozenset({head})})
    verification = AuditVerification(database, restarted, recorded_heads=recorded, states=[restarted.head])
    assert [problem async for problem in verification.problems()] == [
        "key_set: set back to version 1: it had 4, as its head shows"
    ]


async def test_two_servers_that_change_the_set_do_not_invalidate_it(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(open_database(database_url)) for _ in range(4)]
        keyrings = [await open_test_keyring(database) for database in databases]
        version = keyrings[0].head.version
        name = data_keys.c.wrapping_key_id
        touch = update(data_keys).values({name: name})
        changes = (keyring.change(lambda connection: connection.execute(touch)) for keyring in keyrings * 5)
        await asyncio.gather(*changes)
        for keyring in keyrings:
            await keyring.reload()
            assert keyring.head.version == version + 20


async def test_every_change_of_the_keys_is_accepted_by_running_and_new_servers(database: Database) -> None:
    keyring, removed = await rotated(database)
    other = await open_test_keyring(database)
    await keyring.add_data_key(timedelta(minutes=1))
    await other.reload()
    await complete_rotations(database)
    await other.reload()
    await rewrap(database, local_keys(OTHER_KEY, KEY), keyring)
    await other.reload()  # with the old key only: nothing needs to be unwrapped
    assert (await open_test_keyring(database, OTHER_KEY)).head.version > keyring.head.version
    assert [key.key_id for key in await describe_removed_keys(database)] == [removed]
    assert removed not in [key.key_id for key in await describe_data_keys(database)]
