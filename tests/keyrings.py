"""Keyrings for tests, with local keys."""

from collections.abc import Callable
from time import monotonic as real_monotonic

from sqlalchemy import update

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
    database: Database, current: bytes = KEY, *previous: bytes, monotonic: Callable[[], float] = real_monotonic
) -> Keyring:
    """The keyring of the database, with these keys."""
    return await open_keyring(database, local_keys(current, *previous), monotonic=monotonic)


async def complete_rotations(database: Database) -> None:
    """Mark every rotation as complete."""
    async with database.write_transaction() as connection:
        await connection.execute(update(data_keys).values(state=DataKeyState.COMPLETE.value))
