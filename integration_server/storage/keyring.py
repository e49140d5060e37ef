"""The keyring: the data keys that encrypt values. The database stores them wrapped by a key-encryption key.

`credential_cipher.py` has the format of an encrypted value.

A data key is announced before it is used: it is in the table from its creation, and encrypts from its `active_time` on,
by the database's clock. Every server reads the table about once a second and is not ready when it cannot, so that all
servers know a key before any server encrypts with it, whatever their own clocks say.

Each read verifies the whole key set (`key_set.py`). A set that was altered or put back is not used: the process keeps
the keys that it has, logs `key_set_altered`, and is not ready.
"""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import and_, exists, insert, or_, select
from sqlalchemy.exc import IntegrityError

from integration_server.domain.errors import CredentialsUnreadable, StoreUnavailable
from integration_server.service.audit.audit_heads import Head
from integration_server.service.credentials.credential_cipher import KEY_ID_BYTES, DataKeyCipher
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.key_encryption import KEY_BYTES, KeyEncryptionKeys, KeyringError
from integration_server.storage.key_set import (
    KEY_SET_ID,
    KeySet,
    StoredDataKey,
    authenticate_key_set,
    change_key_set,
    read_key_set,
)
from integration_server.storage.tables import DataKeyState, data_keys, integrations, key_sets

T = TypeVar("T")

_LOOKUP_INTERVAL = 1.0
"""Seconds between reads for an unknown data key: many forged values must not become load on the database."""

ALL_DATA_KEYS = select(data_keys, DatabaseTime().label("now")).order_by(data_keys.c.active_time, data_keys.c.key_id)
"""The query for all data keys, by activation time, with those that were removed."""


