"""An AEAD without keys: it detects altered values and other associated data, but keeps nothing secret."""

import hashlib

from integration_server.domain.associated_data import AssociatedData
from integration_server.domain.errors import CredentialsUnreadable

_DIGEST_BYTES = 16


class FakeAead:
    """An `Aead` that rejects altered values and other associated data; without
    `checks_associated_data` (a negative control) it ignores the associated data.
    """

    def __init__(self, *, checks_associated_data: bool = True) -> None:
        self._checks_associated_data = checks_associated_data

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """A digest of the plaintext and its associated data, then the masked plaintext."""
        return self._digest(plaintext, associated_data) + _mask(plaintext)

    async def decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> bytes:
        """The plaintext. Raises `CredentialsUnreadable` if the value or its associated data differ."""
        plaintext = _mask(encrypted[_DIGEST_BYTES:])
        if encrypted[:_DIGEST_BYTES] != self._digest(plaintext, associated_data):
            raise CredentialsUnreadable
        return plaintext

    def _digest(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        context = repr(associated_data) if self._checks_associated_data else ""
        return hashlib.sha256(context.encode() + b"\0" + plaintext).digest()[:_DIGEST_BYTES]


def _mask(text: bytes) -> bytes:
    """Mask a plaintext, so that a search for a secret does not find it in encrypted values."""
    return bytes(byte ^ 0xA5 for byte in text)
