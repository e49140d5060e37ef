"""Time, chance and sealing."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

Clock = Callable[[], datetime]
"""Now, in UTC and aware of it."""

RandomToken = Callable[[], str]
"""A fresh unguessable name of 43 to 128 URL-safe characters, good as a PKCE verifier too (RFC 7636 §4.1)."""

Jitter = Callable[[], float]
"""A random number from 0 to 1."""


@dataclass(frozen=True, slots=True)
class AssociatedData:
    """Where a sealed value belongs. It opens nowhere else."""

    table: str
    column: str
    uid: str
    user_id: str = ""
    integration_type: str = ""


class Aead(Protocol):
    """Encrypts values for their place."""

    async def encrypt(self, plaintext: bytes, associated_data: AssociatedData) -> bytes:
        """`plaintext`, sealed with the newest key."""

    async def decrypt(self, encrypted: bytes, associated_data: AssociatedData) -> bytes:
        """The plaintext. Raises `CredentialsUnreadable` when anything about value, key or place is not as sealed."""
