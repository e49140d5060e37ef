"""The keyring: data keys that values are sealed with, wrapped by a key that only the server's operator has.

A sealed value is

    1 byte format | 8 bytes data key id | 12 bytes nonce | ciphertext and 16 bytes tag

by AES-256-GCM, with the first two and the value's place as associated data: altered, truncated or moved, it does not
open. Nonces are random, so that a data key must not seal more than 2³² values (NIST SP 800-38D §8.3): add a new one
long before.
"""

import asyncio
import base64
import hashlib
import hmac
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Row, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.domain.errors import CredentialsUnreadable
from integration_server.service.ports import Clock, Place
from integration_server.storage.engine import Database
from integration_server.storage.tables import DataKeyState, data_keys

_KEY_BYTES = 32
_FORMAT = b"\x01"
_KEY_ID_BYTES = 8
_HEADER_BYTES = len(_FORMAT) + _KEY_ID_BYTES
_NONCE_BYTES = 12

_LOOK_INTERVAL = 1.0
"""Seconds between two looks for unknown data keys: a flood of forged values must not become load on the database."""

_ALL_KEYS = select(data_keys).order_by(data_keys.c.create_time, data_keys.c.key_id)
_IS_ACTIVE = data_keys.c.state == DataKeyState.ACTIVE.value
_ACTIVE_KEY_ID = select(data_keys.c.key_id).where(_IS_ACTIVE)
_RETIRE_ACTIVE_KEY = update(data_keys).where(_IS_ACTIVE).values(state=DataKeyState.RETIRED.value)


class KeyringError(Exception):
    """The data keys cannot be used with the keys that are configured. Names key ids, never a key."""


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key in either base64 alphabet, padded or not. Raises `ValueError` that does not quote it."""
    digits = text.strip().rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        key = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise ValueError(f"must be {_KEY_BYTES} bytes in base64; this is not base64") from None
    if len(key) != _KEY_BYTES:
        raise ValueError(f"must be {_KEY_BYTES} bytes in base64; this is {len(key)} bytes")
    return key


@dataclass(frozen=True, slots=True)
class WrappingKey:
    """A key that encrypts data keys. Its id is made of the key, one way, so that it need not be configured."""

    key: bytes = field(repr=False)
    key_id: str = field(init=False)

    def __post_init__(self) -> None:
        if len(self.key) != _KEY_BYTES:
            raise ValueError(f"a key must be {_KEY_BYTES} bytes, not {len(self.key)}")
        digest = hmac.digest(self.key, b"integration-server wrapping key id", hashlib.sha256)
        object.__setattr__(self, "key_id", digest[:4].hex())

    def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """The data key, encrypted for this id."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self.key).encrypt(nonce, data_key, data_key_id.encode())

    def unwrap(self, wrapped: bytes, data_key_id: str) -> bytes:
        """The data key of this id. Raises `InvalidTag`."""
        nonce, ciphertext = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        return AESGCM(self.key).decrypt(nonce, ciphertext, data_key_id.encode())


