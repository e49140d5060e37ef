"""The key set: all data keys with their states and times, authenticated as a whole.

A MAC under a key of its own, which the key-encryption key wraps, covers every column of every row of `data_keys`, the
rows of removed keys included. Whoever can write to the database, but has no key-encryption key, can therefore neither
put back a removed key nor make another key the active one. Every legitimate change counts the version of the set and
computes its MAC in the same transaction.

Restored older rows of both tables are consistent. A running process detects them by the version, which never
decreases, and `audit verify` by the head that was recorded outside the database.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from sqlalchemy import select, true, update

from integration_server.service.audit.audit_heads import Head
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.driver_queries import DriverQuery, Values
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.key_encryption import KeyringError
from integration_server.storage.tables import DataKeyState, data_keys, key_sets

T = TypeVar("T")

KEY_SET = "key_set"
"""The kind of the head of a key set."""

KEY_SET_ID = "key-set"
"""The id of the only set, and the one for which its MAC key is wrapped."""

_S = key_sets.c

_LOCK = select(_S.version).with_for_update()  # SQLite serializes write transactions instead

# One statement, so that the keys and their MAC are of the same moment; without keys, one row with NULLs.
_READ = (
    select(
        data_keys,
        DatabaseTime().label("now"),
        _S.version.label("set_version"),
        _S.mac,
        _S.wrapped_mac_key,
        _S.wrapping_key_id.label("mac_wrapping_key_id"),
    )
    .select_from(key_sets.outerjoin(data_keys, true()))
    .order_by(data_keys.c.active_time, data_keys.c.key_id)
)
_DRIVER_READ = DriverQuery(_READ)
_COLUMNS = len(data_keys.c)


class StoredDataKey(NamedTuple):
    """A row of `data_keys`, with its columns in their order, and the time at which it was read."""

    key_id: str
    wrapped_key: bytes
    wrapping_key_id: str
    state: str
    create_time: datetime
    active_time: datetime
    remove_time: datetime | None
    now: datetime


@dataclass(frozen=True, slots=True)
class KeySet:
    """The key set as it was read. `rows` are all rows of `data_keys`, by activation time."""

    version: int
    mac: bytes
    wrapped_mac_key: bytes
    wrapping_key_id: str
    rows: Sequence[StoredDataKey]

    @property
    def keys(self) -> Sequence[StoredDataKey]:
        """The rows of the keys that were not removed."""
        return [row for row in self.rows if row.state != DataKeyState.REMOVED]

    @property
    def head(self) -> Head:
        """The version and the MAC, which identify this state outside the database."""
        return Head(KEY_SET, KEY_SET_ID, 0, self.version, self.mac)

    def compute_mac(self, mac_key: bytes, version: int) -> bytes:
        """The MAC of these keys at a version."""
        rows = sorted([_text(value) for value in row[:_COLUMNS]] for row in self.rows)
        content = [version, self.wrapped_mac_key.hex(), self.wrapping_key_id, *rows]
        return hmac.digest(mac_key, json.dumps(content).encode(), "sha256")

    def problem(self, mac_key: bytes, trusted: "KeySet | None" = None) -> str | None:
        """Why this set must not be used; None if it is authentic and not older than a `trusted` one."""
        if not hmac.compare_digest(self.compute_mac(mac_key, self.version), self.mac):
            return f"the set of data keys was altered in the database: {self._difference(trusted)}"
        if trusted is not None and not self._follows(trusted):
            return (
                f"an older set of data keys was put back into the database: version {self.version} after "
                f"{trusted.version}; {self._difference(trusted)}"
            )
        return None

    def _follows(self, trusted: "KeySet") -> bool:
        return self.version > trusted.version or self.head == trusted.head

    def _difference(self, trusted: "KeySet | None") -> str:
        if trusted is None:
            return f"it has the keys {', '.join(row.key_id for row in self.rows) or 'none'}"
        before, after = ({row.key_id: row[:_COLUMNS] for row in key_set.rows} for key_set in (trusted, self))
        changed = sorted(key_id for key_id in {*before, *after} if before.get(key_id) != after.get(key_id))
        return f"keys that differ: {', '.join(changed) or 'none, but the record of the set'}"


async def read_key_set(database: Database) -> KeySet | None:
    """The key set, not verified; None if the database has none. Every process reads it once a second."""
    return _key_set_of(await database.monitor(_DRIVER_READ))


def _key_set_of(rows: Sequence[Values]) -> KeySet | None:
    if not rows:
        return None
    version, mac, wrapped_mac_key, wrapping_key_id = rows[0][_COLUMNS + 1 :]
    keys = [StoredDataKey(*row[: _COLUMNS + 1]) for row in rows if row[0] is not None]
    return KeySet(version, mac, wrapped_mac_key, wrapping_key_id, keys)


async def change_key_set(
    database: Database,
    mac_key: bytes,
    change: Callable[[AsyncConnection], Awaitable[T]],
    trusted: KeySet | None = None,
) -> T:
    """Change `data_keys`, and the version and MAC of the set, in one transaction.

    Raises `KeyringError`, and changes nothing, if the set was altered before: a change must not authenticate it.
    """
    async with database.write_transaction() as connection:
        await connection.execute(_LOCK)
        before = await _read(connection)
        problem = before.problem(mac_key, trusted)
        if problem is not None:
            raise KeyringError(problem)
        result = await change(connection)
        await authenticate_key_set(connection, mac_key)
    return result


async def authenticate_key_set(connection: AsyncConnection, mac_key: bytes) -> None:
    """Store the MAC of the set as this transaction has changed it, with the next version."""
    changed = await _read(connection)
    version = changed.version + 1
    values = {_S.version: version, _S.mac: changed.compute_mac(mac_key, version)}
    advance = update(key_sets).where(_S.version == changed.version).values(values)
    if (await connection.execute(advance)).rowcount != 1:
        raise KeyringError("the set of data keys was changed at the same time: repeat the command")


async def _read(connection: AsyncConnection) -> KeySet:
    key_set = _key_set_of((await connection.execute(_READ)).all())
    if key_set is None:
        raise KeyringError("the table key_sets has no row: restore it and the table data_keys from the same backup")
    return key_set


def _text(value: object) -> str:
    """The value of a column as text, the same for both databases."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    return value.hex() if isinstance(value, bytes) else repr(value)
