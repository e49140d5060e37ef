"""Administration of data keys: describe them, wrap them with another key-encryption key, remove one.

Descriptions are not verified: they need no key-encryption key. Changes verify the key set first (`key_set.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, Row, Update, select, update

from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.encrypted_columns import count_values
from integration_server.storage.engine import Database, DatabaseTime, from_row
from integration_server.storage.key_encryption import KeyEncryptionKeys, KeyringError
from integration_server.storage.keyring import ALL_DATA_KEYS, Keyring
from integration_server.storage.tables import DataKeyState, data_keys, key_sets

REPLACED_KEY_RETENTION = timedelta(days=1)
"""How long a replaced data key is kept. State and page tokens that browsers and callers hold, and journal files of a
server that cannot reach the database, are encrypted with it."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key without its secret. Times are the database's; `replaced_time` is the activation of the next key."""

    key_id: str
    wrapping_key_id: str
    is_rotation_complete: bool
    create_time: datetime
    active_time: datetime
    replaced_time: datetime | None
    now: datetime

    @property
    def is_announced(self) -> bool:
        """Whether it is not active yet."""
        return self.active_time > self.now

    @property
    def is_active(self) -> bool:
        """Whether it encrypts new values."""
        return not self.is_announced and self.replaced_time is None

    @property
    def removable_time(self) -> datetime | None:
        """From when it can be removed, if no value needs it; None while it is in use."""
        return None if self.replaced_time is None else self.replaced_time + REPLACED_KEY_RETENTION


@dataclass(frozen=True, slots=True)
class RemovedKey:
    """The tombstone of a data key. It prevents that the key is put back."""

    key_id: str
    create_time: datetime
    remove_time: datetime


async def describe_data_keys(database: Database) -> Sequence[DataKey]:
    """All data keys, by activation time. Needs no key-encryption key."""
    return _described(await database.fetch(ALL_DATA_KEYS))


async def describe_removed_keys(database: Database) -> Sequence[RemovedKey]:
    """The data keys that were removed, by activation time."""
    rows = await database.fetch(ALL_DATA_KEYS)
    return [from_row(RemovedKey, row) for row in rows if row.state == DataKeyState.REMOVED]


async def count_encrypted_values(database: Database, key_id: str) -> int:
    """The number of stored values that are encrypted with this data key."""
    async with database.read_connection() as connection:
        return sum((await count_values(connection, key_id)).values())


async def rewrap(database: Database, keys: KeyEncryptionKeys, keyring: Keyring) -> int:
    """Wrap all data keys and the key of the set's MAC with the current key-encryption key, in one transaction.

    Those that its newest version has wrapped stay. Returns the number of data keys that were wrapped again. Raises
    `KeyringError` or `StoreUnavailable`.
    """
    rewrapped = await _rewrapped(database, keys, data_keys.c.wrapped_key)
    of_set = await _rewrapped(database, keys, key_sets.c.wrapped_mac_key)

    async def replace(connection: AsyncConnection) -> None:
        for statement in (*rewrapped, *of_set):
            await connection.execute(statement)

    if rewrapped or of_set:
        await keyring.change(replace)
    return len(rewrapped)


async def remove_data_key(keyring: Keyring, key_id: str, *, force: bool = False) -> None:
    """Remove a data key that is no longer needed. Raises `KeyringError` with the reason if it is needed.

    `force` skips the retention time, but not the check for stored values. A tombstone stays.
    """

    async def remove(connection: AsyncConnection) -> None:
        keys = {key.key_id: key for key in _described((await connection.execute(ALL_DATA_KEYS)).all())}
        if (key := keys.get(key_id)) is None:
            raise KeyringError(f"there is no data key {key_id}")
        if key.removable_time is None:
            raise KeyringError(f"data key {key_id} is the active or the next key: it is needed")
        if key.removable_time > key.now and not force:
            raise KeyringError(
                f"data key {key_id} can be removed from {key.removable_time:%F %T} UTC: until then journal files of "
                "servers and tokens of callers may be encrypted with it (--force removes it now)"
            )
        if counts := await count_values(connection, key_id):
            listing = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise KeyringError(
                f"data key {key_id} still encrypts {listing}: run `keys rotate` first (--no-new-key is enough)"
            )
        tombstone = {"state": DataKeyState.REMOVED.value, "wrapped_key": b"", "remove_time": DatabaseTime()}
        await connection.execute(update(data_keys).where(data_keys.c.key_id == key_id).values(tombstone))

    await keyring.change(remove)


def _described(rows: Sequence[Row[Any]]) -> Sequence[DataKey]:
    rows = [row for row in rows if row.state != DataKeyState.REMOVED]
    return [
        from_row(
            DataKey,
            row,
            is_rotation_complete=row.state == DataKeyState.COMPLETE,
            replaced_time=after.active_time if after is not None and after.active_time <= row.now else None,
        )
        for row, after in zip(rows, [*rows[1:], None], strict=False)
    ]


async def _rewrapped(database: Database, keys: KeyEncryptionKeys, wrapped: Column[bytes]) -> Sequence[Update]:
    """The statements that store the keys of a table as the current key-encryption key wraps them."""
    wrapping_key_id = wrapped.table.c.wrapping_key_id
    (key_id,) = wrapped.table.primary_key
    query = select(key_id.label("key_id"), wrapped.label("wrapped"), wrapping_key_id)
    statements = []
    for row in await database.fetch(query.where(wrapped != b"")):
        if not keys.needs_rewrap(row.wrapped, row.wrapping_key_id):
            continue
        key = await keys.unwrap(row.wrapped, row.key_id, row.wrapping_key_id)
        values = {wrapped: await keys.wrap(key, row.key_id), wrapping_key_id: keys.current_id}
        is_unchanged = (key_id == row.key_id, wrapped == row.wrapped)
        statements.append(update(key_id.table).where(*is_unchanged).values(values))
    return statements
