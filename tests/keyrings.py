"""Keyrings for tests, with local keys."""

from collections.abc import Callable
from time import monotonic as real_monotonic

from sqlalchemy import Executable, update

from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KeyEncryptionKeys, LocalKey
from integration_server.storage.keyring import Keyring, open_keyring
from integration_server.storage.tables import DataKeyState, data_keys

KEY, OTHER_KEY = bytes(range(32)), bytes(range(100, 132))
KEY_ID, OTHER_KEY_ID = LocalKey(KEY).key_id, LocalKey(OTHER_KEY).key_id


def local_keys(current: bytes, *previous: bytes) -> KeyEncryptionKeys:
    """Local key-encryption keys."""
    return KeyEncryptionKeys(LocalKey(current), [LocalKey(key) for key in previous])


async def open_test_keyring(
    database: Database,
    current: bytes = KEY,
    *previous: bytes,
    monotonic: Callable[[], float] = real_monotonic,
    verifies_key_set: bool = True,
) -> Keyring:
    """The keyring of the database, with these keys."""
    keys = local_keys(current, *previous)
    return await open_keyring(database, keys, monotonic=monotonic, verifies_key_set=verifies_key_set)


async def change_data_keys(database: Database, *statements: Executable, current: bytes = KEY) -> None:
    """Change data keys as the server does, with the MAC of the set."""

    async def change(connection: AsyncConnection) -> None:
        for statement in statements:
            await connection.execute(statement)

    await (await open_test_keyring(database, current)).change(change)


async def complete_rotations(database: Database) -> None:
    """Mark every rotation as complete."""
    is_rotating = data_keys.c.state == DataKeyState.ROTATING.value
    await change_data_keys(database, update(data_keys).where(is_rotating).values(state=DataKeyState.COMPLETE.value))
