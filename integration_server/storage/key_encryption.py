"""Key-encryption keys, which wrap the data keys and nothing else: the port, and the local one. See `aws_kms` too."""

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32

_NONCE_BYTES = 12


class KeyringError(Exception):
    """The data keys cannot be used with the keys that are configured. Names key ids, never a key."""


class UnwrapError(Exception):
    """A wrapped key is not one that this key has wrapped for this id."""


class KeyEncryptionKey(Protocol):
    """A key that encrypts data keys. Both calls raise `StoreUnavailable` if what it is kept in is away."""

    @property
    def key_id(self) -> str:
        """What it is called wherever it was used; at most 255 characters."""

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """The data key, encrypted for this id. Raises `KeyringError` where it may not be used."""

    async def unwrap(self, wrapped: bytes, data_key_id: str) -> bytes:
        """The data key of this id. Raises `UnwrapError`, or `KeyringError` where it may not be used."""


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key in either base64 alphabet, padded or not. Raises `ValueError` that does not quote it."""
    digits = text.strip().rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        key = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise ValueError(f"must be {KEY_BYTES} bytes in base64; this is not base64") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"must be {KEY_BYTES} bytes in base64; this is {len(key)} bytes")
    return key


@dataclass(frozen=True, slots=True)
class LocalKey:
    """A `KeyEncryptionKey` by a key in hand, with AES-256-GCM. Its id is made of the key, one way."""

    key: bytes = field(repr=False)
    key_id: str = field(init=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"a key must be {KEY_BYTES} bytes, not {len(self.key)}")
        digest = hmac.digest(self.key, b"integration-server wrapping key id", hashlib.sha256)
        object.__setattr__(self, "key_id", digest[:4].hex())

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """The data key, encrypted for this id."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self.key).encrypt(nonce, data_key, data_key_id.encode())

    async def unwrap(self, wrapped: bytes, data_key_id: str) -> bytes:
        """The data key of this id. Raises `UnwrapError`."""
        nonce, ciphertext = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return AESGCM(self.key).decrypt(nonce, ciphertext, data_key_id.encode())
        except (InvalidTag, ValueError):
            raise UnwrapError from None


class KeyEncryptionKeys:
    """The current key, which wraps, and former ones, which only unwrap what they have wrapped."""

    def __init__(self, current: KeyEncryptionKey, previous: Iterable[KeyEncryptionKey] = ()) -> None:
        self._current = current
        self._keys = {key.key_id: key for key in (current, *previous)}

    @property
    def current_id(self) -> str:
        """The id of the key that wraps."""
        return self._current.key_id

    @property
    def key_ids(self) -> Sequence[str]:
        """The ids of all of them, the current one first."""
        return tuple(self._keys)

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """The data key, encrypted with the current key. Raises `KeyringError` or `StoreUnavailable`."""
        return await self._current.wrap(data_key, data_key_id)

    async def unwrap(self, wrapped: bytes, data_key_id: str, wrapping_key_id: str) -> bytes:
        """The data key of this id. Raises `KeyringError` that names the ids, or `StoreUnavailable`."""
        key = self._keys.get(wrapping_key_id)
        if key is None:
            raise KeyringError(
                f"data key {data_key_id} is wrapped by key {wrapping_key_id}, which is not configured; "
                f"configured: {', '.join(self._keys)}"
            )
        try:
            return await key.unwrap(wrapped, data_key_id)
        except UnwrapError:
            raise KeyringError(
                f"data key {data_key_id} does not open with key {wrapping_key_id}: it was altered"
            ) from None
