"""Key-encryption keys, which wrap the data keys: the port and the local key. Others: `aws_kms.py`, `openbao.py`."""

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32

OPENBAO_PREFIX = "openbao:"
"""What the ids of keys in OpenBao or Vault begin with: `openbao:MOUNT/NAME`. The mount may have slashes."""

_NONCE_BYTES = 12


class KeyringError(Exception):
    """The data keys cannot be used with the configured keys. The message names key ids, never a key."""


class UnwrapError(Exception):
    """A wrapped key was not wrapped by this key for this id."""


class KeyEncryptionKey(Protocol):
    """A key that encrypts data keys. Both calls raise `StoreUnavailable` if the key's store is unavailable."""

    @property
    def key_id(self) -> str:
        """The id that is stored with each wrapped key; at most 255 characters."""

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """Encrypt a data key for this id. Raises `KeyringError` if the key must not be used."""

    async def unwrap(self, wrapped: bytes, data_key_id: str) -> bytes:
        """Decrypt the data key of this id. Raises `UnwrapError`, or `KeyringError` if the key must not be used."""

    def is_outdated(self, wrapped: bytes) -> bool:
        """Whether this key would wrap with newer key material than what `wrapped` was wrapped with."""


def parse_key(text: str) -> bytes:
    """Parse a 32-byte key in either base64 alphabet, padded or not. Raises `ValueError` without the text."""
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
    """A `KeyEncryptionKey` in memory, with AES-256-GCM. Its id is derived from the key with an HMAC."""

    key: bytes = field(repr=False)
    key_id: str = field(init=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"a key must be {KEY_BYTES} bytes, not {len(self.key)}")
        digest = hmac.digest(self.key, b"integration-server wrapping key id", hashlib.sha256)
        object.__setattr__(self, "key_id", digest[:4].hex())

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """Encrypt a data key for this id."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self.key).encrypt(nonce, data_key, data_key_id.encode())

    async def unwrap(self, wrapped: bytes, data_key_id: str) -> bytes:
        """Decrypt the data key of this id. Raises `UnwrapError`."""
        nonce, ciphertext = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return AESGCM(self.key).decrypt(nonce, ciphertext, data_key_id.encode())
        except (InvalidTag, ValueError):
            raise UnwrapError from None

    def is_outdated(self, wrapped: bytes) -> bool:
        """False: its material never changes."""
        return False


class KeyEncryptionKeys:
    """The current key, which wraps, and previous keys, which only unwrap."""

    def __init__(self, current: KeyEncryptionKey, previous: Iterable[KeyEncryptionKey] = ()) -> None:
        self._current = current
        self._keys = {key.key_id: key for key in (current, *previous)}

    @property
    def current_id(self) -> str:
        """The id of the key that wraps."""
        return self._current.key_id

    def needs_rewrap(self, wrapped: bytes, wrapping_key_id: str) -> bool:
        """Whether wrapping again would change the key that wraps this, or its version."""
        return wrapping_key_id != self.current_id or self._current.is_outdated(wrapped)

    async def wrap(self, data_key: bytes, data_key_id: str) -> bytes:
        """Encrypt a data key with the current key. Raises `KeyringError` or `StoreUnavailable`."""
        return await self._current.wrap(data_key, data_key_id)

    async def unwrap(self, wrapped: bytes, data_key_id: str, wrapping_key_id: str) -> bytes:
        """Decrypt the data key of this id. Raises `KeyringError` with the ids, or `StoreUnavailable`."""
        key = self._keys.get(wrapping_key_id)
        if key is None:
            raise KeyringError(
                f"data key {data_key_id} is wrapped by key {wrapping_key_id}, which is not configured; "
                f"configured: {', '.join(self._keys)}; set ENCRYPTION_KEY or KMS_KEY_ID to that key again, or, to "
                "replace it, add it to ENCRYPTION_KEYS_RETIRED or KMS_KEY_IDS_RETIRED; if it is lost, so are the "
                "stored credentials: set DATABASE_URL to a new database, and users connect again"
            )
        try:
            return await key.unwrap(wrapped, data_key_id)
        except UnwrapError:
            raise KeyringError(
                f"data key {data_key_id} does not unwrap with key {wrapping_key_id}: it was altered"
            ) from None
