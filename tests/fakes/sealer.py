"""Sealing without keys: values are told apart and checked, but anybody could open them."""

import hashlib

from integration_server.domain.errors import CredentialsUnreadable
from integration_server.service.ports import Place

_DIGEST_BYTES = 16


class FakeSealer:
    """A `Sealer` that refuses altered values and other places; with `checks_places` off it does not look at places."""

    def __init__(self, *, checks_places: bool = True) -> None:
        self._checks_places = checks_places

    async def seal(self, plaintext: bytes, place: Place) -> bytes:
        """The plaintext, in disguise, after a digest of it and its place."""
        return self._digest(plaintext, place) + _disguised(plaintext)

    async def open(self, sealed: bytes, place: Place) -> bytes:
        """The plaintext, if value and place are as they were."""
        plaintext = _disguised(sealed[_DIGEST_BYTES:])
        if sealed[:_DIGEST_BYTES] != self._digest(plaintext, place):
            raise CredentialsUnreadable
        return plaintext

    def _digest(self, plaintext: bytes, place: Place) -> bytes:
        where = repr(place) if self._checks_places else ""
        return hashlib.sha256(where.encode() + b"\0" + plaintext).digest()[:_DIGEST_BYTES]


def _disguised(text: bytes) -> bytes:
    """So that a search for a secret does not find it in what is sealed."""
    return bytes(byte ^ 0xA5 for byte in text)
