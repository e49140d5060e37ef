"""Keyrings for tests, with local keys."""

from collections.abc import Callable
from time import monotonic as real_monotonic

from sqlalchemy import update

from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KeyEncryptions, LocalKey
from integration_server.storage.keyring import Keyring, open_keyring
from integration_server.storage.tables import DataKeyState, data_keys

KEY, OTHER_KEY = bytes(range(32)), bytes(range(100, 132))
KEY_ID, OTHER_KEY_ID = LocalKey(KEY).key_id, LocalKey(OTHER_KEY).key_id


def local(current: bytes, *former: bytes) -> KeyEncryptions:
    """Local key-encryption keys."""
    return KeyEncryptions(LocalKey(current), [LocalKey(key) for key in former])


async def opened(
    database: Database, current: bytes = KEY, *former: bytes, monotonic: Callable[[], float] = real_monotonic
) -> Keyring:
    """The keyring of the database, with these keys."""
    return await open_keyring(database, local(current, *former), monotonic=monotonic)


async def settle(database: Database) -> None:
    """Have it that every rotation is over."""
    async with database.writing() as connection:
        await connection.execute(update(data_keys).values(state=DataKeyState.SETTLED.value))