class Keyring(DataKeyCipher):
    """A `DataKeyCipher` with the data keys of the database. Created by `open_keyring`.

    Without `verifies_key_set`, a negative control, it uses whatever keys the database has.
    """

    def __init__(
        self,
        database: Database,
        keys: KeyEncryptionKeys,
        *,
        monotonic: Callable[[], float],
        verifies_key_set: bool = True,
    ) -> None:
        super().__init__()
        self._database = database
        self._keys = keys
        self._monotonic = monotonic
        self._verifies_key_set = verifies_key_set
        self._mac_key = b""
        self._trusted: KeySet | None = None
        self._reported = b""
        self._log = structlog.get_logger(__name__)
        self._reload_lock = asyncio.Lock()
        self._next_lookup = -math.inf

    @property
    def active_key_id(self) -> str:
        """The id of the data key that encrypts, as of the last read."""
        return self._active_id.hex()

    @property
    def head(self) -> Head:
        """The head of the key set, as of the last read: with it, a copy outside the database detects a rollback."""
        return self._loaded.head

    async def reload(self) -> None:
        """Read the data keys and determine which is active. Raises `KeyringError` or `StoreUnavailable`.

        The keys that unwrap are loaded even then.
        """
        async with self._reload_lock:  # an older read must not overwrite a newer one
            await self._reload()

    async def add_data_key(self, activation_delay: timedelta = timedelta(0)) -> str:
        """Announce a new data key that encrypts after this delay. Returns its id. Previous keys still decrypt.

        Raises `KeyringError` while the rotation to the previous one is not complete.
        """
        key_id = new_data_key_id()
        values = await self._new_data_key(key_id, DataKeyState.ROTATING, activation_delay)
        try:
            await self.change(lambda connection: connection.execute(insert(data_keys).values(values)))
        except IntegrityError as error:
            raise KeyringError(
                "the rotation to the newest data key is not complete: run `keys rotate` first"
            ) from error
        await self.reload()
        return key_id

    async def change(self, change: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Change the key set with the statements of `change`. Raises `KeyringError` if it was altered before."""
        return await change_key_set(self._database, self._mac_key, change, self._loaded)

    async def prepare(self) -> None:
        """Create the key set with the first data key if there is none, else check the key-encryption key.

        Raises `KeyringError` or `StoreUnavailable`.
        """
        await self.reload()
        if self._trusted is None:
            await self._create_key_set()
        if not self._active_id:
            raise KeyringError("the database has a key set but no data keys: restore the table data_keys")

    # --- loading -----------------------------------------------------------------------------------------------------

    @property
    def _loaded(self) -> KeySet:
        if self._trusted is None:
            raise KeyringError("no key set is loaded")
        return self._trusted

    async def _reload(self) -> None:
        key_set = await read_key_set(self._database)
        if key_set is None:
            if self._trusted is not None:  # keep the loaded keys
                raise KeyringError("the database has no key set: restore the tables key_sets and data_keys")
            return
        # Once per process: the MAC key never changes, so a later outage of KMS does not matter.
        self._mac_key = self._mac_key or await self._keys.unwrap(
            key_set.wrapped_mac_key, KEY_SET_ID, key_set.wrapping_key_id
        )
        altered = key_set.problem(self._mac_key, self._trusted) if self._verifies_key_set else None
        if altered is not None and self._trusted is not None:
            self._report(altered, key_set)
            raise KeyringError(altered)
        known: dict[bytes, AESGCM] = {}
        problems: list[KeyringError | StoreUnavailable] = []
        for row in key_set.keys:
            try:
                known[bytes.fromhex(row.key_id)] = await self._load(row)
            except (KeyringError, StoreUnavailable) as error:
                problems.append(error)
        if altered is not None:
            raise KeyringError("; ".join(map(str, [*problems, altered])))
        self._trusted, self._reported = key_set, b""
        if known != self._ciphers:
            self._ciphers = known
        self._active_id = _newest_active_key(key_set.keys, known)
        _raise_all(problems)

    def _report(self, problem: str, key_set: KeySet) -> None:
        """Log an altered set, once for each alteration: the set is read twice a second."""
        seen = key_set.compute_mac(self._mac_key, key_set.version)
        if seen != self._reported:
            self._reported = seen
            self._log.error("key_set_altered", problem=problem, key_ids=[row.key_id for row in key_set.rows])

    async def _load(self, row: StoredDataKey) -> AESGCM:
        cipher = self._ciphers.get(bytes.fromhex(row.key_id))
        return cipher or AESGCM(await self._keys.unwrap(row.wrapped_key, row.key_id, row.wrapping_key_id))

    async def _load_cipher(self, key_id: bytes) -> AESGCM:
        await self._reload_for(key_id)
        try:
            return self._ciphers[key_id]
        except KeyError:
            raise CredentialsUnreadable from None

    async def _reload_for(self, key_id: bytes) -> None:
        async with self._reload_lock:
            if key_id in self._ciphers or self._monotonic() < self._next_lookup:
                return
            with suppress(KeyringError):  # a key that does not unwrap here counts as unknown
                await self._reload()
            self._next_lookup = self._monotonic() + _LOOKUP_INTERVAL

    # --- creation ----------------------------------------------------------------------------------------------------

    async def _create_key_set(self) -> None:
        """Create the key set with the first data key, unless another server has."""
        await self._require_new_database()
        key, mac_key = await self._new_data_key(new_data_key_id(), DataKeyState.COMPLETE), os.urandom(KEY_BYTES)
        record = {
            "key_set_id": KEY_SET_ID,
            "version": 0,
            "wrapped_mac_key": await self._keys.wrap(mac_key, KEY_SET_ID),
            "wrapping_key_id": self._keys.current_id,
            "mac": b"",
        }
        with suppress(IntegrityError):  # another server has created it
            async with self._database.write_transaction() as connection:
                await connection.execute(insert(key_sets).values(record))
                await connection.execute(insert(data_keys).values(key))
                await authenticate_key_set(connection, mac_key)
        await self.reload()

    async def _require_new_database(self) -> None:
        """Raise `KeyringError` if the key set of this database was lost: a new first key would hide that."""
        remains = exists().where(integrations.c.encrypted_credentials.is_not(None)), exists(select(data_keys))
        # In one statement: another server may just have created the key set with its first key.
        if await self._database.fetch_value(select(and_(or_(*remains), ~exists(select(key_sets))))):
            raise KeyringError(
                "the database has encrypted values or data keys, but no key set: restore the tables key_sets and "
                "data_keys from a backup"
            )

    async def _new_data_key(
        self, key_id: str, state: DataKeyState, activation_delay: timedelta = timedelta(0)
    ) -> Mapping[str, Any]:
        return {
            "key_id": key_id,
            "wrapped_key": await self._keys.wrap(AESGCM.generate_key(KEY_BYTES * 8), key_id),
            "wrapping_key_id": self._keys.current_id,
            "state": state.value,
            "create_time": DatabaseTime(),
            "active_time": DatabaseTime(activation_delay),
        }


def new_data_key_id() -> str:
    """A new random id."""
    return os.urandom(KEY_ID_BYTES).hex()


def _newest_active_key(rows: Sequence[StoredDataKey], known: Mapping[bytes, AESGCM]) -> bytes:
    """The newest key that is active; the oldest of all if none is, as after a clock was set back."""
    usable = [row for row in rows if bytes.fromhex(row.key_id) in known]
    active = [row for row in usable if row.active_time <= row.now] or usable[:1]
    return bytes.fromhex(active[-1].key_id) if active else b""


def _raise_all(problems: Sequence[KeyringError | StoreUnavailable]) -> None:
    wrong = [str(problem) for problem in problems if isinstance(problem, KeyringError)]
    if wrong:
        raise KeyringError("; ".join(wrong))
    for problem in problems:
        raise problem


async def open_keyring(
    database: Database,
    keys: KeyEncryptionKeys,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    verifies_key_set: bool = True,
) -> Keyring:
    """Open the keyring of this database; the first data key is created if there is none.

    Raises `KeyringError` when a data key does not unwrap with `keys` or the set was altered, and `StoreUnavailable`.
    """
    keyring = Keyring(database, keys, monotonic=monotonic, verifies_key_set=verifies_key_set)
    await keyring.prepare()
    return keyring