class Keyring:
    """Seals and opens values for their place: a `Sealer`. Made by `open_keyring`."""

    def __init__(
        self,
        database: Database,
        key: WrappingKey,
        retired: Iterable[WrappingKey],
        *,
        clock: Clock,
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._wrapping_key = key
        self._wrapping_keys = {key.key_id: key for key in (key, *retired)}
        self._clock = clock
        self._monotonic = monotonic
        self._ciphers: dict[bytes, AESGCM] = {}
        self._active_id = b""
        self._looking = asyncio.Lock()
        self._next_look = -math.inf

    async def seal(self, plaintext: bytes, place: Place) -> bytes:
        """`plaintext`, sealed with the active data key."""
        header = _FORMAT + self._active_id
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self._active_id]
        return header + nonce + cipher.encrypt(nonce, plaintext, _associated_data(header, place))

    async def open(self, sealed: bytes, place: Place) -> bytes:
        """The plaintext. Raises `CredentialsUnreadable` when anything about value, key or place is not as sealed."""
        header, rest = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
        nonce, ciphertext = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        if not header.startswith(_FORMAT) or len(nonce) < _NONCE_BYTES:
            raise CredentialsUnreadable
        cipher = await self._cipher(header.removeprefix(_FORMAT))
        try:
            return cipher.decrypt(nonce, ciphertext, _associated_data(header, place))
        except InvalidTag:
            raise CredentialsUnreadable from None

    async def reload(self) -> None:
        """Learn the data keys that were added meanwhile, and which is active. Raises `KeyringError`.

        Those that unwrap are learnt even then.
        """
        async with self._database.watching() as connection:
            rows = (await connection.execute(_ALL_KEYS)).all()
        problems = [problem for row in rows if (problem := self._learn(row)) is not None]
        if problems:
            raise KeyringError("; ".join(problems))

    async def add_data_key(self) -> str:
        """Make a new data key the active one, and tell its id; former ones go on opening. Raises `KeyringError`."""
        try:
            async with self._database.writing() as connection:
                await connection.execute(_RETIRE_ACTIVE_KEY)
                key_id = await self._insert_key(connection)
        except IntegrityError as error:
            raise KeyringError("another data key was added at the same moment") from error
        await self.reload()
        return key_id

    async def ensure_data_key(self) -> None:
        """Make the first data key, unless there is an active one."""
        if self._active_id:
            return
        try:
            async with self._database.writing() as connection:
                if await connection.scalar(_ACTIVE_KEY_ID) is None:
                    await self._insert_key(connection)
        except IntegrityError:
            pass  # another server was quicker
        await self.reload()

    async def _insert_key(self, connection: AsyncConnection) -> str:
        key_id = os.urandom(_KEY_ID_BYTES).hex()
        await connection.execute(
            insert(data_keys).values(
                key_id=key_id,
                wrapped_key=self._wrapping_key.wrap(AESGCM.generate_key(_KEY_BYTES * 8), key_id),
                wrapping_key_id=self._wrapping_key.key_id,
                state=DataKeyState.ACTIVE.value,
                create_time=self._clock(),
            )
        )
        return key_id

    async def _cipher(self, key_id: bytes) -> AESGCM:
        if key_id not in self._ciphers:
            await self._look_for_keys()
        try:
            return self._ciphers[key_id]
        except KeyError:
            raise CredentialsUnreadable from None

    async def _look_for_keys(self) -> None:
        async with self._looking:
            if self._monotonic() < self._next_look:
                return
            self._next_look = self._monotonic() + _LOOK_INTERVAL
            with suppress(KeyringError):  # a key that does not unwrap here is as good as unknown
                await self.reload()

    def _learn(self, row: Row[Any]) -> str | None:
        """Take a data key in; what keeps it out otherwise."""
        key_id = bytes.fromhex(row.key_id)
        if key_id not in self._ciphers:
            wrapping_key = self._wrapping_keys.get(row.wrapping_key_id)
            if wrapping_key is None:
                return (
                    f"data key {row.key_id} is wrapped by key {row.wrapping_key_id}, which is not configured; "
                    f"configured: {', '.join(self._wrapping_keys)}"
                )
            try:
                self._ciphers[key_id] = AESGCM(wrapping_key.unwrap(row.wrapped_key, row.key_id))
            except (InvalidTag, ValueError):
                return f"data key {row.key_id} does not open with key {row.wrapping_key_id}: it was altered"
        if row.state == DataKeyState.ACTIVE:
            self._active_id = key_id
        return None


def _associated_data(header: bytes, place: Place) -> bytes:
    names = (place.table, place.column, place.uid, place.user_id, place.integration_type)
    parts = [header, *(name.encode() for name in names)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)  # with lengths, no two places look alike


async def open_keyring(
    database: Database,
    key: bytes,
    retired: Iterable[bytes] = (),
    *,
    clock: Clock,
    monotonic: Callable[[], float] = time.monotonic,
) -> Keyring:
    """The keyring of this database; the first data key is made if there is none.

    `key` wraps new data keys, and it or one of `retired` unwraps those there are; 32 bytes each. Raises `KeyringError`
    when one does not unwrap, and `ValueError` for a key of another length.
    """
    keyring = Keyring(
        database, WrappingKey(key), [WrappingKey(old) for old in retired], clock=clock, monotonic=monotonic
    )
    await keyring.reload()
    await keyring.ensure_data_key()
    return keyring


@dataclass(frozen=True, slots=True)
class DataKeyInfo:
    """What may be told of a data key."""

    key_id: str
    wrapping_key_id: str
    is_active: bool
    create_time: datetime


async def describe_data_keys(database: Database) -> Sequence[DataKeyInfo]:
    """All data keys, oldest first. Needs no key."""
    async with database.reading() as connection:
        rows = (await connection.execute(_ALL_KEYS)).all()
    return [
        DataKeyInfo(row.key_id, row.wrapping_key_id, row.state == DataKeyState.ACTIVE, row.create_time) for row in rows
    ]
