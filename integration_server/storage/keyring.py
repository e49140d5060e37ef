"""The keyring: the data keys that encrypt values. The database stores them wrapped by a key-encryption key.

An encrypted value is

    1 byte format | 8 bytes data key id | 12 bytes nonce | ciphertext and 16 bytes tag

in AES-256-GCM. The header and the value's associated data are authenticated: an altered, truncated or moved value
cannot be decrypted. Nonces are random, so a data key must not encrypt more than 2³² values (NIST SP 800-38D §8.3).

A data key is announced before it is used: it is in the table from its creation, and encrypts from its `active_time` on,
by the database's clock. Every server reads the table about once a second and is not ready when it cannot, so that all
servers know a key before any server encrypts with it, whatever their own clocks say.
"""

import asyncio
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from operator import attrgetter
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Row, insert, select
from sqlalchemy.exc import IntegrityError

from integration_server.domain.errors import CredentialsUnreadable, StoreUnavailable
from integration_server.service.common_types import AssociatedData
from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.key_encryption import KEY_BYTES, KeyEncryptionKeys, KeyringError
from integration_server.storage.tables import DataKeyState, data_keys, key_checks

_FORMAT = b"\x01"
_KEY_ID_BYTES = 8
_HEADER_BYTES = len(_FORMAT) + _KEY_ID_BYTES
_NONCE_BYTES = 12

_LOOKUP_INTERVAL = 1.0
"""Seconds between reads for an unknown data key: many forged values must not become load on the database."""

_CHECK_ID = "key-check"
_CHECK = b"integration-server key check 1.."
"""The plaintext of the key check, as long as a key. It is not secret: the check is whether it unwraps."""

_NAMES = attrgetter("table", "column", "uid", "user_id", "integration_type")

ALL_DATA_KEYS = select(data_keys, DatabaseTime().label("now")).order_by(data_keys.c.active_time, data_keys.c.key_id)
"""The query for all data keys, by activation time."""


class Keyring:
    """An `Aead` with the data keys of the database. Created by `open_keyring`."""

    def __init__(self, database: Database, keys: KeyEncryptionKeys, *, monotonic: Callable[[], float]) -> None:
        self._database = database
        self._keys = keys
        self._monotonic = monotonic
        self._ciphers: Mapping[bytes, AESGCM] = {}
        self._active_id = b""
        self._reload_lock = asyncio.Lock()
        self._next_lookup = -math.inf

    @property
    def active_key_id(self) -> str:
        """The id of the data key that encrypts, as of the last read."""
        return self._active_id.hex()

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """Encrypt with the active data key."""
        header = _FORMAT + self._active_id
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self._active_id]
        return header + nonce + cipher.encrypt(nonce, plaintext, _encode_associated_data(header, associated_data))

    async def decrypt(self, ciphertext: bytes, associated_data: AssociatedData) -> bytes:
        """Decrypt. Raises `CredentialsUnreadable` if the value, the key or the associated data differs."""
        header, rest = ciphertext[:_HEADER_BYTES], ciphertext[_HEADER_BYTES:]
        nonce, payload = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        if not header.startswith(_FORMAT) or len(nonce) < _NONCE_BYTES:
            raise CredentialsUnreadable
        cipher = await self._cipher(header.removeprefix(_FORMAT))
        try:
            return cipher.decrypt(nonce, payload, _encode_associated_data(header, associated_data))
        except InvalidTag:
            raise CredentialsUnreadable from None

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
            await self._database.write(insert(data_keys).values(values))
        except IntegrityError as error:
            raise KeyringError(
                "the rotation to the newest data key is not complete: run `keys rotate` first"
            ) from error
        await self.reload()
        return key_id

    async def prepare(self) -> None:
        """Create the first data key and the key check if there are none, else check the key-encryption key.

        Raises `KeyringError` or `StoreUnavailable`.
        """
        await self.reload()
        check = await self._database.fetch_one(select(key_checks))
        if check is None:
            await self._create_first_key()
        else:
            await self._keys.unwrap(check.wrapped_check, check.check_id, check.wrapping_key_id)
        if not self._active_id:
            await self.reload()  # another server may have created both since the first read
        if not self._active_id:
            raise KeyringError("the database has a key check but no data keys: restore the table data_keys")

    # --- loading -----------------------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        async with self._database.monitor_connection() as connection:
            rows = (await connection.execute(ALL_DATA_KEYS)).all()
        if self._ciphers and not rows:  # keep the loaded keys
            raise KeyringError("the database has no data keys")
        known, problems = {}, []
        for row in rows:
            try:
                known[bytes.fromhex(row.key_id)] = await self._load(row)
            except (KeyringError, StoreUnavailable) as error:
                problems.append(error)
        self._ciphers = known
        self._active_id = _newest_active_key(rows, known)
        _raise_all(problems)

    async def _load(self, row: Row[Any]) -> AESGCM:
        cipher = self._ciphers.get(bytes.fromhex(row.key_id))
        return cipher or AESGCM(await self._keys.unwrap(row.wrapped_key, row.key_id, row.wrapping_key_id))

    async def _cipher(self, key_id: bytes) -> AESGCM:
        if key_id not in self._ciphers:
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

    async def _create_first_key(self) -> None:
        """Create the key check, and the first data key unless this database has one without a check."""
        is_first = not self._active_id
        check = {
            "check_id": _CHECK_ID,
            "wrapped_check": await self._keys.wrap(_CHECK, _CHECK_ID),
            "wrapping_key_id": self._keys.current_id,
        }
        key = await self._new_data_key(new_data_key_id(), DataKeyState.COMPLETE) if is_first else None
        with suppress(IntegrityError):  # another server has created them
            async with self._database.write_transaction() as connection:
                await connection.execute(insert(key_checks).values(check))
                if key is not None:
                    await connection.execute(insert(data_keys).values(key))
        await self.reload()

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
    return os.urandom(_KEY_ID_BYTES).hex()


def _newest_active_key(rows: Sequence[Row[Any]], known: Mapping[bytes, AESGCM]) -> bytes:
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


def _encode_associated_data(header: bytes, associated_data: AssociatedData) -> bytes:
    parts = [header, *(name.encode() for name in _NAMES(associated_data))]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)  # the lengths make the encoding unambiguous


async def open_keyring(
    database: Database, keys: KeyEncryptionKeys, *, monotonic: Callable[[], float] = time.monotonic
) -> Keyring:
    """Open the keyring of this database; the first data key is created if there is none.

    Raises `KeyringError` when a data key or the key check does not unwrap with `keys`, and `StoreUnavailable`.
    """
    keyring = Keyring(database, keys, monotonic=monotonic)
    await keyring.prepare()
    return keyring
