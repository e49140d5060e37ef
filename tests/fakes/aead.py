"""Sealing without keys: values are told apart and checked, but anybody could open them."""

import hashlib

from integration_server.domain.errors import CredentialsUnreadable
from integration_server.service.common_types import AssociatedData

_DIGEST_BYTES = 16


class FakeAead:
    """A `Aead` that refuses altered values and other places; with `checks_associated_data` off it does not look at
    places.
    """

    def __init__(self, *, checks_associated_data: bool = True) -> None:
        self._checks_associated_data = checks_associated_data

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """The plaintext, in disguise, after a digest of it and its place."""
        return self._digest(plaintext, associated_data) + _masked(plaintext)

    async def decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> bytes:
        """The plaintext, if value and place are as they were."""
        plaintext = _masked(encrypted[_DIGEST_BYTES:])
        if encrypted[:_DIGEST_BYTES] != self._digest(plaintext, associated_data):
            raise CredentialsUnreadable
        return plaintext

    def _digest(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        where = repr(associated_data) if self._checks_associated_data else ""
        return hashlib.sha256(where.encode() + b"\0" + plaintext).digest()[:_DIGEST_BYTES]


def _masked(text: bytes) -> bytes:
    """So that a search for a secret does not find it in what is sealed."""
    return bytes(byte ^ 0xA5 for byte in text)
